"""Latency as the budget: `python -m benchmarks.speed [--part speedups|accuracy] [--only NAME,...]`.

`speedups`: the sample models and four of torchvision's with random weights, each asked to be 1.5, 2 and 3 times as
fast on onnxruntime-cpu with two threads, at batches of 1 and 16, by l1-norm and without images: what the table
predicted at first, what was measured in the end, and how long that took. `accuracy`: at equal measured latency (batch
1, one thread), without labels, test accuracy of the tool's own way, of uniform pruning and of torch-pruning's global
magnitude (`round_to` none and 8), over draws of the calibration images. One JSON file a cell in `benchmarks/speed/`;
what is there is not run again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import nn

from benchmarks.provenance import provenance
from benchmarks.repair import SAMPLES
from benchmarks.tables import accuracy
from compressor import load, load_data
from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.splits import Data, SplitName
from compressor.errors import PlanError
from compressor.export.onnx import export_onnx
from compressor.jobs.coverage import checkpoint_of as random_checkpoint
from compressor.jobs.requests import PruneOptions, request_from
from compressor.measuring.pairs import timed_in_turns
from compressor.measuring.quality import evaluate
from compressor.measuring.turns import speedup
from compressor.pruning.repair.repairing import calibration_batches, renormed
from compressor.pruning.request import Request
from compressor.pruning.speed.planner import Cache, Goal
from compressor.pruning.speed.search import Fast, prune_to_speed
from compressor.surgery.plan import LatencyBudget

FOLDER = Path(__file__).parent / "speed"
SAMPLE_NAMES = ("resnet20", "vgg11", "mobilenet_v2")
TORCHVISION = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0")
ASKED = (1.5, 2.0, 3.0)
BATCHES = (1, 16)
DRAWS = 3
RUNTIME = "onnxruntime-cpu"


def checkpoint_of(name: str) -> Checkpoint:
    """A sample model, or one of torchvision's with live random weights."""
    if name.startswith("sample-"):
        return load(SAMPLES / f"fashion_{name.removeprefix('sample-')}.pt")
    return random_checkpoint(Architecture(ref=f"torchvision:{name}"), ())


def speedup_cell(name: str, asked: float, batch: int, threads: int) -> dict[str, Any]:
    """One network asked to be so much faster."""
    checkpoint = checkpoint_of(name)
    request = request_from(PruneOptions(speedup=asked))
    assert isinstance(request, Request)
    goal = Goal(budget=LatencyBudget(speedup=asked), runtime=RUNTIME, batch=batch, threads=threads)
    said: list[tuple[float, str]] = []
    started = time.perf_counter()
    try:
        fast = prune_to_speed(checkpoint, request, goal, say=lambda s: said.append((time.perf_counter() - started, s)))
    except PlanError as error:
        return {"refused": str(error), "hint": error.hint, "seconds": time.perf_counter() - started}
    solved = next(t for t, s in said if s.startswith("shrinking"))
    tried = next(t for t, s in said if "trial 1" in s)
    return {
        **fast.result.to_json(),
        "seconds": time.perf_counter() - started,
        "seconds_to_plan": solved,
        "seconds_to_table": tried,
        "cached": any("known from before" in s for _, s in said),
        "params": [fast.pruned.dense_cost.params, fast.pruned.small_cost.params],
        "macs": [fast.pruned.dense_cost.macs, fast.pruned.small_cost.macs],
    }


def ours(**options: Any) -> Callable[..., Fast]:
    """An arm of the tool's own."""

    def arm(checkpoint: Checkpoint, data: Data, asked: float, draw: int, threads: int, cache: Cache) -> Fast:
        by_ratio = options.get("by_ratio", False)
        given = {k: v for k, v in options.items() if k != "by_ratio"}
        goal = Goal(
            budget=LatencyBudget(speedup=asked), runtime=RUNTIME, threads=threads, by_ratio=by_ratio, tolerance=0.03
        )
        tried = []
        # with widths in steps of 8 the same ratio everywhere has few plans: finer ones, where none is fast enough
        for align in ("auto", "4", "1") if given.get("scope") == "uniform" else ("auto",):
            request = request_from(PruneOptions(speedup=asked, seed=draw, align=align, **given), has_data=True)
            assert isinstance(request, Request)
            tried.append(prune_to_speed(checkpoint, request, goal, data=data, cache=cache))
            if tried[-1].met:
                break
        return min(tried, key=lambda fast: abs((fast.measured.ratio if fast.measured else 0) / asked - 1))

    return arm


ARMS: dict[str, Callable[..., Fast]] = {
    "measured + least-squares": ours(),
    "l1-norm, uniform + batch-norm": ours(criterion="l1-norm", scope="uniform", repair="batch-norm"),
    "l1-norm, uniform + least-squares": ours(criterion="l1-norm", scope="uniform", repair="least-squares"),
    "obs, uniform + least-squares": ours(scope="uniform", repair="least-squares"),
}
THEIRS = {"torch-pruning, global + BN": None, "torch-pruning, global, round_to 8 + BN": 8}


def their_module(checkpoint: Checkpoint, ratio: float, round_to: int | None) -> nn.Module:
    """torch-pruning's global magnitude at a ratio, as its examples call it."""
    module = copy.deepcopy(checkpoint.module).requires_grad_(True)
    last = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
    pruner = torch_pruning.pruner.MetaPruner(
        module, checkpoint.example_inputs[0], importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio, global_pruning=True, ignored_layers=[last], round_to=round_to,
    )  # fmt: skip
    pruner.step()
    return module.eval()


def theirs(
    checkpoint: Checkpoint, asked: float, round_to: int | None, threads: int
) -> tuple[nn.Module, dict[str, Any]]:
    """The ratio at which it measures as fast as asked, by bisection on the clock."""
    low, high = 0.0, 0.98
    best: tuple[float, nn.Module, dict[str, Any]] | None = None
    with tempfile.TemporaryDirectory() as scratch:
        dense = Path(scratch) / "dense.onnx"
        export_onnx(checkpoint, dense)
        for number in range(9):
            ratio = (low + high) / 2
            module = their_module(checkpoint, ratio, round_to)
            file = Path(scratch) / f"{number}.onnx"
            export_onnx(dataclasses.replace(checkpoint, module=module), file)
            pair = timed_in_turns(
                dense, file, checkpoint.example_inputs, runtime=RUNTIME, batch=1, threads=threads, seconds=6.0
            )
            found = speedup(*pair)
            off = abs(found.ratio / asked - 1)
            if best is None or off < best[0]:
                best = off, module, {"speedup": found.to_json(), "ratio": ratio}
            if off < 0.015:
                break
            low, high = (ratio, high) if found.ratio < asked else (low, ratio)
    assert best is not None
    return best[1], best[2]


def accuracy_cells(name: str, asked: float, threads: int, wanted: tuple[str, ...]) -> None:
    """These arms, with all draws, of one sample model at one speed."""
    checkpoint, data = checkpoint_of(name), load_data(str(SAMPLES / "fashion_sample.npz"))
    test, tune = data.split(SplitName.TEST), data.split(SplitName.TUNE)
    seen = checkpoint.preprocessing

    def judged(module: nn.Module) -> dict[str, Any]:
        return {
            "tune": evaluate(module, tune, split="tune", preprocessing=seen).to_json(),
            "test": evaluate(module, test, split="test", preprocessing=seen).to_json(),
        }

    with tempfile.TemporaryDirectory() as scratch:
        caches: dict[int, Cache] = {}
        for draw in range(DRAWS):
            for arm, run in ((a, r) for a, r in ARMS.items() if a in wanted):
                path = _path(f"accuracy-{name}-{asked:g}-{arm}-{draw}")
                if path.exists():
                    continue
                here = caches.setdefault(draw, Cache(folder=Path(scratch)))
                here = dataclasses.replace(here, curves={}) if "measured" not in arm else here
                fast = run(checkpoint, data, asked, draw, threads, here)
                found = {k: v for k, v in fast.result.to_json().items() if k != "rows"}
                row = {"part": "accuracy", "model": name, "asked": asked, "arm": arm, "draw": draw, **found}
                widths = {layer.layer: layer.outputs for layer in fast.pruned.small_layers}
                _write(path, row | judged(fast.pruned.checkpoint.module) | {"widths": widths})
    for arm, round_to in ((a, r) for a, r in THEIRS.items() if a in wanted):
        paths = [_path(f"accuracy-{name}-{asked:g}-{arm}-{draw}") for draw in range(DRAWS)]
        if all(path.exists() for path in paths):
            continue
        module, measured = theirs(checkpoint, asked, round_to, threads)
        for draw, path in enumerate(paths):
            images = calibration_batches(data.split(SplitName.TRAIN), 512, preprocessing=seen, seed=draw)
            row = {"part": "accuracy", "model": name, "asked": asked, "arm": arm, "draw": draw, **measured}
            _write(path, row | judged(renormed(copy.deepcopy(module), images).eval()))


def _path(name: str) -> Path:
    return FOLDER / f"{name.replace(' + ', '+').replace(', ', '-').replace(' ', '-')}.json"


def _write(path: Path, row: dict[str, Any]) -> None:
    path.write_text(json.dumps(row | {"provenance": provenance()}, indent=1) + "\n")
    found = (row.get("speedup") or {}).get("ratio")
    test = row.get("test")
    print(path.stem, row.get("refused") or f"{found:.3f}", "" if test is None else f"{test['correct']}", flush=True)


def results(part: str) -> list[dict[str, Any]]:
    """The raw results of a part."""
    found = [json.loads(p.read_text()) for p in sorted(FOLDER.glob("*.json"))]
    return [row for row in found if row["part"] == part]


def speedup_table() -> str:
    """What was asked and what was measured, as Markdown."""
    lines = [
        "| model | batch | asked | measured | MACs ratio | table off at first | trials |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = results("speedups")
    for r in sorted(rows, key=lambda r: (r["model"], r["batch"], r["asked"])):
        if "refused" in r:
            lines.append(f"| {r['model']} | {r['batch']} | {r['asked']:g}× | refused: {r['refused']} | | | |")
            continue
        s = r["speedup"]
        measured = f"{s['ratio']:.2f}× ({s['low']:.2f} to {s['high']:.2f})"
        lines.append(
            f"| {r['model']} | {r['batch']} | {r['asked']:g}× | {measured} | "
            f"{r['macs'][0] / r['macs'][1]:.2f} | {r['table_error']:.1%} | {len(r['trials'])} |"
        )
    return "\n".join(lines) + "\n"


def speedup_summary() -> str:
    """How often it was met, and how well tables predict, in a sentence."""
    rows = results("speedups")
    met = [r for r in rows if "refused" in r or abs(r["speedup"]["ratio"] / r["asked"] - 1) <= 0.05]
    refused = [r for r in rows if "refused" in r]
    errors = [r["table_error"] for r in rows if "refused" not in r]
    if not errors:
        return ""
    return (
        f"{len(met) - len(refused)} of {len(rows)} lie within 5 % of what was asked, {len(refused)} were refused as "
        f"out of reach; tables were {statistics.median(errors):.1%} off in the median before any correction, at most "
        f"{max(errors):.1%}.\n"
    )


def accuracy_table() -> str:
    """Test accuracy at equal measured latency, as Markdown."""
    rows = results("accuracy")
    columns = sorted({(r["model"], r["asked"]) for r in rows})
    titles = [f"{model.removeprefix('sample-')} {asked:g}×" for model, asked in columns]
    lines = [
        f"| arm | {' | '.join(titles)} |",
        "| --- |" + " --- |" * len(columns),
    ]
    for arm in [*ARMS, *THEIRS]:
        cells = []
        for model, asked in columns:
            mine = [r for r in rows if (r["model"], r["asked"], r["arm"]) == (model, asked, arm)]
            clock = statistics.median([r["speedup"]["ratio"] for r in mine]) if mine else 0
            cells.append(f"{accuracy([r['test'] for r in mine])} at {clock:.2f}×" if mine else "–")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speedups", "accuracy"), default="speedups")
    parser.add_argument("--only", help="Models, separated by commas: sample-resnet20, resnet50, …")
    parser.add_argument("--asked", help="Speed-ups, separated by commas.")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--arms", help="Arms of `accuracy`, separated by semicolons.")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    samples = tuple(f"sample-{name}" for name in SAMPLE_NAMES)
    models = samples if arguments.part == "accuracy" else (*samples, *TORCHVISION)
    if arguments.only:
        models = tuple(m for m in models if m in arguments.only.split(","))
    wanted = tuple(arguments.arms.split(";")) if arguments.arms else (*ARMS, *THEIRS)
    asked = tuple(map(float, arguments.asked.split(","))) if arguments.asked else None
    FOLDER.mkdir(exist_ok=True)
    if arguments.part == "accuracy":
        for name in models:
            for one in asked or ASKED[1:]:
                accuracy_cells(name, one, arguments.threads or 1, wanted)
    else:
        torch.set_num_threads(arguments.threads or 2)
        for name in models:
            for batch in map(int, arguments.batches.split(",")):
                for one in asked or ASKED:
                    path = _path(f"speedups-{name}-batch-{batch}-{one:g}")
                    if not path.exists():
                        row = speedup_cell(name, one, batch, arguments.threads or 2)
                        _write(path, {"part": "speedups", "model": name, "batch": batch, "asked": one, **row})
    text = f"# Latency as the budget\n\n{__doc__}\n\n{speedup_summary()}\n{speedup_table()}\n{accuracy_table()}"
    (FOLDER / "README.md").write_text(text)


if __name__ == "__main__":
    main()
