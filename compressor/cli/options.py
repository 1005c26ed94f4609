"""Options that several commands share, what is printed in several ways, and the exit codes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from compressor.cli.groups import Panel
from compressor.cli.printing import console as console  # what every command takes from here
from compressor.cli.printing import print_json as print_json
from compressor.cli.printing import status as status
from compressor.cli.printing import strong as strong
from compressor.cli.printing import talk as talk


class ExitCode(IntEnum):
    """What a command's exit status says."""

    DONE = 0
    REFUSED = 1  # the input or the model
    USAGE = 2
    GATE_MISSED = 3  # one that the user set: --min-speedup, --max-drop
    INTERRUPTED = 130
    PIPE_CLOSED = 141  # the reader of stdout went away: print nothing
    TERMINATED = 143


ModelArgument = Annotated[
    Path,
    typer.Argument(help="A checkpoint, or the folder of a Hugging Face model or an artifact.", show_default=False),
]
ArtifactArgument = Annotated[
    Path | None,
    typer.Argument(help="The folder of an artifact; by default the newest one in this folder.", show_default=False),
]
NetworkArgument = Annotated[
    Path | None,
    typer.Argument(help="The folder of an artifact or a checkpoint; by default the newest artifact in this folder."),
]
ProtectOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Layers that keep all their channels, as a glob: 'layer1.*'; repeat for more.",
        rich_help_panel=Panel.CHANNELS,
    ),
]
CalibrationOption = Annotated[
    int, typer.Option(help="Number of images to compute statistics on; labels are not needed.", min=1)
]
AlignOption = Annotated[
    str, typer.Option(help="Widths are multiples of this number; by default of 8, and of less in narrow layers.")
]
LrOption = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Images per step.", min=1)]
DeviceOption = Annotated[str, typer.Option(help="Device to train on: auto, cpu or cuda.", rich_help_panel=Panel.RUN)]
DenseOption = Annotated[
    Path | None,
    typer.Option("--dense", help="The dense network, if its file has moved.", rich_help_panel=Panel.NETWORK),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Load a pickle that can run code. Only for files that you made.",
        rich_help_panel=Panel.NETWORK,
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Seed of every random choice.", min=0, rich_help_panel=Panel.RUN)
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads to compute with.", rich_help_panel=Panel.RUN)
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder to write to.", rich_help_panel=Panel.OUTPUT)]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON to stdout, and no tables.", rich_help_panel=Panel.OUTPUT)
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would happen, and write nothing.", rich_help_panel=Panel.OUTPUT)
]
DataRootOption = Annotated[
    Path | None, typer.Option("--data-root", help="Folder in which the torchvision data set lies.")
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Download the torchvision data set if it is not there.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """How a checkpoint becomes a network."""

    panel: ClassVar[Panel] = Panel.NETWORK
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch", help="How the module is built: torchvision:NAME, timm:NAME, file.py:Net, package.module:make."
        ),
    ] = None
    arch_arg: Annotated[
        list[str] | None, typer.Option("--arch-arg", help="An argument for --arch, as k=v; repeat for more.")
    ] = None
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="An input as [NAME=]SHAPE[:TYPE][<BOUND]: 1x3x224x224, 'ids=1x12:int64<30522'; repeat for several.",
        ),
    ] = None
    key: Annotated[
        str | None,
        typer.Option("--key", help="Where the weights lie in the file, if it has several: params_ema, model.student."),
    ] = None
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            help="The outputs that matter, by name or number: logits; repeat for several. The others may change."
        ),
    ] = None
    trust_pickle: TrustOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """The data, where it lies, and what it is for."""

    panel: ClassVar[Panel] = Panel.DATA
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A folder of images (with masks or boxes, if any) or sounds, an .npz, .safetensors, .csv or .txt, "
            "file.py:function, or the name of a torchvision data set.",
        ),
    ] = None
    data_root: DataRootOption = None
    download: DownloadOption = False
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="What the network is for, where its outputs and the targets do not show it: classification, "
            "multi-label, segmentation, detection, regression, restoration, token-classification, "
            "language-modelling, or file.py:function, which returns a Task.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRunOptions:
    """Where a training runs."""

    panel: ClassVar[Panel] = Panel.RUN
    device: DeviceOption = "auto"
    threads: ThreadsOption = None
    seed: SeedOption = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalisationOptions:
    """How pixels are normalised, where the model does not know."""

    panel: ClassVar[Panel] = Panel.DATA
    mean: Annotated[
        str | None, typer.Option("--mean", help="Mean of each channel, if the model does not know it: 0.5,0.5,0.5.")
    ] = None
    std: Annotated[
        str | None,
        typer.Option("--std", help="Standard deviation of each channel, if the model does not know it: 0.5,0.5,0.5."),
    ] = None


ONNXRUNTIME = "onnxruntime-cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockOptions:
    """The runtime, the batch and the threads of a latency."""

    panel: ClassVar[Panel] = Panel.LATENCY
    on: Annotated[
        str, typer.Option("--on", help="Runtime to measure the latency on: onnxruntime-cpu, torch-eager.")
    ] = ONNXRUNTIME
    batch: Annotated[int, typer.Option("--batch", help="Batch size of the latency.", min=1)] = 1
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads to compute with.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Where an artifact goes, and what is printed."""

    panel: ClassVar[Panel] = Panel.OUTPUT
    out: OutOption = None
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that exists already.")] = False
    as_json: JsonOption = False


def command_line() -> str:
    """The command that is running, as a user would type it."""
    from compressor.environment import as_typed

    return as_typed(["compress", *sys.argv[1:]])


def refuse_silent(options: Mapping[str, bool], *, because: str, hint: str) -> None:
    """Refuses the options that are set and have no effect: `because` completes the sentence."""
    from compressor.errors import PlanError

    for option in (option for option, is_set in options.items() if is_set):
        raise PlanError(f"`{option}` has no effect {because}", hint=hint)


def batch_sizes(text: str) -> tuple[int, ...]:
    """The numbers of `--batch 1,64`; a usage error where a part is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"batch sizes are positive numbers, as in `1,64`: {text}", param_hint="--batch")
    return tuple(map(int, parts))
