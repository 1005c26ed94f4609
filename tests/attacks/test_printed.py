"""Names are printed as they are: no markup, no emoji, no control character that a terminal acts on."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import compressor
from compressor.cli.main import main
from tests.support.command_line import ARCH, done, run

COMPRESS = str(Path(sys.executable).parent / "compress")


@pytest.mark.parametrize("name", ["v[/2].compressed", "[red]x.compressed", "[/].compressed", "a:bug:.compressed"])
@pytest.mark.usefixtures("pruned")
def test_square_brackets_and_colons_in_a_name_are_printed(name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path("tiny.compressed").rename(name)
    told = done("export", name)
    assert f"wrote {name}/model.onnx" in told.stdout
    assert f"wrote {name}/report.html" in done("report", name).stdout
    assert name in run("inspect", f"{name}.pt").stderr  # which is not there


@pytest.mark.usefixtures("inputs")
def test_a_name_with_markup_passes_the_commands_that_write() -> None:
    name = "[bold]t[red]iny"
    Path("tiny.pt").rename(f"{name}.pt")
    told = done("prune", f"{name}.pt", *ARCH, "--ratio", 0.5)
    assert f"wrote {name}.compressed" in told.stdout
    assert done("inspect", f"{name}.compressed").stdout.startswith(name)


@pytest.mark.usefixtures("workdir")
def test_an_escape_sequence_in_a_name_does_not_reach_the_terminal() -> None:
    told = run("inspect", "x\x1b]0;owned\x07.pt")
    assert "\x1b" not in told.stderr
    assert "\\x1b]0;owned\\x07.pt is not there" in told.stderr


@pytest.mark.usefixtures("pruned")
def test_every_name_can_be_written_in_any_locale() -> None:
    Path("tiny.compressed").rename("größe 模型.compressed")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ["prune", "größe 模型.compressed", "--ratio", "0.2", "--out", "ö"]
    ended = subprocess.run([COMPRESS, *arguments], capture_output=True, env=plain, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    recipe = json.loads(Path("ö/recipe.json").read_text(encoding="utf-8"))
    assert os.fsencode(recipe["source"]["path"]) == os.fsencode(Path("größe 模型.compressed").resolve())
    done("report", "ö")


@pytest.mark.parametrize("arguments", [["report"], ["report", "--json"], ["--version"], ["--help"], ["study"]])
@pytest.mark.usefixtures("pruned")
def test_a_full_stdout_is_one_message(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compress", *arguments])
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 1
    said = capfd.readouterr().err
    assert said.count("error: cannot write") == 1
    assert "No space left on device" in said
    assert "hint: " in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("pruned")
def test_a_closed_stdout_is_no_message() -> None:
    ended = subprocess.run(
        ["bash", "-c", f"{COMPRESS} report | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=True
    )
    assert ended.stdout in ("0\n", "141\n")  # `true` may end after it
    assert "error" not in ended.stderr


def test_every_text_file_is_read_and_written_as_utf8() -> None:
    """No call leaves the encoding to the locale."""
    for file in Path(compressor.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            given = {keyword.arg for keyword in node.keywords}
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            text = node.func.attr in ("read_text", "write_text") or (
                node.func.attr == "open" and any(mode in ("r", "w", "a", "x", "rt", "wt") for mode in modes)
            )
            if text:
                assert "encoding" in given, f"{file.name}:{node.lineno}"
            if node.func.attr == "run" and "capture_output" in given:
                assert "encoding" in given or file.name == "environment.py", f"{file.name}:{node.lineno}"
