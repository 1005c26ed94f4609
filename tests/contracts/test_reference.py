"""The reference is complete: each command with each of its options, each public name, each plug-in."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any

import pytest
import typer

import compressor
from benchmarks.reference import (
    command_line,
    criteria,
    escaped,
    members,
    panels,
    public_names,
    runtimes,
    signature,
    studies,
    usage,
)
from compressor import Scope
from compressor.cli.main import app
from compressor.measuring import runtimes as all_runtimes
from compressor.planning import criteria as all_criteria
from compressor.studies import papers

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group
SECTIONS = {section.partition("\n")[0]: section for section in command_line().split("## compress ")[1:]}


def test_every_command_has_a_section_in_the_order_of_help() -> None:
    assert list(SECTIONS) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_one_row(name: str) -> None:
    rows = [re.findall(r"`([^`]+)`", row.split(" | ")[0]) for row in re.findall(r"^\| `.*$", SECTIONS[name], re.M)]
    listed = [word.split()[0] for row in rows for word in row]
    declared = [n for p in COMMANDS[name].params for n in (*p.opts, *p.secondary_opts)]
    assert sorted(listed) == sorted(n if n.startswith("-") else n.upper() for n in declared)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_flag_without_an_opposite_is_off_by_default(name: str) -> None:
    """Typer 0.20 turns one that is on by default off where it is given."""
    assert not [p.name for p in COMMANDS[name].params if getattr(p, "is_flag", False) and p.default is True
                and not p.secondary_opts]  # fmt: skip


def test_panels_values_and_defaults_are_shown() -> None:
    def command(
        model: Annotated[str, typer.Argument(help="The network.")],
        ratio: Annotated[float, typer.Option(help="A *share*.", rich_help_panel="Budget: one")] = 0.5,
        seed: Annotated[int, typer.Option(help="A seed.")] = 0,
        names: Annotated[list[str] | None, typer.Option("--name", help="a|b")] = None,
        go: Annotated[bool, typer.Option("--go/--stay", help="Go on.")] = False,
    ) -> None:
        del model, ratio, seed, names, go

    one = typer.Typer(add_completion=False)
    one.command("cut")(command)
    parameters = [p for p in typer.main.get_command(one).params if p.name != "help"]
    head = "| option | default | meaning |\n| --- | --- | --- |\n"
    plain, budget = panels("cut", command, parameters)
    assert plain == (
        head + "| `MODEL` (required) |  | The network. |\n| `--seed N` | `0` | A seed. |\n"
        "| `--name TEXT` (repeatable) |  | a\\|b |\n| `--go`, `--stay` | `--stay` | Go on. |"
    )
    assert budget == "### `cut`: budget: one\n\n" + head + "| `--ratio NUMBER` | `0.5` | A \\*share\\*. |"
    assert usage("cut", parameters) == "compress cut MODEL [OPTIONS]"


def test_code_stays_code_in_a_cell() -> None:
    assert escaped("give `*.json`\nor a_b <X> [y]") == r"give `*.json` or a\_b \<X> \[y\]"


def test_every_public_name_has_its_call_and_its_docstring() -> None:
    sections = re.split(r"^## ", public_names(), flags=re.M)[1:]
    assert [section.partition("\n")[0] for section in sections] == list(compressor.__all__)
    for name, section in zip(compressor.__all__, sections, strict=True):
        first = (inspect.getdoc(getattr(compressor, name)) or "").partition("\n")[0]
        assert len(first) > 10
        assert first in section


def test_a_call_is_written_as_in_the_code() -> None:
    def short(a: int, *, how: Scope = Scope.AUTO) -> str: ...

    assert signature("short", short) == "short(a: int, *, how: Scope = Scope.AUTO) -> str"
    assert signature("a_name_of_sixty_letters_" * 3, short).splitlines()[1:] == [
        "    a: int,",
        "    *,",
        "    how: Scope = Scope.AUTO,",
        ") -> str",
    ]
    assert next(iter(members(Scope))) == ("`Scope.AUTO`", "`auto`")


@pytest.mark.parametrize(("listed", "names"), [(criteria, all_criteria), (runtimes, all_runtimes), (studies, papers)])
def test_every_plug_in_has_one_row(listed: Any, names: Any) -> None:
    assert re.findall(r"^\| `([^`]+)`", listed(), re.M) == list(names.names())
