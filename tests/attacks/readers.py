"""Everything that `compress` reads, and what reads it, as the commands do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compressor.checkpoint.artifact_recipe import sealed
from compressor.checkpoint.artifacts import RECIPE, open_artifact, sha256_of
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.checkpoint.pickles.placeholders import weights_in
from compressor.checkpoint.pt2 import read_exported
from compressor.data.expected import Expected
from compressor.data.items import sample_of
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.sources import load_data
from compressor.data.splits import Data, SplitName
from compressor.files.json_files import read_json
from compressor.graph.input_spec import InputSpec
from compressor.measuring.pack.folder import bench_of_pack
from compressor.measuring.quality import evaluate_onnx
from compressor.measuring.tables.table import read_table
from compressor.report import report
from compressor.results.artifact import Results
from compressor.studies.runner import Folder
from compressor.training.resume import epochs_done, restore_
from compressor.training.watch import StateAt
from tests.attacks import good_files as good
from tests.attacks.mutations import Form
from tests.support.command_line import ARCH


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A way in: `make` writes good files into an empty folder, and `read` reads the one at `file`, which is mutated.

    `weight` is how often it is drawn beside the others: those that read slowly are drawn less in the default run.
    """

    name: str
    file: str
    form: Form
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    weight: int = 4
    mend: Callable[[Path], None] = lambda _: None  # signs a mutant, so that it gets past what hashes refuse


def _ask(request: str) -> Callable[[Path], Checkpoint]:
    return lambda folder: load(folder / request, inputs=("1x1x8x8",))


def _read_state(folder: Path) -> Checkpoint:
    return load(folder / "state.pt", arch=ARCH[1], inputs=(ARCH[3],))


def _read_artifact(folder: Path) -> None:
    opened = open_artifact(folder / "a")
    opened.results()
    opened.checkpoint()
    opened.mask()


def _signed(folder: Path) -> None:
    """Recipe and files say the same again."""
    try:
        recipe = json.loads((folder / "a" / RECIPE).read_text())
        recipe["files"] = {name: sha256_of(folder / "a" / name) for name in recipe["files"]}
        recipe = sealed(recipe)
    except Exception:  # what is wrong in it is for the reader to say
        return
    (folder / "a" / RECIPE).write_text(json.dumps(recipe))


def _read_results(folder: Path) -> None:
    report(Results.from_json(read_json(folder / "a" / "results.json")), folder / "pages", artifact=folder / "a")


def _read_measured(folder: Path) -> None:
    from compressor.cli.bench import show
    from compressor.measuring.benchmark import missed

    result = bench_of_pack(read_json(folder / "measured.json"), where="measured.json")
    json.dumps(result.to_json(), allow_nan=False)  # as it is written into the artifact
    show(result)
    missed(result, at_least=1.0)


def _read_table(folder: Path) -> None:
    table = read_table(folder / "table.json")
    table.prices([key for key in table.samples if table.knows([key])])
    _ = [table.align, str(table.target), [w.error for w in table.wholes.values()]]
    json.dumps(table.to_json(), allow_nan=False)


def _read_arrays(folder: Path) -> None:
    _look(load_data(str(folder / "data.npz")))


def _look(data: Data) -> None:
    """The first image of each split there is."""
    for name in SplitName:
        images = getattr(data, str(name))
        if images is not None and len(images):
            images[0]


def _read_idx(folder: Path) -> None:
    _look(load_data(str(folder / "idx")))


def _read_images(folder: Path) -> None:
    images = load_data(str(folder / "images")).whole
    for index in range(len(images)):
        Preprocessing(size=(6, 6), channels=3)(images[index][0].unsqueeze(0))


READ = {
    "tokens": Expected(specs=(InputSpec(name="input_ids", shape=(1, 8), dtype=torch.int64, below=5),)),
    "rows": Expected(specs=(InputSpec(name="x", shape=(1, 3), dtype=torch.float32),)),
    "sound": Expected(specs=(InputSpec(name="x", shape=(1, 2, 12), dtype=torch.float32),)),
    "anything": Expected(),
}


def _read_data(name: str, of: str = "anything") -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        data = load_data(str(folder / name), expected=replace(READ[of], folders=(folder,)))
        _look(data)
        for item in (data.whole[index] for index in range(len(data.whole))):
            sample_of(item, READ[of].takes)

    return read


def _read_run(folder: Path) -> None:
    module, optimiser = good.training()
    run = good.run(module)
    epochs_done(folder / "train.state")
    restore_(folder / "train.state", module, optimiser, run)


def _read_weights(folder: Path) -> None:
    _ = StateAt(0, file=folder / "early.state", done=1).state


def _read_cell(folder: Path) -> None:
    dict(Folder(folder, good.noise()).result_of(good.CELL))


def _read_cell_weights(folder: Path) -> None:
    Folder(folder, good.noise()).state_of(good.CELL)


def _read_onnx(folder: Path) -> None:
    images = Images(torch.rand(3, *good.IMAGE[1:]), torch.tensor([0, 1, 0]))
    evaluate_onnx(folder / "net.onnx", images, split="test")


RECIPES = {
    "of-class": good.of_class,
    "of-skeleton": good.of_skeleton,
    "of-program": good.of_program,
    "sparse": good.sparse,
}
READERS: Mapping[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader(name="state.pt", file="state.pt", form=Form.ZIP, make=good.state, read=_read_state),
        Reader(name="whole.pt", file="whole.pt", form=Form.ZIP, make=good.pickled, read=_ask("whole.pt")),
        Reader(
            name="weights of any classes", file="whole.pt", form=Form.ZIP, make=good.pickled,
            read=lambda folder: weights_in(folder / "whole.pt"),
        ),
        Reader(
            name="weights in the first format", file="old.pt", form=Form.BYTES, make=good.pickled_first,
            read=lambda folder: weights_in(folder / "old.pt"),
        ),
        Reader(
            name="net.pt2", file="net.pt2", form=Form.ZIP, make=good.exported, weight=1,
            read=lambda folder: read_exported(folder / "net.pt2"),
        ),
        Reader(
            name="net.safetensors", file="net.safetensors", form=Form.SAFETENSORS, make=good.tensors,
            read=lambda folder: load(folder / "net.safetensors", arch=ARCH[1], inputs=(ARCH[3],)),
        ),
        *(
            Reader(
                name=f"recipe.json {name}", file=f"a/{RECIPE}", form=Form.JSON, make=make, read=_read_artifact,
                mend=_signed,
            )
            for name, make in RECIPES.items()
        ),
        Reader(
            name="skeleton", file="a/architecture.pt", form=Form.ZIP, make=good.of_skeleton, read=_read_artifact,
            mend=_signed,
        ),
        Reader(
            name="weights", file="a/model.safetensors", form=Form.SAFETENSORS, make=good.of_class, read=_read_artifact,
            mend=_signed,
        ),
        Reader(
            name="weights of a program", file="a/model.safetensors", form=Form.SAFETENSORS, make=good.of_program,
            read=_read_artifact, mend=_signed,
        ),
        Reader(
            name="sparse weights", file="a/sparse/sparse.safetensors", form=Form.SAFETENSORS, make=good.sparse,
            read=_read_artifact, mend=_signed,
        ),
        Reader(
            name="weights unsigned", file="a/model.safetensors", form=Form.BYTES, make=good.of_class,
            read=_read_artifact,
        ),
        Reader(name="results.json", file="a/results.json", form=Form.JSON, make=good.results, read=_read_results),
        Reader(name="measured.json", file="measured.json", form=Form.JSON, make=good.measured, read=_read_measured),
        Reader(name="latency table", file="table.json", form=Form.JSON, make=good.table, read=_read_table),
        Reader(name="data.npz", file="data.npz", form=Form.ZIP, make=good.arrays, read=_read_arrays),
        Reader(name="idx", file="idx/train-images-idx3-ubyte.gz", form=Form.GZIP, make=good.idx, read=_read_idx),
        Reader(name="idx labels", file="idx/train-labels-idx1-ubyte.gz", form=Form.GZIP, make=good.idx, read=_read_idx),
        *(
            Reader(
                name=f"image{suffix}", file=f"images/a/0{suffix}", form=Form.BYTES, make=good.images(suffix),
                read=_read_images, weight=2,
            )
            for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm")
        ),
        Reader(
            name="columns", file="rows.safetensors", form=Form.SAFETENSORS, make=good.columns,
            read=_read_data("rows.safetensors", "rows"),
        ),
        Reader(
            name="mask", file="masked/masks/0.png", form=Form.BYTES, make=good.boxes, read=_read_data("masked"),
            weight=2,
        ),
        *(
            Reader(name=f"YOLO's {file}", file=f"yolo/{file}", form=Form.BYTES, make=good.boxes, weight=2,
                   read=_read_data("yolo"))
            for file in ("labels/0.txt", "data.yaml")
        ),
        Reader(name="COCO's table", file="coco/test.json", form=Form.JSON, make=good.boxes, read=_read_data("coco")),
        *(
            Reader(name=name, file=name, form=form, make=good.texts, read=_read_data("texts.csv", "tokens"))
            for name, form in (("texts.csv", Form.BYTES), ("tokenizer.json", Form.JSON), ("config.json", Form.JSON))
        ),
        Reader(
            name="a.wav", file="sounds/a.wav", form=Form.BYTES, make=good.sounds, read=_read_data("sounds", "sound")
        ),
        Reader(name="train.state", file="train.state", form=Form.ZIP, make=good.kept_run, read=_read_run),
        Reader(name="early.state", file="early.state", form=Form.ZIP, make=good.kept_weights, read=_read_weights),
        Reader(name="study cell", file=f"{good.CELL.key}.json", form=Form.JSON, make=good.cell, read=_read_cell),
        Reader(
            name="study weights", file=f"{good.CELL.key}.safetensors", form=Form.SAFETENSORS, make=good.cell,
            read=_read_cell_weights,
        ),
        Reader(name="net.onnx", file="net.onnx", form=Form.BYTES, make=good.onnx_file, read=_read_onnx),
    )
}  # fmt: skip
