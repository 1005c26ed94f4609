"""Hundreds of wrong command lines: each ends with one error, exit code 1 or 2, no traceback, and nothing written."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.models import OptionInfo
from typer.testing import CliRunner

from compressor.cli.main import app, commands
from tests.support.command_line import ARCH, REFUSED, USAGE

COMMANDS = commands()
SMALL = ("tiny.compressed",)
DENSE = ("tiny.pt", *ARCH)
DATA = ("--data", "data.npz")
GOOD = {  # what each command takes, to which one wrong option is added
    "inspect": DENSE,
    "sensitivity": (*DENSE, *DATA),
    "prune": (*DENSE, "--ratio", "0.5", "--out", "new"),
    "frontier": (*DENSE, *DATA),
    "factorize": (*DENSE, "--macs", "0.5", "--out", "new"),
    "retrain": (*SMALL, *DATA, "--out", "new"),
    "adapt": (*DENSE, "--source", "data.npz", "--target", "data.npz", "--out", "new"),
    "exits": (*DENSE, *DATA, "--after", "body.2"),
    "export": SMALL,
    "quantize": (*SMALL, *DATA),
    "bench": SMALL,
    "measure-table": DENSE,
    "report": SMALL,
    "evaluate": (*SMALL, *DATA),
    "study": ("lottery-ticket", "--scale", "smoke"),
    "demo": (),
}
WRONG = {
    "int": ("x", "1.5", "", "-1", "99999999999999999999"),
    "float": ("x", "", "nan", "-inf", "-1"),
    "choice": ("no-such-thing",),
}
CHOICES = {
    "on", "criterion", "mask_criterion", "scope", "repair", "align", "device", "how", "schedule", "optimiser",
    "teacher", "certainty", "runtimes", "batch", "augment", "scale", "split", "arch", "data", "source", "target",
    "speedups", "mean", "latency", "layer",
}  # fmt: skip
OFTEN = ("=x", "=-1", "=nan", "9999", "no-such-thing")  # the other values in the long run alone
SWITCHES = {"prune": {"device": ("--while-training", *DATA)}}  # what an option is about


def kind_of(name: str, annotation: Any) -> str | None:
    kinds = {a for a in (get_args(annotation) or (annotation,)) if a is not type(None)}
    if kinds == {bool}:
        return None
    if kinds & {int, float}:
        return "int" if int in kinds else "float"
    return "choice" if name in CHOICES else None


def generated() -> list[tuple[str, tuple[str, ...]]]:
    """Every option of every command with every wrong value of its kind."""
    found = []
    for name, command in COMMANDS.items():
        for parameter, annotated in get_type_hints(command, include_extras=True).items():
            annotation, *more = get_args(annotated) or (None,)
            if not any(isinstance(one, OptionInfo) for one in more):
                continue
            written = next((d for one in more for d in one.param_decls or ()), f"--{parameter.replace('_', '-')}")
            for value in WRONG.get(kind_of(parameter, annotation) or "", ()):
                beside = SWITCHES.get(name, {}).get(parameter, ())
                found.append((name, (*GOOD[name], *beside, f"{written}={value}")))
    return found


def test_there_are_hundreds() -> None:
    assert GOOD.keys() == COMMANDS.keys()
    assert len(generated()) >= 250


def check(name: str, arguments: tuple[str, ...]) -> str | None:
    """What is not as it should be about how the command ends."""
    before = sorted(str(p) for p in Path.cwd().rglob("*"))
    try:
        ended = CliRunner().invoke(app, [name, *arguments], catch_exceptions=False)
    except Exception as error:  # a traceback, to a user
        return f"{type(error).__name__}: {error}"
    if ended.exit_code not in (REFUSED, USAGE):
        return f"exit code {ended.exit_code}"
    errors = re.findall(r"^error: |^Usage: ", ended.stderr, flags=re.MULTILINE)
    if len(errors) != 1 or "Traceback" in ended.stderr or ended.stdout:
        return f"not one error: {ended.stderr} {ended.stdout}"
    if ended.exit_code == REFUSED and len(re.findall(r"^hint: ", ended.stderr, flags=re.MULTILINE)) != 1:
        return f"no hint: {ended.stderr}"
    after = sorted(str(p) for p in Path.cwd().rglob("*") if "__pycache__" not in p.parts)
    new = set(after) - set(before)
    return f"written: {new}" if new else None


def problems(name: str, *, often: bool) -> dict[str, str]:
    mine = [arguments for n, arguments in generated() if n == name and (arguments[-1].endswith(OFTEN) == often)]
    return {" ".join(a): problem for a in mine if (problem := check(name, a)) is not None}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("pruned")
def test_a_wrong_value_of_any_option_is_one_error(name: str) -> None:
    assert not problems(name, often=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("pruned")
def test_other_wrong_values_are_one_error_too(name: str) -> None:
    assert not problems(name, often=False)


# (command and arguments, what the error says): wrong by more than one option's value
TOGETHER = [
    (("prune", *DENSE, "--ratio", "0.5", "--table", "gone.json"), "`--table` has no effect without a budget of time"),
    (("prune", *DENSE, "--ratio", "0.5", "--on", "torch-eager"), "`--on` has no effect"),
    (("prune", *DENSE, "--ratio", "0.5", "--tolerance", "0.1"), "`--tolerance` has no effect"),
    (("prune", *DENSE, "--ratio", "0.5", "--calibration", "9"), "`--calibration` has no effect"),
    (("prune", *DENSE, "--ratio", "0.5", "--download"), ""),
    (("prune", *DENSE, "--ratio", "0.5", "--levels", "1000000"), "levels is 1,000,000"),
    (("prune", "tiny.pt", "--arch-arg", "width=3", "--ratio", "0.5"), "`--arch-arg` has no effect without `--arch`"),
    (
        ("prune", *SMALL, "--arch", "net.py:Net", "--arch-arg", "width=3", "--ratio", "0.5"),
        "has no effect on an artifact",
    ),
    (("prune", *DENSE, "--ratio", "0.5", *DATA, "--mean", "nan", "--std", "nan"), "must be finite"),
    (("bench", *SMALL, "--pack", "p", "--min-speedup", "1.5"), "`--min-speedup` has no effect beside `--pack`"),
    (("bench", *SMALL, "--read", "m.json", "--why"), "`--why` has no effect beside `--read`"),
    (("bench", *SMALL, "--read", "gone.json"), "cannot read gone.json"),
    (("bench", *SMALL, "--read", "."), "not a regular file"),
    (("adapt", *DENSE, "--source", "data.npz", "--target", "data.npz", "--rounds", "3"), "without a budget"),
    (("export", *SMALL, "--out", "x" * 300 + ".onnx"), ""),
    (("sensitivity", *DENSE, *DATA, "--out", "x" * 300 + ".svg"), ""),
    (("inspect", "x" * 300 + ".pt"), ""),
    (("inspect", "tiny.pt", "--arch", ":"), "`:` is not an architecture"),
    (("inspect", "tiny.pt", "--arch", "..:c"), "`..:c` is not an architecture"),
    (("inspect", "tiny.pt", "--arch", "net.py:"), "`net.py:` is not an architecture"),
    (("inspect", "tiny.pt", "--arch", "sys:exit"), "ended the process"),
    (("demo", "--out", "net.py"), "the demo cannot work in net.py"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), TOGETHER, ids=lambda v: " ".join(v)[:60] if isinstance(v, tuple) else ""
)
@pytest.mark.usefixtures("pruned")
def test_what_says_nothing_or_makes_no_sense_is_one_error(arguments: tuple[str, ...], says: str) -> None:
    assert check(arguments[0], arguments[1:]) is None
    told = CliRunner().invoke(app, list(arguments))
    assert says in " ".join(told.stderr.split())


@pytest.mark.usefixtures("pruned")
def test_a_home_that_cannot_be_written_is_no_hindrance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.delenv("COMPRESS_STATE_DIR")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert CliRunner().invoke(app, ["inspect", *DENSE]).exit_code == 0
    (store,) = (tmp_path / "temp").glob("compress-trusted-*")
    assert store.stat().st_mode & 0o777 == 0o700
    assert CliRunner().invoke(app, ["inspect", *SMALL]).exit_code == 0  # it is built by that file
    store.chmod(0o777)  # others may have put something there
    assert "would run that code" in CliRunner().invoke(app, ["inspect", *SMALL]).stderr
