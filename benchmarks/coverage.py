"""Any architecture: `python -m benchmarks.coverage [--zoo torchvision|timm] [--only NAME,...] [--until prune|all]`.

Every architecture with random weights and live statistics (as in `benchmarks.surgery`) goes through, each in a process
of its own, at ratio 0.5, l1-norm, uniform, without alignment:

    prune     the surgery proof, largest relative difference at most 1e-4
    backward  one backward pass through the small network, every parameter that the dense one trains gets a gradient
    again     the small network pruned a second time, proved
    export    ONNX, and onnxruntime's outputs within 1e-3
    reload    the artifact, read back in a fresh process

torchvision: every classification, segmentation and video model, the detectors and RAFT. timm: the smallest variant of
every module that registers models. `deep` means that at most 40 % of the parameters are left (55 % where the network
has attention or no convolution but the stem's). One JSON file per architecture in `benchmarks/coverage/`; one that has
got as far as asked is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.provenance import provenance
from benchmarks.surgery import enliven_
from compressor.artifact import write_artifact
from compressor.checkpoint import Architecture, Checkpoint
from compressor.data import Preprocessing
from compressor.errors import CompressError
from compressor.export import export_onnx
from compressor.outputs import tensors_in
from compressor.pipeline import prune
from compressor.plan import ChannelBudget
from compressor.request import Request

FOLDER = Path(__file__).parent / "coverage"
STAGES = ("prune", "backward", "again", "export", "reload")
PROOF = 1e-4
LIMIT_S = 600
SIZE = 224
CONVOLUTIONAL, ATTENTIVE = 0.40, 0.55


def torchvision_names() -> list[str]:
    """Every model that torchvision registers, but for those of quantised weights."""
    import torchvision

    return [n for n in torchvision.models.list_models() if not n.startswith("quantized_")]


def timm_names() -> list[str]:
    """The smallest variant of every module of timm that registers models, by its parameters."""
    import timm

    listed = FOLDER / "timm.json"
    known: dict[str, str] = json.loads(listed.read_text()) if listed.exists() else {}
    for module in timm.list_modules():
        if module in known:
            continue
        sizes = {}
        for name in timm.list_models(module=module):
            try:
                with torch.device("meta"):
                    sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
            except Exception as error:  # some cannot be built on the meta device
                print(f"# {name}: {type(error).__name__}", flush=True)
        if sizes:
            known[module] = min(sizes, key=lambda n: sizes[n])
            FOLDER.mkdir(exist_ok=True)
            listed.write_text(json.dumps(known, indent=1) + "\n")
    return sorted(known.values())


def arguments_of(name: str) -> tuple[tuple[str, object], ...]:
    """What an architecture is called with: detectors look at their input in its own size.

    Those of two stages let boxes of a random network's low scores through.
    """
    if not any(kind in name for kind in ("rcnn", "retinanet", "fcos")):
        return ()
    own = (("min_size", SIZE), ("max_size", SIZE))
    return (*own, ("box_score_thresh", 0.001)) if "rcnn" in name else own


def build(zoo: str, name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network with live random weights, and inputs for it."""
    torch.manual_seed(0)
    if zoo == "timm":
        import timm

        module = timm.create_model(name)
        shape = module.default_cfg.get("input_size", (3, 224, 224))
        return enliven_(module, seed=0), (torch.randn(1, *shape),)
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if "weights_backbone" in inspect.signature(torchvision.models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    options |= dict(arguments_of(name))
    module = enliven_(torchvision.models.get_model(name, **options), seed=0)
    if name.startswith("raft"):
        return module, (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    if name in ("mvit_v1_b", "mvit_v2_s") or name.startswith("swin3d"):
        return module, (torch.randn(1, 3, 16, 224, 224),)
    if name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d"):
        return module, (torch.randn(1, 3, 16, 112, 112),)
    size = 299 if name == "inception_v3" else SIZE
    return module, (torch.randn(1, 3, size, size),)


def cell(zoo: str, name: str, until: str) -> dict[str, Any]:
    """How far one architecture gets, and where and why it stops."""
    row: dict[str, Any] = {"zoo": zoo, "name": name, "reached": None, "until": until}
    try:
        module, inputs = build(zoo, name)
        row["attention"] = _attends(module)
        checkpoint = Checkpoint(
            module=module, example_inputs=inputs,
            architecture=Architecture(ref=f"{zoo}:{name}", arguments=arguments_of(name)),
            preprocessing=Preprocessing(), classes=None, name=name, path=name, sha256="",
        )  # fmt: skip
        request = Request(budget=ChannelBudget(ratio=0.5), align=1)
        started = time.process_time()
        pruned = prune(checkpoint, request)
        small = pruned.checkpoint
        row |= {
            "prune_s": time.process_time() - started,
            "proof": pruned.proof.largest_relative_difference,
            "dtype": str(pruned.proof.dtype).removeprefix("torch."),
            "form": "class" if small.surgery is None or small.surgery.program is None else "program",
            "params": [pruned.dense_cost.params, pruned.small_cost.params],
            "macs": [pruned.dense_cost.macs, pruned.small_cost.macs],
            "groups": len(pruned.traced.groups),
            "left_alone": [dataclasses.asdict(a) for a in pruned.traced.left_alone][:40],
        }
        if row["proof"] > PROOF:
            row["why"] = f"proof {row['proof']:.2g}"
            return row
        row["reached"] = "prune"
        if until != "prune":
            _further(row, small, request)
    except CompressError as error:
        row["why"] = str(error)
    except Exception as error:  # the table says what happened
        row["why"] = f"{type(error).__name__}: {str(error)[:400]}"
        row["traceback"] = traceback.format_exc()[-2000:]
    return row


def _further(row: dict[str, Any], small: Checkpoint, request: Request) -> None:
    import copy

    module = copy.deepcopy(small.module).requires_grad_(True)
    sum(
        t.float().square().mean() for t in tensors_in(module(*small.example_inputs)) if t.is_floating_point()
    ).backward()
    row["without_gradient"] = sum(p.grad is None for p in module.parameters())
    row["reached"] = "backward"
    again = prune(dataclasses.replace(small, surgery=None), request)
    row["again_proof"] = again.proof.largest_relative_difference
    if row["again_proof"] > PROOF:
        return
    row["reached"] = "again"
    with tempfile.TemporaryDirectory() as scratch:
        parity = export_onnx(small, Path(scratch) / "model.onnx")
        row["parity"] = parity.largest_relative_difference
        row["reached"] = "export"
        write_artifact(Path(scratch) / "a.compressed", small, source={}, results={}, trust_pickle=False)
        row["reached"] = "reload"


def _attends(module: nn.Module) -> bool:
    """Whether most of the weights are those of linear layers."""
    linear = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
    linear += sum(
        m.in_proj_weight.numel()
        for m in module.modules()
        if isinstance(m, nn.MultiheadAttention) and m.in_proj_weight is not None
    )
    return linear > 0.6 * sum(p.numel() for p in module.parameters())


def table() -> str:
    """The table that the raw results make, as Markdown."""
    rows = [json.loads(p.read_text()) for p in sorted(FOLDER.glob("*-*.json"))]
    lines = [
        "| zoo | architectures | pruned and proved | all the way | deep | median processor seconds to prune |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for zoo in ("torchvision", "timm"):
        mine = [r for r in rows if r["zoo"] == zoo]
        if not mine:
            continue
        proved = [r for r in mine if r["reached"]]
        whole = sum(r["reached"] == "reload" for r in mine)
        tried = sum(r["until"] == "all" for r in mine)
        deep = sum(_deep(r) for r in proved)
        seconds = sorted(r["prune_s"] for r in proved)
        middle = f"{seconds[len(seconds) // 2]:.0f}"
        lines.append(f"| {zoo} | {len(mine)} | {len(proved)} | {whole} of {tried} tried | {deep} | {middle} |")
    lines += [
        "",
        "| architecture | reached | form | parameters left | proof | parity | processor seconds | why not further |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        share = f"{r['params'][1] / r['params'][0]:.1%}" if "params" in r else ""
        figures = [f"{r[key]:.1e}" if key in r else "" for key in ("proof", "parity")]
        why = " ".join(r.get("why", "").replace("|", "/").split())[:160]
        cells = (f"{r['zoo']}: {r['name']}", r["reached"] or "-", r.get("form", ""), share, *figures)
        lines.append(f"| {' | '.join(cells)} | {r.get('prune_s', 0):.0f} | {why} |")
    return "\n".join(lines) + "\n"


def _deep(row: dict[str, Any]) -> bool:
    return row["params"][1] / row["params"][0] <= (ATTENTIVE if row["attention"] else CONVOLUTIONAL)


def main() -> None:
    """Run what has not got as far as asked, one process after the other, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", default="torchvision,timm")
    parser.add_argument("--only", help="Names, separated by commas.")
    parser.add_argument("--until", choices=("prune", "all"), default="all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="Run what failed once more.")
    parser.add_argument("--one", help="One architecture, whose result goes to stdout.")
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        zoo, _, name = arguments.one.partition(":")
        print(json.dumps(cell(zoo, name, arguments.until) | {"provenance": provenance()}))
        return
    FOLDER.mkdir(exist_ok=True)
    for zoo in arguments.zoo.split(","):
        for name in torchvision_names() if zoo == "torchvision" else timm_names():
            path = FOLDER / f"{zoo}-{name}.json"
            before = json.loads(path.read_text()) if path.exists() else None
            if arguments.only and name not in arguments.only.split(","):
                continue
            done = before is not None and (before["until"] == "all" or before["until"] == arguments.until)
            if done and not (
                arguments.again and before["reached"] != ("prune" if before["until"] == "prune" else "reload")
            ):
                continue
            row = _in_a_process(zoo, name, arguments.until, arguments.threads)
            path.write_text(json.dumps(row, indent=1) + "\n")
            left = f"{row['params'][1] / row['params'][0]:.0%}" if "params" in row else ""
            print(
                path.stem, row["reached"], left, f"{row.get('prune_s', 0):.0f}s", row.get("why", "")[:200], flush=True
            )
    (FOLDER / "README.md").write_text(f"# Coverage\n\n{__doc__}\n\n{table()}")


def _in_a_process(zoo: str, name: str, until: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.coverage", "--one", f"{zoo}:{name}"]
    try:
        done = subprocess.run(
            [*command, "--until", until, "--threads", str(threads)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"zoo": zoo, "name": name, "reached": None, "until": until, "why": f"no end after {LIMIT_S} s"}
    except (IndexError, ValueError):
        return {
            "zoo": zoo,
            "name": name,
            "reached": None,
            "until": until,
            "why": f"the process ended: {done.stderr[-300:]}",
        }
    return found


if __name__ == "__main__":
    main()
