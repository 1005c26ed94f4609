"""A small good file of everything that `compress` reads, written into a folder: what mutants are made of."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import RECIPE
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.checkpoint.recipes import Recipe, Schedule, Step
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.files.json_files import write_json
from compressor.measuring.tables.table import LatencyTable, Target, Whole, write_table
from compressor.pruning.masking import mask_weights
from compressor.pruning.pipeline import prune
from compressor.pruning.request import MaskRequest, Request
from compressor.results.artifact import Results
from compressor.results.training import EpochRecord
from compressor.studies.study import Cell
from compressor.surgery.plan import ChannelBudget
from compressor.training.resume import Run, digest_of, save
from compressor.training.watch import StateAt
from tests.report.test_report import setting
from tests.support.brought import WrittenOut
from tests.support.command_line import ARCH, make_inputs
from tests.support.topologies import alive, checkpoint_of

IMAGE = (1, 1, 8, 8)


def tiny() -> nn.Module:
    return alive(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )
    )


# Checkpoints


def state(folder: Path) -> None:
    make_inputs(folder, images=8)
    state = torch.load(folder / "tiny.pt")
    torch.save({"state_dict": state, "classes": ["a", "b"], "input": [1, 1, 16, 16], "epoch": 3}, folder / "state.pt")


def tensors(folder: Path) -> None:
    from safetensors.torch import save_file

    make_inputs(folder, images=8)
    save_file(torch.load(folder / "tiny.pt"), folder / "net.safetensors")


def exported(folder: Path) -> None:
    program = torch.export.export(tiny(), (torch.randn(2, *IMAGE[1:]),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, folder / "net.pt2")


# Artifacts


def small(dense: Checkpoint) -> Checkpoint:
    return prune(dense, Request(budget=ChannelBudget(ratio=0.5), align=1)).checkpoint


def written(folder: Path, checkpoint: Checkpoint, results: Mapping[str, Any] | None = None) -> None:
    source = {"path": "net.pt", "sha256": ""}
    write_artifact(folder / "a", checkpoint, source=source, results=Results.from_json(results or {}), verify=False)


def of_class(folder: Path) -> None:
    make_inputs(folder, images=8)
    written(folder, small(load(folder / "tiny.pt", arch=ARCH[1], inputs=(ARCH[3],))))


def of_skeleton(folder: Path) -> None:
    written(folder, small(checkpoint_of(tiny(), IMAGE)))


def of_program(folder: Path) -> None:
    written(folder, small(checkpoint_of(alive(WrittenOut()))))


def sparse(folder: Path) -> None:
    dense = checkpoint_of(tiny(), IMAGE)
    masked = mask_weights(dense, MaskRequest(sparsity=0.7))
    source = {"path": "net.pt", "sha256": ""}
    write_artifact(folder / "a", masked.checkpoint, source=source, results=Results(), verify=False, mask=masked.mask)


# Results


def results(folder: Path) -> None:
    folder = folder / "a"
    folder.mkdir()
    widths = [{"layer": "a", "kind": "Conv2d", "in": [1, 1], "out": [16, 8], "macs": [112, 56]}]
    history = [
        {"epoch": n, "rate": 0.01, "train_loss": 0.5, "tune_correct": 90 + n, "tune_total": 100} for n in range(3)
    ]
    write_json(
        folder / "results.json",
        {
            "schema": 1, "name": "net", "command": "compress prune net.pt", "environment": {"python": "3", "cores": 6},
            "prune": {
                "requested": {"ratio": 0.5}, "achieved": {"channels": [16, 8], "params": [272, 71], "macs": [312, 80]},
                "criterion": "l1-norm", "scope": "uniform", "align": 8, "seed": 0, "widths": widths,
                "proof": {"dtype": "float64", "largest_relative_difference": 3e-16, "inputs": "random"},
                "left_alone": [{"layer": "fc", "reason": "its channels are the network's output"}],
            },
            "repair": {"data": "x", "how": "least-squares"},
            "retrain": [{"how": "fine-tune", "epochs": 3, "data": "x", "images": 9, "history": history}],
            "export": {"opset": 20, "bytes": 3025, "largest_relative_difference": 4e-7, "batches": 3},
            "bench": {
                "environment": {"cpu": "x"}, "threads": 2, "blocks": 5, "caveats": ["loaded"],
                "rows": setting("torch-eager", 1, 1.5, (2.1, 2.0, 2.2)),
            },
            "evaluate": [{"model": "dense", "correct": 9, "total": 10, "split": "test", "data": "x"}],
            "lineage": [{"step": "prune", "requested": {"ratio": 0.5}}],
        },
    )  # fmt: skip
    write_json(folder / RECIPE, {"schema": 1, "files": {}})


def measured(folder: Path) -> None:
    rows = [
        {
            "candidate": name, "file": f"{name}.onnx", "file_bytes": 100, "params": 10, "macs": 20, "batch": 1,
            "samples_ns": [[1000 + 10 * block + call for call in range(3)] for block in range(9)],
        }
        for name in ("dense", "dense again", "small")
    ]  # fmt: skip
    write_json(
        folder / "measured.json",
        {
            "provider": "CPUExecutionProvider", "hardware": "x", "onnxruntime": "1", "python": "3", "platform": "y",
            "threads": 2, "rows": rows,
        },
    )  # fmt: skip


def table(folder: Path) -> None:
    samples = tuple((float(n), float(2 * n), 100.0 + n * n) for n in range(1, 10))
    write_table(
        folder / "table.json",
        LatencyTable(
            target=Target(runtime="onnxruntime-cpu", batch=1, threads=1, hardware="x", version="1"),
            samples={"Conv": samples, "Gemm": samples[:3]},
            alignments=((1, 1.2), (8, 1.0), (16, 1.01)),
            wholes={"net": Whole(factor=0.9, starts=0.8, networks=((100.0, 101.0), (120.0, 117.0)))},
            environment={"python": "3"},
        ),
    )


# Data


def arrays(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 6, 6), dtype=np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=np.arange(12) % 3, classes=np.array(["a", "b", "c"]))


def idx(folder: Path) -> None:
    (folder / "idx").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (12, 6, 6), dtype=np.uint8)
    for stem, array in (("train-images-idx3", pixels), ("train-labels-idx1", np.arange(12, dtype=np.uint8) % 3)):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / "idx" / f"{stem}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def images(suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from PIL import Image

        for name in ("a", "b"):
            (folder / "images" / name).mkdir(parents=True)
            pixels = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"0{suffix}")

    return make


def columns(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.ones((6, 3), np.float32), "label": np.arange(6) % 2}, folder / "rows.safetensors")


def boxes(folder: Path) -> None:
    """The same pictures with masks, with YOLO's labels and with COCO's table."""
    from PIL import Image

    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        for home in ("masked", "yolo", "coco"):
            (folder / home / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / home / "images" / f"{number}.png")
        for home in ("masked/masks", "yolo/labels"):
            (folder / home).mkdir(exist_ok=True)
        Image.fromarray(pixels[..., 0] // 100).save(folder / "masked" / "masks" / f"{number}.png")
        (folder / "yolo" / "labels" / f"{number}.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.3 0.4 0.5 0.6\n")
    (folder / "yolo" / "data.yaml").write_text("path: .\ntrain: images\nnames: {0: cat, 1: dog}\n")
    table = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 6, "width": 6} for i in range(2)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 3, "bbox": [0, 1, 2.5, 3], "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (folder / "coco" / "test.json").write_text(json.dumps(table))


WORDS = ("[PAD]", "[UNK]", "good", "bad", "film")


def texts(folder: Path) -> None:
    """A table of texts, and a tokeniser as its library writes it."""
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "[UNK]"}
    whole = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "config.json").write_text('{"pad_token_id": 0}')
    (folder / "texts.csv").write_text('text,text_pair,label\ngood film,"a, b",yes\nbad film,c,no\n')


def sounds(folder: Path) -> None:
    import wave

    (folder / "sounds").mkdir()
    with wave.open(str(folder / "sounds" / "a.wav"), "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(3)
        sound.setframerate(8000)
        sound.writeframes(bytes(range(60)))


# Runs that go on


def noise() -> Data:
    held = Images(torch.zeros(4, *IMAGE[1:]), torch.arange(4) % 2)
    return Data(name="zeros", source="here", train=held, tune=held, test=held)


def run(module: nn.Module) -> Run:
    return Run(recipe=Recipe(budget=Step(epochs=3), schedule=Schedule(rate=0.1)), data=noise(), start=digest_of(module))


def training() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = tiny()
    return module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def kept_run(folder: Path) -> None:
    module, optimiser = training()
    going = run(module)
    loss: Tensor = module(torch.randn(2, *IMAGE[1:])).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    optimiser.step()
    record = EpochRecord(epoch=0, rate=0.1, train_loss=1.0, tune_correct=3, tune_total=4)
    save(folder / "train.state", module, optimiser, going, [record])


def kept_weights(folder: Path) -> None:
    StateAt(0, file=folder / "early.state")(tiny())


CELL = Cell(study="made-up", arm="dense", seed=0)


def cell(folder: Path) -> None:
    from safetensors.torch import save_file

    row = {
        "schema": 1,
        "cell": CELL.to_json(),
        "result": {"accuracy": 90.5},
        "seconds": 1.0,
        "data": noise().to_json(),
    }
    write_json(folder / f"{CELL.key}.json", row)
    save_file({"weight": torch.ones(3)}, folder / f"{CELL.key}.safetensors")


# ONNX


def onnx_file(folder: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.random.default_rng(0).random((2, 1, 3, 3), dtype=np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("GlobalAveragePool", ["y"], ["z"]),
        helper.make_node("Flatten", ["z"], ["out"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 2])
    model = helper.make_model(
        helper.make_graph(nodes, "net", [x], [out], [weight]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    known = {"mean": [0.5], "std": [0.5], "size": [8, 8], "channels": 1}
    helper.set_model_props(model, {"name": "net", "classes": '["a", "b"]', "preprocessing": json.dumps(known)})
    (folder / "net.onnx").write_bytes(model.SerializeToString())


def pickled_first(folder: Path) -> None:
    torch.save(tiny(), folder / "old.pt", _use_new_zipfile_serialization=False)


def pickled(folder: Path) -> None:
    torch.save(tiny(), folder / "whole.pt")
