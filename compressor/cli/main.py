"""`compress`: finds the commands in this folder, and turns errors into messages and exit codes.

A command is a file here with a function `command`; its docstring is the help text. Command files import torch only
inside that function, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import compressor.cli
from compressor.cli.groups import Panel, flat
from compressor.cli.options import ExitCode, command_line, talk
from compressor.cli.printing import take_any_text, writing_stdout
from compressor.errors import CompressError, OutputError, UntrustedPickle
from compressor.files.leftovers import sweep, sweep_temp
from compressor.stopping import Terminated, end_at_once, stop_when_asked, was_asked

NOT_COMMANDS = {"main", "options", "printing", "result_tables", "groups", "loading"}
ORDER = (
    "inspect", "sensitivity", "prune", "frontier", "factorize", "retrain", "adapt", "exits", "export", "quantize",
    "bench", "measure_table", "evaluate", "report", "study", "demo",
)  # fmt: skip

app = typer.Typer(
    name="compress",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug must look like one
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_error(error: CompressError) -> ExitCode:
    """Print the error with its hint, and return the exit code; print nothing on a pipe that has no reader any more."""
    if isinstance(error, OutputError) and error.closed:
        return ExitCode.PIPE_CLOSED
    err = talk()
    err.print("error: ", end="", style="bold red")
    err.print(str(error), soft_wrap=True)
    if isinstance(error, UntrustedPickle):
        for name in error.classes:
            err.print(f"  {name}", soft_wrap=True)
    if error.hint:
        err.print("\nhint: ", end="", style="bold")
        err.print(error.hint, soft_wrap=True)
    return ExitCode.REFUSED


LARGEST = 2**31 - 1  # of any count, seed or size that an option takes
LONGEST_NAME = 255


def check_values(values: Mapping[str, object]) -> None:
    """Refuses what no option can mean, whichever it is: NaN, infinity, numbers beyond 32 bits, names no disk holds."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            problem = f"{value} is no finite number"
        elif isinstance(value, int) and abs(value) > LARGEST:
            problem = f"{value} is too large: at most {LARGEST:,}"
        elif isinstance(value, Path) and any(len(os.fsencode(part)) > LONGEST_NAME for part in value.parts):
            problem = f"{value.name[:40]}… is too long a name for a file: at most {LONGEST_NAME} bytes"
        else:
            continue
        raise typer.BadParameter(problem, param_hint=f"--{name.replace('_', '-')}")


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with our errors as messages on stderr, and an exit code for each kind of end."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            check_values(kwargs)
            sweep(Path.cwd())
            sweep_temp()
            command(*args, **kwargs)
        except KeyboardInterrupt as stop:
            raise _ended(terminated=isinstance(stop, Terminated)) from None
        except typer.Exit:
            raise
        except Exception as error:
            if was_asked():  # an import that swallowed it, and left half a module
                raise _ended(terminated=True) from None
            if isinstance(error, CompressError):
                raise typer.Exit(print_error(error)) from error
            raise

    return run


def _ended(*, terminated: bool) -> typer.Exit:
    what = "terminated" if terminated else "interrupted"
    talk().print(
        f"\n{what}: nothing was left half written; go on with the same command: {command_line()}",
        soft_wrap=True,
    )
    return typer.Exit(ExitCode.TERMINATED if terminated else ExitCode.INTERRUPTED)


def commands() -> dict[str, Callable[..., None]]:
    """Every command by its name, in the order of the work, with a parameter for each of its options."""
    names = [m.name for m in pkgutil.iter_modules(compressor.cli.__path__) if m.name not in NOT_COMMANDS]
    names.sort(key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    return {n.replace("_", "-"): flat(importlib.import_module(f"compressor.cli.{n}").command) for n in names}


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as version_of

        with writing_stdout():
            sys.stdout.write(f"compress {version_of('compress')}\n")
            sys.stdout.flush()
        raise typer.Exit(ExitCode.DONE)


@app.callback()
def compress(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Make a trained PyTorch network smaller and really faster, with proof.

    Start with `compress demo`, or: `compress prune model.pt --ratio 0.5`
    """


class _Command(TyperCommand):
    """A command whose `--help` is listed with what is printed, and not in a panel of its own."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = Panel.OUTPUT  # what typer looks for
        return option


for _name, _command in commands().items():
    app.command(_name, cls=_Command)(guarded(_command))


def main() -> None:
    """The console script."""
    take_any_text()
    stop_when_asked()
    try:
        with writing_stdout(only_full=True):
            app()
    except OutputError as error:  # of the help and the version; a command prints its own
        sys.exit(print_error(error))
    finally:
        end_at_once()


if __name__ == "__main__":
    main()
