"""Accuracy before any retraining: `python -m benchmarks.repair [--cifar DIR] [--only NAME] [--draws 0,1,2]`.

No gradient step on labels anywhere. The sample models (Fashion-MNIST) at 2 and 3 times fewer MACs, and with `--cifar`
the CIFAR-10 ResNet-20 at 2 times and ResNet-56 at 1.5, 2 and 3 times (`benchmarks/cifar.py` says what the folder
holds). Three draws of calibration images from the training split, 512 for the sample models and 1,024 for CIFAR-10,
labels not looked at; the whole test set, read once per cell. Arms:

    torch-pruning         the best of its criteria (l1, l2, bn-scale, FPGM, LAMP; uniform and global), chosen on the
                          tuning split after batch-norm re-estimation, with its own pruner
    torch-pruning + BN    the same, batch norms re-estimated on the same images
    ARM, uniform + REPAIR our own uniform plans by l1-norm, obs or random channels, repaired as it says
    measured + REPAIR     channels by obs, widths by measurement

Widths are multiples of 8 for the sample models (the tool's default), of 2 for CIFAR-10's ResNets, whose first stage has
16 channels (2 did better than 4 on the tuning split); torch-pruning's are as it leaves them. One JSON file per cell; a
cell that has one is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import nn

from benchmarks import cifar
from benchmarks.provenance import provenance
from benchmarks.tables import accuracy
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.data.preprocessing import Preprocessing
from compressor.data.sources import load_data
from compressor.data.splits import Data, SplitName
from compressor.planning.calibration import calibration_batches
from compressor.planning.costs import count
from compressor.pruning.pipeline import prune
from compressor.pruning.repair.repairing import Repair, renormed
from compressor.pruning.request import Request
from compressor.surgery.plan import CostBudget, Countable, Scope
from compressor.training.loop import correct_in

FOLDER = Path(__file__).parent / "repair"
SAMPLES = Path(__file__).parent.parent / "sample_models"
IMAGES = {"fashion": 512, "cifar": 1024}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its data, how many times fewer MACs, and what its widths are rounded to."""

    name: str
    speedups: tuple[float, ...]
    align: int
    images: int
    load: Callable[[], tuple[Checkpoint, Data]]


def sample_case(name: str) -> Case:
    def both() -> tuple[Checkpoint, Data]:
        return load(SAMPLES / f"fashion_{name}.pt"), load_data(str(SAMPLES / "fashion_sample.npz"))

    return Case(name, (2.0, 3.0), 8, IMAGES["fashion"], both)


def cifar_case(name: str, speedups: tuple[float, ...], folder: Path) -> Case:
    def both() -> tuple[Checkpoint, Data]:
        file = next((folder / "checkpoints").glob(f"{name}-*.th"))
        network = load(file, arch=f"benchmarks.cifar:{name}", inputs=("1x3x32x32",))
        seen = Preprocessing(mean=cifar.MEAN, std=cifar.STD, size=(32, 32), channels=3)
        return dataclasses.replace(network, preprocessing=seen), cifar.cifar10(folder)

    return Case(f"cifar-{name}", speedups, 2, IMAGES["cifar"], both)


Result = tuple[nn.Module, dict[str, Any]]


def ours(case: Case, criterion: str, scope: Scope, how: Repair) -> Callable[..., Result]:
    def arm(checkpoint: Checkpoint, data: Data, speedup: float, draw: int) -> Result:
        request = Request(
            budget=CostBudget(counted=Countable.MACS, stays=1 / speedup), criterion=criterion, scope=scope,
            align=case.align, seed=draw, images=case.images, repair=how,
        )  # fmt: skip
        pruned = prune(checkpoint, request, data=data)
        found = {} if pruned.repair_result is None else pruned.repair_result.to_json()
        widths = {layer.layer: layer.outputs for layer in pruned.small_layers}
        emptied = [root for level in pruned.levels for root in level.emptied]
        said = {k: found.get(k) for k in ("rise", "kept", "distilled", "images")}
        return pruned.checkpoint.module, {**said, "widths": widths, "emptied": emptied}

    return arm


IMPORTANCES: dict[str, Callable[[], Any]] = {
    "l1": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "bn-scale": torch_pruning.importance.BNScaleImportance,
    "fpgm": torch_pruning.importance.FPGMImportance,
    "lamp": torch_pruning.importance.LAMPImportance,
}


def theirs(case: Case, *, norms: bool) -> Callable[..., Result]:
    def arm(checkpoint: Checkpoint, data: Data, speedup: float, draw: int) -> Result:
        images = calibration_batches(
            data.split(SplitName.TRAIN), case.images, preprocessing=checkpoint.preprocessing, seed=draw
        )
        tune = data.split(SplitName.TUNE)
        best: tuple[int, str, nn.Module] | None = None
        for name in IMPORTANCES:
            for scope in ("uniform", "global"):
                small = torch_pruned(checkpoint, name, speedup, everywhere=scope == "global")
                judged = renormed(small, images)
                correct = correct_in(judged.eval(), tune, preprocessing=checkpoint.preprocessing)
                if best is None or correct > best[0]:
                    best = (correct, f"{name}, {scope}", judged if norms else small)
        assert best is not None
        return best[2], {"best": best[1]}

    return arm


def torch_pruned(checkpoint: Checkpoint, importance: str, speedup: float, *, everywhere: bool) -> nn.Module:
    """torch-pruning's own result at the ratio where its MACs come closest to the budget from below."""
    import copy

    dense = count(checkpoint.module, checkpoint.example_inputs).macs
    low, high, best = 0.0, 0.95, None
    for _ in range(12):
        ratio = (low + high) / 2
        module = copy.deepcopy(checkpoint.module).requires_grad_(True)
        last = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
        pruner = torch_pruning.pruner.MetaPruner(
            module, checkpoint.example_inputs[0], importance=IMPORTANCES[importance](), pruning_ratio=ratio,
            global_pruning=everywhere, ignored_layers=[last],
        )  # fmt: skip
        pruner.step()
        module.eval()
        if count(module, checkpoint.example_inputs).macs > dense / speedup:
            low = ratio
        else:
            high, best = ratio, module
    assert best is not None
    return best


def arms_of(case: Case) -> dict[str, Callable[..., Result]]:
    return {
        "torch-pruning": theirs(case, norms=False),
        "torch-pruning + BN": theirs(case, norms=True),
        "l1-norm, uniform + none": ours(case, "l1-norm", Scope.UNIFORM, Repair.NONE),
        "l1-norm, uniform + mean": ours(case, "l1-norm", Scope.UNIFORM, Repair.MEAN),
        "l1-norm, uniform + batch-norm": ours(case, "l1-norm", Scope.UNIFORM, Repair.BATCH_NORM),
        "l1-norm, uniform + least-squares": ours(case, "l1-norm", Scope.UNIFORM, Repair.LEAST_SQUARES),
        "random, uniform + least-squares": ours(case, "random", Scope.UNIFORM, Repair.LEAST_SQUARES),
        "obs, uniform + least-squares": ours(case, "obs", Scope.UNIFORM, Repair.LEAST_SQUARES),
        "measured + least-squares": ours(case, "obs", Scope.MEASURED, Repair.LEAST_SQUARES),
        "measured + distill": ours(case, "obs", Scope.MEASURED, Repair.DISTILL),
    }


def cell(case: Case, speedup: float, arm: str, draw: int) -> dict[str, Any]:
    checkpoint, data = case.load()
    test = data.split(SplitName.TEST)
    started = time.perf_counter()
    module, said = arms_of(case)[arm](checkpoint, data, speedup, draw)
    spent = time.perf_counter() - started
    dense = count(checkpoint.module, checkpoint.example_inputs)
    small = count(module, checkpoint.example_inputs)
    return {
        "model": case.name,
        "speedup": speedup,
        "arm": arm,
        "draw": draw,
        "align": case.align,
        "images": case.images,
        "macs": [dense.macs, small.macs],
        "params": [dense.params, small.params],
        "dense_correct": correct_in(checkpoint.module, test, preprocessing=checkpoint.preprocessing),
        "correct": correct_in(module.eval(), test, preprocessing=checkpoint.preprocessing),
        "total": len(test),
        "wall_s": spent,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **said,
        "provenance": provenance(),
    }


def table() -> str:
    """Mean ± standard deviation over draws of the test accuracy in per cent, one row per arm, as Markdown."""
    found: dict[tuple[str, float], dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        row = json.loads(path.read_text())
        if "arm" in row and "speedup" in row:
            found.setdefault((row["model"], row["speedup"]), {}).setdefault(row["arm"], []).append(row)
    columns = sorted(found)
    lines = [
        "| arm | " + " | ".join(f"{model} {speedup:g}×" for model, speedup in columns) + " |",
        "| --- |" + " --- |" * len(columns),
        "| dense | " + " | ".join(_dense(found[c]) for c in columns) + " |",
    ]
    order = list(arms_of(sample_case("resnet20")))
    lines += [f"| {arm} | " + " | ".join(accuracy(found[c].get(arm, [])) for c in columns) + " |" for arm in order]
    return "\n".join(lines) + "\n"


def _dense(arms: dict[str, list[dict[str, Any]]]) -> str:
    row = next(iter(arms.values()))[0]
    return f"{100 * row['dense_correct'] / row['total']:.2f}"


def main() -> None:
    """Run the cells that have no result yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="A folder with CIFAR-10 and the ResNets trained on it.")
    parser.add_argument("--only", help="Names of cases, with commas between them.")
    parser.add_argument("--arms", help="Names of arms, with semicolons between them.")
    parser.add_argument("--speedups", help="How many times fewer MACs, with commas between them.")
    parser.add_argument("--draws", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    FOLDER.mkdir(exist_ok=True)
    cases = [sample_case(name) for name in ("resnet20", "vgg11", "mobilenet_v2")]
    if arguments.cifar:
        cases += [cifar_case("resnet20", (2.0,), arguments.cifar)]
        cases += [cifar_case("resnet56", (1.5, 2.0, 3.0), arguments.cifar)]
    speedups = [float(s) for s in arguments.speedups.split(",")] if arguments.speedups else None
    for draw in map(int, arguments.draws.split(",")):
        for case in cases:
            if arguments.only and case.name not in arguments.only.split(","):
                continue
            for speedup in case.speedups:
                for arm in arms_of(case):
                    path = FOLDER / f"{case.name}-{speedup:g}-{arm.replace(', ', '-').replace(' + ', '+')}-{draw}.json"
                    wanted = not arguments.arms or arm in arguments.arms.split(";")
                    if path.exists() or not wanted or (speedups and speedup not in speedups):
                        continue
                    result = cell(case, speedup, arm, draw)
                    path.write_text(json.dumps(result, indent=1) + "\n")
                    print(path.stem, result["correct"] / result["total"], round(result["wall_s"]), flush=True)
    (FOLDER / "README.md").write_text(f"# Repair\n\n{__doc__}\n\n{table()}")


if __name__ == "__main__":
    main()
