"""What `compress exits` does, for library users too: branches, a threshold, a timed file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe
from compressor.data.samples import Samples
from compressor.data.splits import Data, SplitName
from compressor.environment import environment
from compressor.errors import ArtifactError
from compressor.export.onnx import export_onnx
from compressor.files.atomic import save_tensors, whole
from compressor.files.json_files import write_json
from compressor.files.leftovers import temporary
from compressor.measuring.image_stream import timed_on_images
from compressor.measuring.turns import caveats_of, speedup
from compressor.planning.costs import count
from compressor.progress import Say, quiet
from compressor.results.exits import EarlyExitResults, ExitAccuracy, ExitLatency, ExitSplits
from compressor.training.exits.branches import Certainty, EarlyExits, macs_of_exits, train_exits, with_exits
from compressor.training.exits.onnx import export_exits
from compressor.training.exits.threshold import alike, answers, at_threshold, exit_taken, threshold_for
from compressor.training.loop import Callback

RESULTS, ONNX, WEIGHTS = "results.json", "model.onnx", "exits.safetensors"
TIMED_IMAGES = 50  # resolves a share of exits to 2 %


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRequest:
    """The requested layers, the training of the branches, and the allowed loss."""

    after: tuple[str, ...]
    recipe: Recipe
    max_drop: float = 0.5  # points, on the tuning split
    kind: Certainty = Certainty.ENTROPY
    joint: bool = False
    threads: int = 1
    seconds: float = 20.0
    blocks: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenExits:
    """Trained exits with their threshold, the exit of each tuning image, and the accuracy on each split."""

    exits: EarlyExits
    threshold: float
    macs: tuple[int, ...]  # spent at each exit
    taken: Tensor  # [tuning images]
    tune: ExitAccuracy
    test: ExitAccuracy


def chosen_exits(
    checkpoint: Checkpoint,
    request: ExitRequest,
    data: Data,
    *,
    callbacks: tuple[Callback, ...] = (),
    say: Say = quiet,
) -> ChosenExits:
    """Return branches for `request`, trained, with the threshold from the tuning split; the test split is read once.

    Refused: what `with_exits`, `train_exits` and `threshold_for` refuse.
    """
    tune, test = data.split(SplitName.TUNE), data.split(SplitName.TEST)
    say("looking at the layers")
    exits = with_exits(checkpoint.module, request.after, checkpoint.example_inputs, seed=request.recipe.seed)
    say("training the branches")
    seen: dict[str, Any] = {"preprocessing": checkpoint.preprocessing}
    trained = train_exits(exits, data, recipe=request.recipe, joint=request.joint, callbacks=callbacks, **seen).module
    assert isinstance(trained, EarlyExits)
    macs = macs_of_exits(trained, checkpoint.example_inputs)
    say("choosing the threshold")
    tuned = answers(trained, tune, split=str(SplitName.TUNE), kind=request.kind, **seen)
    threshold = threshold_for(tuned, max_drop=request.max_drop, macs=macs)
    judged = answers(trained, test, split=str(SplitName.TEST), kind=request.kind, **seen)
    accuracies = [at_threshold(one, threshold, after=trained.after, macs=macs) for one in (tuned, judged)]
    return ChosenExits(
        exits=trained, threshold=threshold, macs=macs, taken=exit_taken(tuned.certain, threshold), tune=accuracies[0],
        test=accuracies[1],
    )  # fmt: skip


def early_exits(
    checkpoint: Checkpoint,
    request: ExitRequest,
    data: Data,
    folder: Path,
    *,
    callbacks: tuple[Callback, ...] = (),
    say: Say = quiet,
    command: str = "",
) -> EarlyExitResults:
    """Choose early exits, and write the ONNX file with its results.

    `folder` gets `model.onnx`, the weights of network and branches, and `results.json`, which is returned: the accuracy
    on the tuning split and, read once, on the test split, the share of images at each exit, and the latency of the
    dense network and of the file in turns on tuning images, of which the same share leaves at each exit as of all.
    Refused: what `chosen_exits` and `export_exits` refuse, a folder with other content.
    """
    if folder.exists() and not (folder / RESULTS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(
            f"{folder} is in the way: it holds something else", hint="choose another place: `--out DIR`"
        )
    dense = count(checkpoint.module, checkpoint.example_inputs)
    chosen = chosen_exits(checkpoint, request, data, callbacks=callbacks, say=say)
    say("exporting, and comparing in onnxruntime")
    file = folder / ONNX
    parity = export_exits(chosen.exits, checkpoint, file, threshold=chosen.threshold, kind=request.kind)
    with whole(folder / WEIGHTS) as part:
        save_tensors({k: v.detach().cpu().contiguous().clone() for k, v in chosen.exits.state_dict().items()}, part)
    say("timing")
    results = EarlyExitResults(
        name=checkpoint.name,
        after=tuple(chosen.exits.after),
        certainty=str(request.kind),
        joint=request.joint,
        max_drop=request.max_drop,
        recipe=request.recipe.to_json(),
        data=data.to_json(),
        params=(dense.params, sum(p.numel() for p in chosen.exits.parameters())),
        macs=(dense.macs, *chosen.macs),
        splits=ExitSplits(tune=chosen.tune, test=chosen.test),
        export=parity,
        latency=latency(checkpoint, file, chosen.taken, data.split(SplitName.TUNE), request),
        environment=environment(),
        command=command,
    )
    write_json(folder / RESULTS, results.to_json())
    return results


def latency(checkpoint: Checkpoint, file: Path, taken: Tensor, tune: Samples, request: ExitRequest) -> ExitLatency:
    """Return the latency of the dense network and the file in turns, per image on average, on representative images."""
    chosen = alike(taken, TIMED_IMAGES, seed=request.recipe.seed)
    images = inputs_of(checkpoint, tune, chosen)
    with temporary("exits") as scratch:
        dense = Path(scratch) / "dense.onnx"
        export_onnx(checkpoint, dense)
        measured = timed_on_images(
            {"dense": dense, "early exit": file}, images, threads=request.threads, seconds=request.seconds,
            blocks=request.blocks, seed=request.recipe.seed,
        )  # fmt: skip
    ratio = speedup(measured["dense"], measured["early exit"])
    return ExitLatency(
        runtime="onnxruntime-cpu",
        threads=request.threads,
        images=len(images),
        dense_ms=measured["dense"].median_ms / len(images),
        early_ms=measured["early exit"].median_ms / len(images),
        speedup=ratio,
        blocks=len(measured["dense"].samples_ns),
        caveats=tuple(str(c) for c in caveats_of(tuple(measured.values()), null=None, where="onnxruntime-cpu")),
        samples_ns={name: [list(block) for block in m.samples_ns] for name, m in measured.items()},
    )


def inputs_of(checkpoint: Checkpoint, images: Samples, indices: Sequence[int]) -> list[Tensor]:
    """Return the images at `indices` as the network's inputs `[1, channels, h, w]`."""
    return [checkpoint.preprocessing(images[i][0].unsqueeze(0)) for i in indices]
