"""Let easy images leave a network early, and measure what that saves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compressor.cli.options import (
    ArchArgOption,
    ArchOption,
    DataOption,
    DataRootOption,
    DownloadOption,
    InputOption,
    JsonOption,
    MeanOption,
    ModelArgument,
    OutOption,
    SeedOption,
    StdOption,
    TrustOption,
    command_line,
    console,
    load_data_option,
    load_model,
    print_json,
    share,
    short,
    status,
    strong,
    talk,
)
from compressor.files.names import file_name_from


def command(
    model: ModelArgument,
    after: Annotated[str, typer.Option(help="The layers to leave after, with commas between them.")],
    max_drop: Annotated[
        float, typer.Option(help="The most points of accuracy to lose, on the tuning split.", min=0)
    ] = 0.5,
    epochs: Annotated[int, typer.Option(help="How long the branches train.", min=1)] = 2,
    certainty: Annotated[str, typer.Option(help="How sure is judged: entropy or probability.")] = "entropy",
    joint: Annotated[
        bool, typer.Option("--joint", help="Train the network as well; it is frozen otherwise, and stays as good.")
    ] = False,
    lr: Annotated[float, typer.Option("--lr", help="The peak learning rate.")] = 0.05,
    batch_size: Annotated[int, typer.Option(help="Images per step.", min=1)] = 128,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads that the clock gives each network.")] = 1,
    blocks: Annotated[int | None, typer.Option(help="Rounds on the clock; as many as fit by default.", min=8)] = None,
    data: DataOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    mean: MeanOption = None,
    std: StdOption = None,
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_shape: InputOption = None,
    trust_pickle: TrustOption = False,
    out: OutOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train branches after some layers, let images leave where they are certain, and time it: one ONNX file.

    Example: `compress exits model.pt --after layer2,layer3 --max-drop 0.5 --data images/ --epochs 2`
    """
    from compressor.checkpoint.recipes import Recipe, Schedule, Step
    from compressor.errors import DataError, PlanError, named
    from compressor.jobs.exits import ExitRequest, early_exits
    from compressor.training.exits.branches import Certainty

    request = ExitRequest(
        after=tuple(name.strip() for name in after.split(",") if name.strip()),
        recipe=Recipe(budget=Step(epochs=epochs), schedule=Schedule(rate=lr), batch_size=batch_size, seed=seed),
        max_drop=max_drop,
        kind=named(Certainty, certainty, one="certainty", many="certainties", refusal=PlanError),
        joint=joint,
        threads=threads,
        blocks=blocks,
    )
    with status("loading") as say:
        checkpoint = load_model(
            model, arch=arch, arch_args=arch_arg, inputs=input_shape, trust_pickle=trust_pickle, mean=mean, std=std
        )
        found = load_data_option(data, root=data_root, download=download, seed=seed, checkpoint=checkpoint)
        if found is None:
            raise DataError("branches are trained and judged on labelled images", hint="give them: `--data DIR`")
        folder = out or Path(f"{file_name_from(checkpoint.name)}.exits")
        results = early_exits(checkpoint, request, found, folder, say=say, command=command_line())
    if as_json:
        print_json(results)
        return
    show(results)
    after = ": model.onnx, exits.safetensors and results.json"
    console().print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)


def show(results: dict[str, Any]) -> None:
    """Who leaves where and how right they are, and the two latencies, on stdout."""
    from rich.table import Table

    out = console()
    test = results["splits"]["test"]
    table = Table(box=None, pad_edge=False)
    for name in ("leaving after", "share", "right of these", "right of all", "MACs"):
        table.add_column(name, justify="left" if name == "leaving after" else "right", no_wrap=True)
    total = test["accuracy"]["total"]
    for e in test["exits"]:
        right = share((e["leaving"], e["correct"])) if e["leaving"] else "–"
        everyone = share((total, e["correct_of_all"]))
        table.add_row(e["after"] or "the end", f"{e['share']:.1%}", right, everyone, short(e["macs"]))
    out.print(table)
    out.print()
    for name, split in results["splits"].items():
        early, full = split["accuracy"], split["full"]
        out.print(
            f"{name}: {early['correct']}/{early['total']} correct ({share((early['total'], early['correct']))}), "
            f"whole network {full['correct']} ({share((full['total'], full['correct']))})",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    out.print(f"MACs in the mean: {short(test['mean_macs'])} of {short(results['macs'][0])}", markup=False)
    clock = results["latency"]
    s = clock["speedup"]
    out.print(
        f"latency on {clock['runtime']}, batch 1, threads: {clock['threads']}: dense {clock['dense_ms']:.3g} ms, "
        f"early exit {clock['early_ms']:.3g} ms in the mean, "
        f"speed-up {s['ratio']:.2f} ({s['low']:.2f} to {s['high']:.2f})",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for caveat in clock["caveats"]:
        talk().print(caveat, style="yellow", markup=False, soft_wrap=True)
