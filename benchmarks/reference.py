"""The generated parts of docs/reference: of the command line, of the plug-ins, of the library's public names.

`python -m benchmarks.readme` writes them, as it writes every table. They come from what Typer builds its help from,
not from the text that it prints, so that they are the same at every width and with every version of it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer

from compressor.cli.main import app

VALUES: dict[type, str] = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


def escaped(text: str) -> str:
    """Help as a cell of a table: on one line, with the signs that Markdown would read outside of backticks escaped."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"([*_<|\[\]])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [part.replace("|", r"\|") for part in parts[1::2]]
    return "`".join(parts)


def value_of(hint: Any) -> str:
    """What stands behind an option whose annotation is `hint`: `N`, `TEXT`, …; nothing behind a flag."""
    kind = get_args(hint)[0]
    if get_origin(kind) in (Union, UnionType):
        kind = next(k for k in get_args(kind) if k is not NoneType)
    if get_origin(kind) in (list, tuple):
        kind = get_args(kind)[0]
    return "" if kind is bool else VALUES.get(kind, "TEXT")


def default_of(default: Any) -> str:
    """The default as a user would type it; nothing where leaving the option out means something of its own."""
    if default is None or default is False or default is inspect.Parameter.empty or default == []:
        return ""
    return f"`{default.value if isinstance(default, Enum) else default}`"


def row(parameter: Any, *, hint: Any, default: Any) -> str:
    """One option or argument, as a row of a table."""
    is_argument = not parameter.opts[0].startswith("-")
    names = [n.upper() for n in parameter.opts] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    value = "" if is_argument else value_of(hint)
    shown = ", ".join(f"`{name} {value}`" if value else f"`{name}`" for name in names)
    shown += " (required)" if parameter.required else " (repeatable)" if getattr(parameter, "multiple", False) else ""
    return f"| {shown} | {default_of(default)} | {escaped(parameter.help or '')} |"


def panels(name: str, callback: Callable[..., None], parameters: list[Any]) -> Iterator[str]:
    """A table for each help panel of a command, under its heading; those without a panel come first."""
    hints = get_type_hints(callback, include_extras=True)
    defaults = {n: p.default for n, p in inspect.signature(callback).parameters.items()}
    listed: dict[str, list[str]] = {"": []}
    for parameter in parameters:
        if not getattr(parameter, "hidden", False):
            of_panel = listed.setdefault(str(parameter.rich_help_panel or ""), [])
            of_panel.append(row(parameter, hint=hints[parameter.name], default=defaults[parameter.name]))
    for panel, rows in listed.items():
        if rows:
            head = f"### `{name}`: {panel[0].lower()}{panel[1:]}\n\n" if panel else ""
            yield "\n".join([head + "| option | default | meaning |", "| --- | --- | --- |", *rows])


def usage(name: str, parameters: list[Any]) -> str:
    """`compress NAME ARGUMENTS [OPTIONS]`."""
    arguments = [p for p in parameters if not p.opts[0].startswith("-")]
    words = [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments]
    return " ".join(["compress", name, *words, "[OPTIONS]"])


def summaries(callback: Callable[..., None]) -> Iterator[str]:
    """The paragraphs of the help; the examples as a block of shell."""
    for paragraph in inspect.cleandoc(callback.__doc__ or "").split("\n\n"):
        if paragraph.startswith("Example"):
            yield "```bash\n" + "\n".join(re.findall(r"`(compress [^`]+)`", " ".join(paragraph.split()))) + "\n```"
        else:
            yield paragraph


def command_line() -> str:
    """Every command with its arguments and options, in the order of the work."""
    group: Any = typer.main.get_command(app)
    parts: list[str] = []
    for info in app.registered_commands:
        name, callback = str(info.name), info.callback
        assert callback is not None
        parameters = group.commands[name].params
        parts += [f"## compress {name}", f"```text\n{usage(name, parameters)}\n```"]
        parts += [*summaries(callback), *panels(name, callback, parameters)]
    return "\n\n".join(parts)
