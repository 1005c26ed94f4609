"""Plans and figures that must not move while the code is moved: `python -m benchmarks.golden`.

The thirteen networks of `benchmarks.surgery` at its ratios: which channels leave, what stays, and the bytes of the
small network's weights. The sample models as the command line prunes them: with data, where `obs` judges, widths are
measured and least squares repairs, and without. `--check` makes everything again and names what differs.

Plans are the same on every machine; the weights after a repair are floating-point sums, the same to the last bit on
machines with the same kernels alone, so that they are compared where processor and versions are the committed ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.provenance import provenance
from benchmarks.surgery import RATIOS, SAMPLES, TORCHVISION, network
from compressor.data.sources import load_data
from compressor.data.splits import Data
from compressor.jobs.requests import PruneOptions, request_from
from compressor.pruning.pipeline import Pruned
from compressor.pruning.pipeline import prune as prune_checkpoint
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget

FILE = Path(__file__).parent / "golden.json"
SAMPLE = Path(__file__).parent.parent / "sample_models" / "fashion_sample.npz"
ASKED: tuple[dict[str, float], ...] = ({"ratio": 0.5}, {"macs": 0.5}, {"params": 0.5})
SAME_KERNELS = ("cpu", "threads", "torch")  # fields of the environment on which the last bits of a repair depend


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of named tensors: of their names, shapes, types and bytes."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        sha256.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def indices(removed: Sequence[int]) -> str:
    """How many channels leave a group and, in a digest, which."""
    return f"{len(removed)} {hashlib.sha256(repr(tuple(removed)).encode()).hexdigest()[:16]}"


def facts_of(pruned: Pruned) -> dict[str, Any]:
    """What is compared of one run: which channels leave each group, the cost that stays, the weights' digest."""
    return {
        "removed": [{root: indices(gone) for root, gone in level.plan.removed.items()} for level in pruned.levels],
        "params": [pruned.dense_cost.params, pruned.small_cost.params],
        "macs": [pruned.dense_cost.macs, pruned.small_cost.macs],
        "left_alone": {alone.layer: alone.reason for alone in pruned.traced.left_alone},
        "kept_as": pruned.kept_as,
        "weights": digest(pruned.checkpoint.module.state_dict()),
    }


def surgery_cell(name: str, ratio: float) -> dict[str, Any]:
    """One of the thirteen networks, by the L1 norm, uniformly, without alignment."""
    request = Request(budget=ChannelBudget(ratio=ratio), align=1)
    return facts_of(prune_checkpoint(network(name), request))


def command_cell(name: str, asked: Mapping[str, float], data: Data | None) -> dict[str, Any]:
    """A sample model as `compress prune` takes it, with everything else left at its default."""
    request = request_from(PruneOptions(**asked), has_data=data is not None)
    assert isinstance(request, Request)
    return facts_of(prune_checkpoint(network(name), request, data=data))


def cells(*, only_samples: bool = False) -> dict[str, Any]:
    """All cells, by the name under which they are committed."""
    made: dict[str, Any] = {}
    data = load_data(str(SAMPLE))

    def keep(name: str, facts: dict[str, Any]) -> None:
        made[name] = facts
        print(name, file=sys.stderr, flush=True)

    for short in SAMPLES:
        sample = f"sample:{short}"
        for asked in ASKED:
            words = " ".join(f"--{option} {value}" for option, value in asked.items())
            keep(f"{sample} {words}", command_cell(sample, asked, None))
            keep(f"{sample} {words} --data sample", command_cell(sample, asked, data))
    for name in [f"sample:{short}" for short in SAMPLES] + ([] if only_samples else list(TORCHVISION)):
        for ratio in RATIOS:
            keep(f"{name} l1-norm {ratio}", surgery_cell(name, ratio))
    return made


def differences(committed: Mapping[str, Any], made: Mapping[str, Any], *, same_kernels: bool) -> list[str]:
    """What differs, as `cell: field`; weights alone where `same_kernels` says that they may be compared."""
    return [
        f"{name}: {field}"
        for name, facts in made.items()
        for field, value in facts.items()
        if value != committed[name][field] and (same_kernels or field != "weights")
    ]


def main() -> None:
    """Write the file, or with `--check` compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    parser.add_argument("--samples", action="store_true", help="the sample models alone")
    given = parser.parse_args()
    here = provenance()
    made = cells(only_samples=given.samples)
    if not given.check:
        FILE.write_text(json.dumps({"provenance": here, "cells": made}, separators=(",", ":")) + "\n")
        return
    kept = json.loads(FILE.read_text())
    there = kept["provenance"]["environment"]
    same = all(there[field] == here["environment"][field] for field in SAME_KERNELS)
    different = differences(kept["cells"], made, same_kernels=same)
    print("\n".join(different) or f"{len(made)} cells are the committed ones{'' if same else ' but for last bits'}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
