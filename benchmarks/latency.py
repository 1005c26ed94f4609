"""Is the small network faster, where masked weights are not? `python -m benchmarks.latency [--threads 1]`.

The three sample models, pruned by l1-norm, uniformly, widths aligned to 8, at ratios 0.3, 0.5 and 0.7, on
onnxruntime-cpu at batch 1 and 64: dense, dense again (the null check), masked weights (as many parameters as the small
network), masked channels (the same channels, zeroed), small, in turns. One JSON file per model and ratio in
`benchmarks/latency/`, with every sample; one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from compressor.checkpoint.loading import load
from compressor.measuring.benchmark import bench
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget

FOLDER = Path(__file__).parent / "latency"
SAMPLES = Path(__file__).parent.parent / "sample_models"
MODELS = ("resnet20", "vgg11", "mobilenet_v2")
RATIOS = (0.5, 0.3, 0.7)
BLOCKS = 30


def cell(model: str, ratio: float, *, threads: int) -> dict[str, Any]:
    """One model at one ratio: the bench's own result."""
    dense = load(SAMPLES / f"fashion_{model}.pt")
    small = prune(dense, Request(budget=ChannelBudget(ratio=ratio))).checkpoint
    result = bench(small, dense, runtimes=("onnxruntime-cpu",), batches=(1, 64), threads=threads, blocks=BLOCKS)
    return {"model": model, "ratio": ratio, **result.to_json(), "provenance": provenance()}


def interval(speedup: dict[str, Any]) -> str:
    """A speed-up as text: the ratio with its interval."""
    return f"{speedup['ratio']:.2f} ({speedup['low']:.3f} to {speedup['high']:.3f})"


def table() -> str:
    """Speed-ups over dense with their intervals, as Markdown."""
    lines = [
        "| model | ratio | threads | batch | MACs ratio | dense again | masked weights | masked channels | small |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text())
        for batch in sorted({row["batch"] for row in found["rows"]}):
            rows = {row["candidate"]: row for row in found["rows"] if row["batch"] == batch}
            names = ("dense again", "masked weights", "masked channels", "small")
            cells = [interval(rows[name]["speedup"]) for name in names]
            theory = rows["small"]["theoretical_speedup"]
            setting = f"{found['model']} | {found['ratio']} | {found['threads']} | {batch}"
            lines.append(f"| {setting} | {theory:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what has no result yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)))
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for ratio in map(float, arguments.ratios.split(",")):
        for model in arguments.models.split(","):
            path = FOLDER / f"{model}-{ratio}-threads{arguments.threads}.json"
            if not path.exists():
                result = cell(model, ratio, threads=arguments.threads)
                path.write_text(json.dumps(result, separators=(",", ":")) + "\n")
                print(path.stem, [(r["batch"], r["candidate"], r["speedup"]) for r in result["rows"]], flush=True)
    (FOLDER / "README.md").write_text(f"# Latency\n\n{__doc__}\n\n{table()}")


if __name__ == "__main__":
    main()
