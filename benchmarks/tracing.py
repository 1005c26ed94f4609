"""How tracing and grouping grow with depth: `python -m benchmarks.tracing`.

torchvision's resnet50 and resnet152 traced in turns, after one uncounted turn; every turn's times and ratio are kept.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
import torchvision

from benchmarks.provenance import provenance
from compressor.channels.groups import trace

FILE = Path(__file__).parent / "tracing.json"
TURNS = 9


def main() -> None:
    """Measure, write the raw times and the ratios, and print their median."""
    inputs = (torch.randn(1, 3, 224, 224),)
    modules = {name: torchvision.models.get_model(name).eval() for name in ("resnet50", "resnet152")}
    turns: list[dict[str, float]] = []
    for _ in range(TURNS + 1):
        turn = {}
        for name, module in modules.items():
            started = time.perf_counter()
            trace(module, inputs)
            turn[name] = time.perf_counter() - started
        turns.append(turn)
    ratios = sorted(turn["resnet152"] / turn["resnet50"] for turn in turns[1:])
    summary = {"median": statistics.median(ratios), "least": ratios[0], "largest": ratios[-1]}
    FILE.write_text(json.dumps({"ratio": summary, "turns_s": turns[1:], "provenance": provenance()}, indent=1) + "\n")
    print(summary)


if __name__ == "__main__":
    main()
