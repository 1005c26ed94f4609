"""Options that several commands share, and what several do with them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.printing import console as console  # what every command takes from here
from compressor.cli.printing import print_json as print_json
from compressor.cli.printing import status as status
from compressor.cli.printing import strong as strong
from compressor.cli.printing import talk as talk

if TYPE_CHECKING:
    from compressor.checkpoint.artifacts import Artifact
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.data.splits import Data


class ExitCode(IntEnum):
    """What a command's exit status says."""

    DONE = 0
    REFUSED = 1  # the input or the model
    USAGE = 2
    GATE_MISSED = 3  # one that the user set: --min-speedup, --max-drop
    INTERRUPTED = 130
    PIPE_CLOSED = 141  # by who read stdout: nothing to be told
    TERMINATED = 143


ModelArgument = Annotated[Path, typer.Argument(help="A checkpoint, or an artifact's folder.", show_default=False)]
ArtifactArgument = Annotated[
    Path | None, typer.Argument(help="An artifact's folder; the newest in this folder by default.", show_default=False)
]
ArchOption = Annotated[
    str | None,
    typer.Option(
        "--arch", help="How the module is built: torchvision:NAME, timm:NAME, file.py:Net, package.module:make."
    ),
]
ArchArgOption = Annotated[
    list[str] | None, typer.Option("--arch-arg", help="An argument for --arch, as k=v; repeat for more.")
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="An input as [NAME=]SHAPE[:TYPE][<BOUND]: 1x3x224x224, 'ids=1x12:int64<30522'; repeat for several.",
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-pickle", help="Load a pickle that can run code. Only for files that you made.")
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="Image folder, .npz, IDX folder, file.py:function, or a torchvision data set's name."),
]
DataRootOption = Annotated[Path | None, typer.Option("--data-root", help="Where a torchvision data set lies.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch the torchvision data set if it is not there.")]
DenseOption = Annotated[Path | None, typer.Option("--dense", help="The dense network, if it has moved.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Where to write; a folder.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an artifact that is there already.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and no tables.")]
MeanOption = Annotated[
    str | None, typer.Option("--mean", help="The mean of each channel, if the model does not know: 0.5,0.5,0.5.")
]
StdOption = Annotated[str | None, typer.Option("--std", help="The deviation of each channel, likewise.")]
SeedOption = Annotated[int, typer.Option("--seed", help="What every random choice is drawn from.", min=0)]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to compute with.")]


def command_line() -> str:
    """The command that is running, as a user would type it."""
    from compressor.environment import as_typed

    return as_typed(["compress", *sys.argv[1:]])


def refuse_silent(options: Mapping[str, bool], *, because: str, hint: str) -> None:
    """Refuses the options that were given, and would do nothing `because` of what else was."""
    from compressor.errors import PlanError

    for option in (option for option, given in options.items() if given):
        raise PlanError(f"`{option}` says nothing {because}", hint=hint)


def load_model(
    model: Path,
    *,
    arch: str | None,
    arch_args: Sequence[str] | None,
    inputs: Sequence[str] | None,
    trust_pickle: bool,
    mean: str | None = None,
    std: str | None = None,
    opened: bool = False,
) -> Checkpoint:
    """The checkpoint or artifact at `model`, normalising its inputs as it says, or by `mean` and `std`.

    An artifact that was `opened` already has had its caveats said.
    """
    from dataclasses import replace

    from compressor.checkpoint.architectures import architecture_arguments
    from compressor.checkpoint.artifacts import open_artifact
    from compressor.checkpoint.loading import load
    from compressor.data.splits import with_normalisation

    if arch is None:
        refuse_silent(
            {"--arch-arg": bool(arch_args)},
            because="without `--arch`",
            hint="name what takes the argument: `--arch net.py:Net`",
        )
    if model.is_dir():
        _refuse_beside_artifact(arch_args)
    checkpoint = load(
        model,
        arch=arch,
        arch_arguments=architecture_arguments(arch_args or ()),
        inputs=tuple(inputs or ()),
        trust_pickle=trust_pickle,
    )
    if model.is_dir() and not opened:
        say_caveats(open_artifact(model))
    return replace(checkpoint, preprocessing=with_normalisation(checkpoint.preprocessing, mean, std))


def checkpoint_in(
    artifact: Artifact,
    *,
    arch: str | None,
    arch_args: Sequence[str] | None,
    inputs: Sequence[str] | None,
    trust_pickle: bool,
) -> Checkpoint:
    """The artifact's network; `arch` says that the user trusts the code that it is built by."""
    return load_model(
        artifact.folder, arch=arch, arch_args=arch_args, inputs=inputs, trust_pickle=trust_pickle, opened=True
    )


def _refuse_beside_artifact(arch_args: Sequence[str] | None) -> None:
    refuse_silent(
        {"--arch-arg": bool(arch_args)}, because="to an artifact, which knows how it is built", hint="leave it out"
    )


def open_default(path: Path | None) -> Artifact:
    """The artifact at `path`, or the newest one in the working folder, with a word on which."""
    from compressor.checkpoint.artifacts import open_artifact

    artifact = open_artifact(path)
    if artifact.taken_by_default:
        talk().print(f"taking the newest artifact here: {artifact.folder}", style="dim")
    say_caveats(artifact)
    return artifact


def say_caveats(artifact: Artifact) -> None:
    """Say what is less sure of this artifact than of others."""
    for caveat in artifact.caveats:
        talk().print(f"caveat: {caveat}", soft_wrap=True)


def load_data_option(
    data: str | None, *, root: Path | None, download: bool, seed: int, checkpoint: Checkpoint
) -> Data | None:
    """The data that `--data` names, or what ships with a sample model; `None` where there is neither."""
    from compressor.data.sources import data_for
    from compressor.errors import DataError

    if data is None:
        refuse_silent(
            {"--data-root": root is not None, "--download": download},
            because="without `--data`",
            hint="name the data set: `--data MNIST`",
        )

    try:
        found = data_for(checkpoint, data, root=root, download=download, seed=seed)
    except DataError:
        if data is not None:
            raise
        return None
    if data is None:
        talk().print(f"data: {found.name}, the sample that ships with the sample models", style="dim")
    say_repeated(found)
    return found


def say_repeated(data: Data) -> None:
    """Say how many images were left out of a split because another one holds them too."""
    if data.repeated:
        talk().print(
            f"caveat: images of {data.name} that lie in two splits were left out of the one that is trained or chosen "
            f"on: {data.repeated:,}",
            soft_wrap=True,
        )


def batch_sizes(text: str) -> tuple[int, ...]:
    """What `--batch` says, `1,64`, as numbers; a usage error where it is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"batch sizes are positive numbers, as in `1,64`: {text}", param_hint="--batch")
    return tuple(map(int, parts))


def share(pair: Sequence[float]) -> str:
    """`[dense, small]` as what stays, in per cent."""
    return f"{pair[1] / pair[0]:.1%}"


def short(number: float) -> str:
    """A count with its SI prefix: 31.4 M."""
    for size, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{prefix}"
    return f"{number:g}"


def rows_of(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value pairs for a two-column table."""
    return [(name, str(value)) for name, value in mapping.items()]
