"""Groups of options: one frozen value in a command, one option each on the command line."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
import typer

from compressor.cli.groups import Panel, changed, flat
from compressor.cli.main import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group of commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Two options."""

    panel: ClassVar[Panel] = Panel.CHANNELS
    width: Annotated[int, typer.Option("--width", help="Width.")] = 8
    skip_names: Annotated[list[str] | None, typer.Option(help="Names.", rich_help_panel=Panel.DATA)] = None


def test_a_command_gets_its_groups_as_values() -> None:
    def command(sizes: Sizes, name: str = "a") -> None:
        calls.append((sizes, name))

    calls: list[tuple[Sizes, str]] = []
    run = flat(command)
    run(width=3, skip_names=["b"], name="c")
    assert calls == [(Sizes(width=3, skip_names=["b"]), "c")]
    parameters = inspect.signature(run).parameters
    assert list(parameters) == ["width", "skip_names", "name"]
    panels = [p.annotation.__metadata__[0].rich_help_panel for p in list(parameters.values())[:2]]
    assert panels == [Panel.CHANNELS, Panel.DATA]


def test_what_is_given_differs_from_its_default() -> None:
    assert changed(Sizes()) == {"--width": False, "--skip-names": False}
    assert changed(Sizes(width=9, skip_names=[])) == {"--width": True, "--skip-names": False}
    assert changed(Sizes(skip_names=["a"]), "--skip-names") == {"--skip-names": True}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_listed_in_one_of_the_panels(name: str) -> None:
    command = COMMANDS[name]
    context = typer.Context(command)
    options = [p for p in command.get_params(context) if p.param_type_name == "option"]
    assert "--help" in {o for p in options for o in p.opts}
    assert {p.name: p.rich_help_panel for p in options if p.rich_help_panel not in set(Panel)} == {}


def test_every_command_has_its_place_in_the_order_of_the_work() -> None:
    from compressor.cli.main import ORDER

    assert list(COMMANDS) == [name.replace("_", "-") for name in ORDER]
