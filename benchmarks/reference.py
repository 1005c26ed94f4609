"""The generated parts of docs/reference: of the command line, of the plug-ins, of the library's public names.

`python -m benchmarks.readme` writes them, as it writes every table. They come from what Typer builds its help from,
not from the text that it prints, so that they are the same at every width and with every version of it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import FunctionType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer

import compressor
from compressor.cli.main import app
from compressor.measuring import runtimes as measuring_runtimes
from compressor.planning import criteria as planning_criteria
from compressor.results.artifact import Results
from compressor.results.quality import Accuracy, Agreement, Quality
from compressor.results.records import Record
from compressor.studies import papers

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


def default_of(default: Any, parameter: Any) -> str:
    """The default as a user would type it; nothing where leaving the option out means something of its own."""
    if isinstance(default, bool) and parameter.secondary_opts:
        return f"`{(parameter.opts if default else parameter.secondary_opts)[0]}`"
    if isinstance(default, bool):
        return "on" if default else ""
    if default is None or default is inspect.Parameter.empty or default == []:
        return ""
    return f"`{default.value if isinstance(default, Enum) else default}`"


def row(parameter: Any, *, hint: Any, default: Any) -> str:
    """One option or argument, as a row of a table."""
    is_argument = not parameter.opts[0].startswith("-")
    names = [n.upper() for n in parameter.opts] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    value = "" if is_argument else value_of(hint)
    shown = ", ".join(f"`{name} {value}`" if value else f"`{name}`" for name in names)
    shown += " (required)" if parameter.required else " (repeatable)" if getattr(parameter, "multiple", False) else ""
    return f"| {shown} | {default_of(default, parameter)} | {escaped(parameter.help or '')} |"


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
        if paragraph.startswith("- `compress "):
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


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def criteria() -> str:
    """Every criterion with the first line of its file."""
    loaded = [planning_criteria.load(name) for name in planning_criteria.names()]
    rows = [(f"`{c.name}`", escaped(c.help), c.needs, "yes" if c.comparable else "no") for c in loaded]
    return table(("criterion", "judges a channel by", "needs", "comparable across groups"), rows)


def runtimes() -> str:
    """Every runtime with the first line of its file."""
    loaded = [measuring_runtimes.load(name) for name in measuring_runtimes.names()]
    rows = [
        (f"`{r.name}`", escaped(r.help), str(r.reads), "yes" if r.profile else "no", escaped(str(r.memory)))
        for r in loaded
    ]
    return table(("runtime", "what it is", "reads", "profiles operators", "peak memory"), rows)


def studies() -> str:
    """Every study with the first line of its file."""
    rows = [(f"`{name}`", escaped(papers.help_of(name))) for name in papers.names()]
    return table(("study", "what is run again"), rows)


def argument(parameter: inspect.Parameter) -> str:
    """`name: type = default`, as it stands in the code."""
    default = parameter.default
    if isinstance(default, Enum):
        default = f"{type(default).__name__}.{default.name}"
    elif callable(default):
        default = getattr(default, "__name__", "…")
    else:
        default = repr(default)
    kind = "" if parameter.annotation is inspect.Parameter.empty else f": {parameter.annotation}"
    given = "" if parameter.default is inspect.Parameter.empty else f" = {default}"
    return f"{parameter.name}{kind}{given}"


def signature(name: str, value: Any) -> str:
    """The call of a public function or class with its types, a line for each argument where one is too short."""
    of = inspect.signature(value)
    words: list[str] = []
    for parameter in of.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(argument(parameter))
    result = "" if isinstance(value, type) else f" -> {of.return_annotation}"
    line = f"{name}({', '.join(words)}){result}"
    return line if len(line) <= 100 else "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){result}"])


def members(value: Any) -> Iterator[tuple[str, str]]:
    """An enum's members with their values; else the public methods and properties with their first lines."""
    if issubclass(value, Enum):
        yield from ((f"`{value.__name__}.{member.name}`", f"`{member.value}`") for member in value)
        return
    for name, member in vars(value).items():
        if not name.startswith("_") and isinstance(member, (property, FunctionType, classmethod, staticmethod)):
            shown = name if isinstance(member, property) else f"{name}()"
            yield f"`{shown}`", escaped((inspect.getdoc(member) or "").partition("\n")[0])


def described(name: str) -> Iterator[str]:
    """A public name: where it is, how it is called, its docstring, its members."""
    value = getattr(compressor, name)
    yield f"## {name}"
    is_class = isinstance(value, type)
    if not (is_class and issubclass(value, Enum)):
        yield f"```python\n{signature(name, value)}\n```"
    yield inspect.getdoc(value) or ""
    rows = list(members(value)) if is_class else []
    if rows:
        yield table(("member", ""), rows)
    yield f"In `{value.__module__}`."


KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}


def kind_of(hint: Any) -> str:
    """What JSON has where a field of a record is annotated with `hint`."""
    inner = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(kind_of(one) for one in inner)
    if get_origin(hint) is tuple:
        return f"list of {kind_of(inner[0])}" if inner[-1] is Ellipsis else f"[{', '.join(map(kind_of, inner))}]"
    if hint is Quality:
        return " or ".join(kind_of(one) for one in (Accuracy, Agreement))
    if isinstance(hint, type) and issubclass(hint, Record):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return KINDS.get(hint, "object")


def fields_of(kind: type[Record]) -> Iterator[tuple[str, str, str]]:
    """Each key with what it holds, and whether it is left out of the file where there is nothing to say."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name != "rest":
            spare = "yes" if field.name in kind.SPARE else ""
            yield f"`{kind.KEYS.get(field.name, field.name)}`", kind_of(hints[field.name]), spare
    for name in kind.DERIVED:
        yield f"`{name}`", "follows from the others", ""


def records_below(kind: type[Record], seen: dict[type[Record], None]) -> None:
    """Every record that `kind` leads to, each once, in the order of the file."""
    if kind in seen:
        return
    seen[kind] = None
    for hint in get_type_hints(kind).values():
        for one in (hint, *get_args(hint), *(b for a in get_args(hint) for b in get_args(a))):
            if one is Quality:
                records_below(Accuracy, seen)
                records_below(Agreement, seen)
            elif isinstance(one, type) and issubclass(one, Record):
                records_below(one, seen)


def results_file() -> str:
    """Every object of `results.json`: its keys, and what they hold."""
    seen: dict[type[Record], None] = {}
    records_below(Results, seen)
    parts = []
    for kind in seen:
        parts += [
            f"## {kind.__name__}",
            inspect.getdoc(kind) or "",
            table(("key", "holds", "left out where there is nothing"), fields_of(kind)),
        ]
    return "\n\n".join(parts)


def public_names() -> str:
    """Every name of `compressor.__all__`, in the order of the work."""
    return "\n\n".join(part for name in compressor.__all__ for part in described(name))
