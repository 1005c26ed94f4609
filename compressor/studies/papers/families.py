"""Five ways to compress, on one network, one page and one clock: pruning, distilling, int8, design, leaving early.

**Claim:** Masked weights of 70 to 95 % sparsity bring no speed-up on a dense runtime (Wen et al. 2016,
arXiv:1608.03665, Fig. 1: 0.2 to 1.4 times with sparse kernels on AlexNet), and channels that are gone do. A teacher
helps a small network (Hinton et al. 2015, arXiv:1503.02531). Int8 after training loses next to nothing. Half the MACs
by low rank cost at most a point (Jaderberg et al. 2014, arXiv:1405.3866), depthwise-separable layers one or two
(Howard et al. 2017, arXiv:1704.04861), and easy images may leave early (Teerapittayanon et al. 2016,
arXiv:1709.01686).

**Command:** `compress study families --scale small --jobs 2`

**Expected:** at `small`, three seeds, ResNet-20 of 93.77 %, one thread, batch 1: masked 0.7 to 0.95, 1.00 times the
speed; half the MACs in channels 1.25 times at 92.5 % (92.9 with a teacher); int8 2.1 times at 93.7; spatial SVD 1.6
at 93.1, channel SVD 1.2 at 92.6; separable layers 4.2 at 83.6; early exits 1.6 at 93.5 and 2.5 at 92.6; channels, a
teacher and int8 together 2.2 at 92.9. Three claims reproduced, two contradicted, three inconclusive.

**Cost:** 22 minutes of one core at `small` (the processor's time, on a shared machine; the clock on a quiet one).

All arms start from one dense network: the shipped ResNet-20, which is well trained, and long enough on the clock
(0.6 ms) to be told from a session's overhead; one trained here would be neither within the budget. Seeds are those of
retraining. Every arm that is trained is trained for the same epochs on the same images by the fine-tuning schedule;
separable layers, which begin far from the network, at its full rate. The branches of early exits train alone. What is
chosen (thresholds, ranges, ranks) never sees the test split.

Latencies are of the first seed's files: all in turns on onnxruntime's CPU provider, one thread, batch 1, each call a
pass over tuning images of which as large a share leaves early as of all; a ratio's interval is the sign test's over the
rounds. MACs are those that a dense runtime executes: masking changes none; of early exits they are the mean of the test
images. Bytes are of the ONNX file; `stored` is the smaller file with sparse weights, where there is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.checkpoint.recipes import How, Recipe, Schedule, Step
from compressor.checkpoint.sparse import onnx_sparse
from compressor.data.batches import batches
from compressor.data.samples import first
from compressor.data.splits import Data, SplitName
from compressor.export.int8 import Int8, quantize_onnx
from compressor.export.onnx import export_onnx
from compressor.files.leftovers import temporary
from compressor.graph.copies import copy_of
from compressor.jobs.exits import ExitRequest, chosen_exits
from compressor.measuring.image_stream import timed_on_images
from compressor.measuring.onnx_network import load_onnx
from compressor.measuring.quality import evaluate_onnx
from compressor.measuring.turns import Measurement, caveats_of, speedup
from compressor.planning.costs import count
from compressor.planning.ranks import RankBudget
from compressor.pruning.low_rank import LowRank, factorize
from compressor.pruning.pipeline import prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.studies.interval import LEVEL, Interval, mean_interval, paired_difference
from compressor.studies.smaller import reduced
from compressor.studies.study import (
    Cell,
    Claim,
    Finding,
    Plot,
    PlotLine,
    PlotPoint,
    Scale,
    StudyResults,
    Value,
    Verdict,
    Workspace,
)
from compressor.studies.subjects import percent_correct, subject
from compressor.surgery.factors import Kind
from compressor.surgery.masks import apply_mask_, magnitude
from compressor.surgery.plan import CostBudget, Countable, Scope
from compressor.training.exits.onnx import export_exits
from compressor.training.exits.threshold import alike
from compressor.training.retraining import retrain
from compressor.training.ways import Wishes, recipe_for

TITLE = "Five families of compression"
NAME = "families"

DENSE, AGAIN, CLOCK = "dense", "dense again", "clock"
FILE, TAKEN = "file", "taken"  # a cell's tensors: the bytes of its ONNX file, and the exits of tuning images
STRUCTURED, DISTILLED = "structured", "distilled"
INT8, ALL_THREE = "int8", "distilled int8"
SPATIAL, CHANNEL, SEPARABLE = "spatial svd", "channel svd", "separable"
LOW_RANK = {SPATIAL: Kind.SPATIAL, CHANNEL: Kind.CHANNEL}
HALF = 0.5  # of the MACs stay
RATE, FULL_RATE, BRANCH_RATE = 0.02, 0.1, 0.05
CALIBRATION, CALIBRATION_BATCH = 512, 32
LEAST = 1.05  # the smallest ratio that counts as a speed-up
MASKED, EARLY = "masked {:g}", "early exit {:g}"  # sparsity; largest drop in points on the tuning split


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The values of a scale; 0 images stand for all."""

    network: str
    after: str
    epochs: int
    seeds: int
    sparsities: tuple[float, ...] = (0.7, 0.9, 0.95)
    drops: tuple[float, ...] = (0.1, 1.0)
    images: int = 0
    tune: int = 0
    test: int = 0
    rounds: int = 20
    timed_images: int = 50

    def values(self) -> dict[str, Value]:
        """Return the values that all cells share."""
        return {
            "network": self.network, "images": self.images, "tune": self.tune, "test": self.test, "epochs": self.epochs,
        }  # fmt: skip


SIZES = {
    Scale.SMOKE: Size(
        network="sample_models.networks:small_cnn", after="3", epochs=1, seeds=2, images=200, tune=100, test=200,
        sparsities=(0.9,), drops=(90.0,), rounds=8, timed_images=4,
    ),
    Scale.SMALL: Size(
        network="fashion_resnet20.pt", after="stages.0.0,stages.1.0", epochs=2, seeds=3, images=7000
    ),
    Scale.PAPER: Size(
        network="fashion_resnet20.pt", after="stages.0.0,stages.1.0", epochs=30, seeds=5, rounds=30, timed_images=100
    ),
}  # fmt: skip


def cells(scale: Scale) -> Sequence[Cell]:
    """Return the dense network's cell, every arm with every seed, and a cell that times the first seed's files."""
    size = SIZES[scale]
    dense = Cell(study=NAME, arm=DENSE, seed=0, values={**size.values(), "files": True})
    arms = [cell for seed in range(size.seeds) for cell in _arms(size, dense, seed)]
    timed = (dense, *(cell for cell in arms if cell.seed == 0))
    clock = {**size.values(), "rounds": size.rounds, "timed_images": size.timed_images, "threads": 1}
    return [dense, *arms, Cell(study=NAME, arm=CLOCK, seed=0, values=clock, needs=timed)]


def _arms(size: Size, dense: Cell, seed: int) -> list[Cell]:
    """Return one seed's cells; only the first seed's cells write files to time, or cells that another arm quantises."""

    def arm(name: str, *, of: Cell = dense, **values: Value) -> Cell:
        content = {**size.values(), "files": seed == 0, **values}
        return Cell(study=NAME, arm=name, seed=seed, values=content, needs=(of,))

    taught = arm(DISTILLED, stays=HALF, rate=RATE, temperature=4.0, files=True)
    return [
        *(arm(MASKED.format(s), sparsity=s, rate=RATE) for s in size.sparsities),
        arm(STRUCTURED, stays=HALF, rate=RATE),
        taught,
        arm(INT8, ranges=CALIBRATION),
        arm(SPATIAL, stays=HALF, rate=RATE),
        arm(CHANNEL, stays=HALF, rate=RATE),
        arm(SEPARABLE, rank=1, rate=FULL_RATE),
        *(arm(EARLY.format(d), after=size.after, max_drop=d, rate=BRANCH_RATE) for d in size.drops),
        arm(ALL_THREE, of=taught, ranges=CALIBRATION),
    ]


def run(cell: Cell, workspace: Workspace) -> Mapping[str, Any]:
    """One arm: its accuracy on the test split, its size and its MACs; or the clock, its ratios."""
    sizes: Any = {name: cell.values[value] for name, value in (("train", "images"), ("tune", "tune"), ("test", "test"))}
    data = reduced(workspace.data, **sizes)
    with temporary("families") as scratch:
        file = Path(scratch) / "model.onnx"
        if cell.arm == CLOCK:
            return _on_the_clock(cell, data, workspace, Path(scratch))
        if cell.arm in (INT8, ALL_THREE):
            return _in_integers(cell, data, workspace, file)
        dense = _dense(cell, data, workspace)
        if "max_drop" in cell.values:
            return _leaving_early(cell, dense, data, workspace, file)
        network = dense if cell.arm == DENSE else _trained(cell, dense, data, workspace)
        row = {**_cost(network), "accuracy": percent_correct(network, data, SplitName.TEST)}
        if cell.values["files"]:
            export_onnx(network, file)
            workspace.keep({**network.module.state_dict(), FILE: _tensor_of(file)})
            row |= {"bytes": file.stat().st_size}
        if "sparsity" in cell.values:
            row |= {"nonzero": sum(int((p != 0).sum()) for p in network.module.parameters())}
            if file.exists():
                onnx_sparse(file, file.with_suffix(".sparse"))
                row |= {"stored": file.with_suffix(".sparse").stat().st_size}
        return row


def _dense(cell: Cell, data: Data, workspace: Workspace) -> Checkpoint:
    """Return the network that all arms start from: a shipped one, or one that its cell trains as long as the arms."""
    name = str(cell.values["network"])
    if name.endswith(".pt"):
        import sample_models

        return load(Path(str(sample_models.__file__)).parent / name)
    recipe = Recipe(budget=Step(epochs=int(cell.values["epochs"] or 0)), schedule=Schedule(rate=FULL_RATE))
    if cell.arm == DENSE:
        return retrain(subject(name, data=data), data, recipe=recipe, device="auto", state_file=workspace.state_file)
    state = workspace.state_of(cell.needs[0])
    return subject(name, data=data, state={k: v for k, v in state.items() if k != FILE}, training=recipe)


def _trained(cell: Cell, dense: Checkpoint, data: Data, workspace: Workspace) -> Checkpoint:
    """Compress the dense network by the cell's arm, train it for the epochs that all arms share, and return it."""
    value, mask, start = cell.values, None, dense
    if "sparsity" in value:
        mask = magnitude(dense.module, sparsity=float(value["sparsity"] or 0))
        start = dataclasses.replace(dense, module=apply_mask_(copy_of(dense.module), mask))
    elif cell.arm == SEPARABLE:
        rank = RankBudget(rank=int(value["rank"] or 0))
        start = factorize(dense, LowRank(budget=rank, how=(Kind.SEPARABLE,))).checkpoint
    else:
        budget = CostBudget(counted=Countable.MACS, stays=float(value["stays"] or 0))
        if cell.arm in LOW_RANK:
            start = factorize(dense, LowRank(budget=budget, how=(LOW_RANK[cell.arm],))).checkpoint
        else:
            request = Request(
                budget=budget, criterion="obs", scope=Scope.UNIFORM, repair=Repair.LEAST_SQUARES, seed=cell.seed
            )
            start = prune(dense, request, data=data).checkpoint
    temperature = float(value["temperature"] or 0) if "temperature" in value else None
    recipe = recipe_for(
        How.FINE_TUNE, dense_recipe=dense.training, dense_cost=count(dense.module, dense.example_inputs),
        small_cost=count(start.module, start.example_inputs),
        wishes=Wishes(
            epochs=int(value["epochs"] or 0), rate=float(value["rate"] or 0), temperature=temperature, seed=cell.seed
        ),
    )  # fmt: skip
    return retrain(
        start, data, recipe=recipe, mask=mask, teacher=None if temperature is None else dense.module, device="auto",
        state_file=workspace.state_file,
    )  # fmt: skip


def _in_integers(cell: Cell, data: Data, workspace: Workspace, file: Path) -> Mapping[str, Any]:
    """Quantise the needed cell's file to int8, by the ranges on training images drawn by the seed."""
    source = file.with_name("float.onnx")
    source.write_bytes(_bytes_of(workspace.state_of(cell.needs[0])[FILE]))
    how = Int8(images=int(cell.values["ranges"] or 0), seed=cell.seed)
    images = first(data.split(SplitName.TRAIN), how.images, seed=how.seed)
    stream = batches(images, batch_size=CALIBRATION_BATCH, preprocessing=load_onnx(source).preprocessing)
    quantize_onnx(source, file, (batch.inputs for batch in stream), how=how)
    workspace.keep({FILE: _tensor_of(file)})
    before = workspace.result_of(cell.needs[0])
    accuracy = evaluate_onnx(file, data.split(SplitName.TEST), split=str(SplitName.TEST))
    counted = {name: before[name] for name in ("params", "macs")}
    return {**counted, "accuracy": 100 * accuracy.value, "bytes": file.stat().st_size}


def _leaving_early(cell: Cell, dense: Checkpoint, data: Data, workspace: Workspace, file: Path) -> Mapping[str, Any]:
    """Train branches on the frozen network, and choose the threshold within the largest drop on the tuning split."""
    value = cell.values
    recipe = Recipe(
        budget=Step(epochs=int(value["epochs"] or 0)), schedule=Schedule(rate=float(value["rate"] or 0)), seed=cell.seed
    )
    request = ExitRequest(
        after=tuple(str(value["after"]).split(",")), recipe=recipe, max_drop=float(value["max_drop"] or 0)
    )
    chosen = chosen_exits(dense, request, data)
    row: dict[str, Any] = {
        "accuracy": 100 * chosen.test.accuracy.value, "macs": chosen.test.mean_macs, "threshold": chosen.threshold,
        "params": sum(p.numel() for p in chosen.exits.parameters()),
        **{f"leaving at {number}": share for number, share in enumerate(chosen.test.shares, start=1)},
    }  # fmt: skip
    if value["files"]:
        export_exits(chosen.exits, dense, file, threshold=chosen.threshold)
        workspace.keep({TAKEN: chosen.taken, FILE: _tensor_of(file)})
        row |= {"bytes": file.stat().st_size}
    return row


def _on_the_clock(cell: Cell, data: Data, workspace: Workspace, folder: Path) -> Mapping[str, Any]:
    """Time all needed cells' files in turns, the dense one twice; return block medians and ratios to dense."""
    value, files = cell.values, dict[str, Path]()
    tune = data.split(SplitName.TUNE)
    kinds = torch.zeros(len(tune), dtype=torch.long)
    for number, needed in enumerate(cell.needs):
        state = workspace.state_of(needed)
        files[needed.arm] = folder / f"{number}.onnx"
        files[needed.arm].write_bytes(_bytes_of(state[FILE]))
        if TAKEN in state:  # images that take the same exits in all networks are one kind
            kinds = torch.unique(kinds * 1000 + state[TAKEN], return_inverse=True)[1]
    dense = load_onnx(files[DENSE])
    images = [dense.preprocessing(tune[i][0].unsqueeze(0)) for i in alike(kinds, int(value["timed_images"] or 0))]
    measured = timed_on_images(
        {**files, AGAIN: files[DENSE]}, images, threads=int(value["threads"] or 0), blocks=int(value["rounds"] or 0)
    )
    row: dict[str, Any] = {}
    for name, one in measured.items():
        row[f"{name} ms"] = one.median_ms / len(images)
        row[f"{name} times"] = speedup(measured[DENSE], one).ratio
    null = speedup(measured[DENSE], measured[AGAIN])
    return {
        **row,
        "block_medians_ns": {name: list(one.block_medians_ns) for name, one in measured.items()},
        "caveats": [str(c) for c in caveats_of(tuple(measured.values()), null=null, where="onnxruntime-cpu")],
    }


def _cost(network: Checkpoint) -> dict[str, Any]:
    cost = count(network.module, network.example_inputs)
    return {"params": cost.params, "macs": cost.macs}


def _tensor_of(file: Path) -> Tensor:
    return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


HARDER = (
    "LeNet's images were digits, of which 94 in a hundred left at its first exit. Clothes are harder: fewer images are "
    "certain early, and a residual network's first stages are a large share of its MACs."
)


def verdict(results: StudyResults) -> Sequence[Claim]:
    """Return the papers' claims, with findings of this study."""
    masks = [arm for arm in results.arms() if arm.startswith(MASKED.format(0)[:6])]
    early = [arm for arm in results.arms() if arm.startswith(EARLY.format(0)[:10])]
    return (
        Claim(
            text="Masked weights are not faster on a dense runtime; half the MACs in channels are",
            source="Wen et al. 2016, Fig. 1",
            findings=(
                *(_times(results, arm, below=True) for arm in masks),
                _times(results, STRUCTURED),
            ),
        ),
        Claim(
            text="At an equal budget a teacher helps the small network",
            source="Hinton et al. 2015",
            findings=(
                Finding(
                    quantity=f"{DISTILLED} minus {STRUCTURED}",
                    interval=paired_difference(
                        results.by_seed("accuracy", DISTILLED), results.by_seed("accuracy", STRUCTURED)
                    ),
                ),
            ),
        ),
        Claim(
            text="Int8 after training loses at most 0.2 points, takes less than half the bytes, and is faster here",
            source="Jacob et al. 2018, arXiv:1712.05877",
            findings=(_lost(results, INT8, 0.2), _bytes(results, INT8, 0.5), _times(results, INT8)),
        ),
        Claim(
            text="Half the MACs by low rank cost at most a point after a short fine-tuning, and are faster here",
            source="Jaderberg et al. 2014",
            findings=tuple(f for arm in (SPATIAL, CHANNEL) for f in (_lost(results, arm, 1.0), _times(results, arm))),
        ),
        _designed(results),
        Claim(
            text="Early exits are 1.9 times as fast at 1.53 points lost",
            source="Teerapittayanon et al. 2016 (ResNet-110 on a CPU: 80.70 to 79.17 %, 1.9 times)",
            findings=tuple(
                f for arm in early[-1:] for f in (_lost(results, arm, 1.53), _times(results, arm, least=1.9))
            ),
        ),
        Claim(
            text="Early exits are twice as fast at next to nothing lost (0.1 points), as LeNet's were",
            source="Teerapittayanon et al. 2016 (LeNet on a CPU: 99.20 to 99.25 %, 5.4 times)",
            findings=tuple(f for arm in early[:-1] for f in (_lost(results, arm, 0.1), _times(results, arm, least=2))),
        ).explained(HARDER),
        Claim(
            text="Channels, a teacher and int8 together are faster than any of them alone",
            source="Han et al. 2016, arXiv:1510.00149, for the combination",
            findings=tuple(_times(results, ALL_THREE, than=arm, least=1) for arm in (DISTILLED, INT8)),
        ),
    )  # fmt: skip


def _designed(results: StudyResults) -> Claim:
    """Return the claim about the separable network; if it is contradicted, the training budget is the reason."""
    claim = Claim(
        text="Depthwise-separable layers cost at most two points for several times fewer MACs, and are faster here",
        source="Howard et al. 2017 (ImageNet: 71.7 to 70.6 % with 4866 to 569 M mult-adds)",
        findings=(_lost(results, SEPARABLE, 2.0), _times(results, SEPARABLE)),
    )
    if claim.findings[0].verdict is not Verdict.CONTRADICTED:
        return claim
    (epochs,) = {cell.values["epochs"] for cell, _ in results.where(SEPARABLE)}
    return dataclasses.replace(
        claim,
        why=f"The published network was trained from its first step to the end. This one begins where the best rank-1 "
        f"layers leave off, far from the dense network, and has the {epochs} epochs that every arm has.",
    )


def _times(results: StudyResults, arm: str, *, than: str = DENSE, least: float = LEAST, below: bool = False) -> Finding:
    """Return how many times as fast an arm is, with the interval of the measurement."""
    interval = None
    for _, row in results.where(CLOCK):
        medians = row["block_medians_ns"]
        if arm in medians:
            one, other = (
                Measurement(name=n, batch_size=1, samples_ns=tuple((round(m),) for m in medians[n]))
                for n in (than, arm)
            )
            measured = speedup(one, other, confidence=LEVEL)
            interval = Interval(
                estimate=measured.ratio, low=measured.low, high=measured.high, n=len(medians[arm]),
                method="sign test over rounds",
            )  # fmt: skip
    quantity = f"{arm}, latency of {than} over its own"
    return Finding(quantity=quantity, interval=interval, bound=least, below=below, unit="times")


def _lost(results: StudyResults, arm: str, most: float) -> Finding:
    """Return the accuracy of an arm's seeds minus that of the dense network."""
    (dense,) = results.by_seed("accuracy", DENSE).values()
    interval = mean_interval([accuracy - dense for accuracy in results.by_seed("accuracy", arm).values()])
    return Finding(quantity=f"{arm} minus {DENSE}", interval=interval, bound=-most)


def _bytes(results: StudyResults, arm: str, most: float) -> Finding:
    """Return the size of an arm's file as a share of the dense one's; it is counted, not measured."""
    (dense,) = results.by_seed("bytes", DENSE).values()
    shares = [row["bytes"] / dense for _, row in results.where(arm)]
    low, high = min(shares), max(shares)
    interval = Interval(estimate=shares[0], low=low, high=high, n=len(shares), method="counted")
    return Finding(quantity=f"{arm}, bytes over {DENSE}'s", interval=interval, bound=most, below=True, unit="of them")


def plots(results: StudyResults) -> Sequence[Plot]:
    """Plot accuracy over speed, over MACs and over bytes: one point for each arm, a dot for each seed."""
    speeds = {name: row.get(f"{name} times") for _, row in results.where(CLOCK) for name in results.arms()}
    dense = next(row for _, row in results.where(DENSE))
    sides: dict[str, tuple[str, dict[str, float | None]]] = {
        "speed": ("times as fast as dense, measured", speeds),
        "MACs": ("MACs, times fewer than dense", {n: _share(results, n, "macs", dense) for n in results.arms()}),
        "bytes": (
            "bytes on disk, times fewer than dense",
            {n: _share(results, n, "bytes", dense) for n in results.arms()},
        ),
    }
    pictures = []
    for title, (axis, places) in sides.items():
        curves = tuple(
            PlotLine(name=name, points=(PlotPoint(x=x, values=tuple(results.by_seed("accuracy", name).values())),))
            for name, x in places.items()
            if x is not None and name != CLOCK
        )
        pictures.append(Plot(title=f"Test accuracy and {title}", x=axis, y="%", curves=curves, joined=False))
    return pictures


def _share(results: StudyResults, arm: str, number: str, dense: Mapping[str, Any]) -> float | None:
    """Return the dense network's number over that of the arm's first seed; sparse weights count as stored."""
    for _, row in results.where(arm):
        own = row.get("stored") if number == "bytes" and "stored" in row else row.get(number)
        if own:
            return float(dense[number]) / float(own)
    return None
