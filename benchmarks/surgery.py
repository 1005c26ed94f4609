"""Prove the surgery and the export on torchvision's networks and the sample models: `python -m benchmarks.surgery`.

Random weights, with statistics and layer scales drawn so that no branch is dead; ratios 0.3, 0.5 and 0.75, l1-norm,
uniform, without alignment. One JSON file per network and ratio in `benchmarks/surgery/`, and the table from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.provenance import provenance
from compressor.channels.groups import trace
from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.preprocessing import Preprocessing
from compressor.export.onnx import export_onnx
from compressor.jobs.coverage import enliven_
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget
from compressor.surgery.proof import prove, reference_of

FOLDER = Path(__file__).parent / "surgery"
RATIOS = (0.3, 0.5, 0.75)
TORCHVISION = (
    "resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "googlenet",
    "efficientnet_b0", "convnext_tiny", "vit_b_16",
)  # fmt: skip
SAMPLES = ("resnet20", "vgg11", "mobilenet_v2")


def network(name: str) -> Checkpoint:
    """A checkpoint of a torchvision network with live random weights, or of a sample model."""
    torch.manual_seed(0)
    if name.startswith("sample:"):
        from compressor.checkpoint.loading import load

        short = name.removeprefix("sample:")
        return load(Path(__file__).parent.parent / "sample_models" / f"fashion_{short}.pt")
    import torchvision

    options = {"init_weights": True} if name == "googlenet" else {}
    module = enliven_(getattr(torchvision.models, name)(**options), seed=0)
    return Checkpoint(
        module=module,
        example_inputs=(torch.randn(1, 3, 224, 224),),
        architecture=Architecture(ref=f"torchvision:{name}"),
        preprocessing=Preprocessing(size=(224, 224), channels=3),
        classes=None,
        name=name,
        path=name,
        sha256="",
    )


def cell(name: str, ratio: float) -> dict[str, object]:
    """One network at one ratio: the proofs, the parity, and the time that tracing took."""
    checkpoint = network(name)
    started = time.perf_counter()
    traced = trace(checkpoint.module, checkpoint.example_inputs)
    trace_s = time.perf_counter() - started
    pruned = prune(checkpoint, Request(budget=ChannelBudget(ratio=ratio), align=1))
    reference = reference_of(
        checkpoint.module, traced, pruned.levels[0].plan, checkpoint.example_inputs, dtype=torch.float32
    )
    single = prove(pruned.checkpoint.module, reference)
    with tempfile.TemporaryDirectory() as scratch:
        parity = export_onnx(pruned.checkpoint, Path(scratch) / "model.onnx")
    return {
        "network": name,
        "ratio": ratio,
        "float64": pruned.proof.largest_relative_difference if pruned.proof.dtype is torch.float64 else None,
        "float32": single.largest_relative_difference,
        "parity": dataclasses.asdict(parity),
        "params": [pruned.dense_cost.params, pruned.small_cost.params],
        "macs": [pruned.dense_cost.macs, pruned.small_cost.macs],
        "groups": len(pruned.traced.groups),
        "left_alone": [dataclasses.asdict(a) for a in pruned.traced.left_alone],
        "trace_s": trace_s,
        "provenance": provenance(),
    }


def table() -> str:
    """The table that the raw results make, as Markdown."""
    lines = [
        "| network | ratio | parameters left | MACs left | proof, float64 | proof, float32 | ONNX parity |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(FOLDER.glob("*.json")):
        row = json.loads(path.read_text())
        float64 = "" if row["float64"] is None else f"{row['float64']:.1e}"
        lines.append(
            f"| {row['network']} | {row['ratio']} | {row['params'][1] / row['params'][0]:.1%} | "
            f"{row['macs'][1] / row['macs'][0]:.1%} | {float64} | {row['float32']:.1e} | "
            f"{row['parity']['largest_relative_difference']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the cells that have no result yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=[*(f"sample:{s}" for s in SAMPLES), *TORCHVISION])
    for name in parser.parse_args().networks:
        for ratio in RATIOS:
            path = FOLDER / f"{name.replace(':', '_')}-{ratio}.json"
            if path.exists():
                continue
            result = cell(name, ratio)
            FOLDER.mkdir(exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(name, ratio, result["float64"], result["float32"], result["parity"], flush=True)
    (FOLDER / "README.md").write_text(
        f"# Surgery proofs and ONNX parity\n\n`python -m benchmarks.surgery`\n\n{table()}"
    )


if __name__ == "__main__":
    main()
