"""The artifact: a folder with the small network's weights, the recipe that rebuilds it, and everything measured.

`recipe.json` and `model.safetensors` are enough to load it, without the original pickle. `results.json` has the
measurements; `model.onnx` and `report.html` are added by their commands. Files appear whole or not at all, and a fresh
process reads the folder back before the command reports success.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.checkpoint import forms
from compressor.checkpoint.artifact_recipe import architecture_in, preprocessing_in, recipe_sha256, sealed, specs_in
from compressor.errors import ArtifactError, CheckpointError
from compressor.files.json_files import read_json
from compressor.files.leftovers import sweep
from compressor.files.model_folders import RECIPE as RECIPE  # of an artifact, so what others take from here
from compressor.files.model_folders import is_model_folder
from compressor.files.schema import check
from compressor.results.artifact import Results

if TYPE_CHECKING:
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.surgery.masks import WeightMask

FORMS = {1: forms.RECIPE_1, 2: forms.RECIPE_2}
EDITED = "it was edited, or is incomplete: prune again, or use the original copy"
UNBUILDABLE = (
    KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError, AssertionError,
    RecursionError, NotImplementedError,
)  # fmt: skip  # the errors of torch and fx for numbers and names that describe no network
SUFFIX = ".compressed"
WEIGHTS, RESULTS, ONNX = "model.safetensors", "results.json", "model.onnx"
INT8 = "model.int8.onnx"
SKELETON = "architecture.pt"
PICKLE = "pickle"  # the reference of a module that was pickled, as in `checkpoint.architectures`
LONGEST_NAME = 255  # bytes, on every usual file system
SPARSE_FILE = "sparse/sparse.safetensors"
MARK = "artifact"  # key in the weights' own metadata: the schema that they were written with
SPARSE = "sparse"  # the folder of a masked network's weights, instead of WEIGHTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact's folder and its recipe; `taken_by_default` if the user named none."""

    folder: Path
    recipe: Mapping[str, Any]
    taken_by_default: bool = False

    @property
    def onnx(self) -> Path:
        """The path of its ONNX file, once exported."""
        return self.folder / ONNX

    def results(self) -> Results:
        """Return everything measured so far."""
        file = self.folder / RESULTS
        return Results.from_json(read_json(file), place=str(file)) if file.exists() else Results()

    @property
    def caveats(self) -> tuple[str, ...]:
        """What is less certain about it than about other artifacts."""
        if self.recipe["schema"] >= 2:
            return ()
        return (
            f"{self.folder} is of schema 1: its hash covers its files, but not the network in its recipe; "
            "prune again for one that covers all",
        )

    def checkpoint(self, *, trust_pickle: bool = False) -> Checkpoint:
        """Return the small network."""
        return load_artifact(self.folder, trust_pickle=trust_pickle)

    def mask(self) -> WeightMask | None:
        """Return the mask of an unstructured artifact; `None` for others."""
        from compressor.checkpoint.sparse import read_sparse

        return read_sparse(self.folder / SPARSE).mask if SPARSE_FILE in self.recipe["files"] else None

    def dense(self, path: Path | None = None, *, trust_pickle: bool = False) -> Checkpoint:
        """Return the network that it was made from. Refused: a missing file, or one that has changed."""
        from compressor.checkpoint.architectures import check_harmless
        from compressor.checkpoint.folders import load_folder
        from compressor.checkpoint.reading import load_file, with_inputs

        source = self.recipe["source"]
        file = Path(source["path"]) if path is None else path
        if not file.exists():
            raise ArtifactError(f"the dense network is not at {file}", hint="set its path: `--dense PATH`")
        architecture = architecture_in(self.recipe["architecture"])
        arch = None if architecture.ref in ("pickle", "program") else architecture
        if arch is not None:  # code that the recipe names runs only if the user has named it before
            check_harmless(arch)
        inputs, outputs = specs_in(self.recipe), self.recipe.get("outputs", ())
        if is_model_folder(file):
            dense = load_folder(file, inputs=inputs, complete=True, outputs=outputs, trust_pickle=trust_pickle)
        elif file.is_dir():
            dense = with_inputs(load_artifact(file, trust_pickle=trust_pickle), inputs)
        else:
            dense = load_file(
                file, arch=arch, inputs=inputs, outputs=outputs, key=source.get("key"), trust_pickle=trust_pickle
            )
        if dense.sha256 != source["sha256"]:
            raise ArtifactError(
                f"{file} is not the network that {self.folder.name} was made from: its sha256 differs",
                hint="prune it again, or set the original's path: `--dense PATH`",
            )
        return replace(dense, preprocessing=preprocessing_in(self.recipe))  # as the small network's


def open_artifact(path: Path | None = None) -> Artifact:
    """Return the artifact in the folder `path`, or the newest one in the working folder.

    Refused: a missing folder, one that is not an artifact or has a newer schema, no artifact at all.
    """
    if path is not None and not os.path.lexists(path):
        sweep(path.absolute().parent)  # restores it if a process was killed while replacing it
    if path is None:
        recipes = sorted(Path.cwd().glob(f"*{SUFFIX}/{RECIPE}"), key=lambda p: p.stat().st_mtime_ns)
        if not recipes:
            raise ArtifactError(
                "there is no artifact in this folder", hint="make one: `compress prune model.pt --ratio 0.5`"
            )
        folder = recipes[-1].parent.relative_to(Path.cwd())
    else:
        folder = path
        if not folder.is_dir() or not (folder / RECIPE).is_file():
            what = "is not an artifact: it holds no recipe.json" if folder.exists() else "is not there"
            raise ArtifactError(
                f"{folder} {what}", hint="use a folder that `compress prune` wrote, or none for the newest"
            )
    recipe = read_json(folder / RECIPE)
    schema = recipe.get("schema")
    if type(schema) is not int or schema not in FORMS:
        raise ArtifactError(
            f"{folder} has schema {str(schema)[:40]}, and this version reads {' and '.join(map(str, FORMS))}",
            hint="update the package, or make it again with this version",
        )
    check(recipe, FORMS[schema], where=str(folder / RECIPE), hint=EDITED)
    _check_files(folder, recipe)
    return Artifact(folder=folder, recipe=recipe, taken_by_default=path is None)


def _check_files(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse a recipe that lacks files or that was changed, as far as its schema's hash covers it."""
    needed = {WEIGHTS} if WEIGHTS in recipe["files"] else {SPARSE_FILE}
    if recipe["architecture"]["ref"] == PICKLE and not recipe["surgery"].get("program"):
        needed.add(SKELETON)
    if recipe["files"].keys() != needed:
        raise ArtifactError(
            f"{folder / RECIPE}: `files` lists {', '.join(recipe['files']) or 'none'}, and this network needs "
            f"{' and '.join(sorted(needed))}",
            hint=EDITED,
        )
    if recipe["schema"] >= 2 and recipe["sha256"] != sealed(recipe)["sha256"]:
        raise ArtifactError(
            f"{folder / RECIPE} was changed since it was written: its sha256 is of another recipe", hint=EDITED
        )


def load_artifact(folder: Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Return the small network in `folder`. Refused: a missing or changed file."""
    import torch

    from compressor.checkpoint.architectures import build, check_harmless
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.checkpoint.pickles.skeletons import read_skeleton
    from compressor.checkpoint.recipes import recipe_from_json
    from compressor.graph.calling import calling_
    from compressor.graph.input_spec import TYPES, drawn_from
    from compressor.graph.precision import in_precision_
    from compressor.graph.recorded import program_from
    from compressor.surgery.surgery import put_state_, reshaped, surgery_from_json

    recipe = open_artifact(folder).recipe
    specs = specs_in(recipe)
    for name, expected in recipe["files"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != expected:
            raise ArtifactError(f"{folder / name} is missing or was changed since it was written", hint="prune again")
    architecture = architecture_in(recipe["architecture"])
    surgery = surgery_from_json(recipe["surgery"])
    state, mark = _state(folder, recipe)
    if recipe["schema"] < int(mark):
        raise ArtifactError(
            f"{folder / RECIPE} says that it is of schema {recipe['schema']}, and its weights are of schema {mark}",
            hint=EDITED,
        )
    try:
        if surgery.program is not None:
            module: Any = program_from(surgery.program, state)
            put_state_(module, state)
        elif architecture.ref == PICKLE:
            module = read_skeleton(folder / SKELETON, trust_pickle=trust_pickle)  # in the small shapes already
            put_state_(module, state, assign=True)
            for parameter in module.parameters():
                parameter.requires_grad_(True)
        else:
            check_harmless(architecture)
            module = reshaped(build(architecture), surgery, state)
    except UNBUILDABLE as error:
        raise ArtifactError(
            f"{folder}: the recipe describes no network that can be built: {type(error).__name__}: {error}",
            hint=EDITED,
        ) from error
    module.eval()
    if surgery.program is None:
        calling_(module, inputs=[s.name for s in specs if s.name is not None], outputs=recipe.get("outputs", ()))
    types = {name: TYPES[kind] for name, kind in recipe.get("types", {}).items()}
    if types:
        in_precision_(module, torch.float32)
    return Checkpoint(
        module=module,
        example_inputs=drawn_from(specs),
        architecture=architecture,
        preprocessing=preprocessing_in(recipe),
        classes=tuple(recipe["classes"]) if recipe["classes"] else None,
        lineage=tuple(recipe["lineage"]),
        training=recipe_from_json(recipe["training"]) if recipe["training"] else None,
        name=recipe["name"],
        path=str(folder),
        sha256=recipe_sha256(recipe),
        surgery=surgery,
        input_specs=specs,
        outputs=tuple(recipe.get("outputs", ())),
        types=types,
    )


def _state(folder: Path, recipe: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The weights, and the schema in their own metadata."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    from compressor.checkpoint.sparse import read_sparse

    masked = SPARSE_FILE in recipe["files"]
    file = folder / (SPARSE_FILE if masked else WEIGHTS)
    try:
        with safe_open(file, framework="pt") as opened:
            mark = (opened.metadata() or {}).get(MARK, "1")
        if not mark.isdecimal() or len(mark) > 3:
            raise ArtifactError(f"{file} says that it is of schema {mark[:40]!r}", hint=EDITED)
        return (read_sparse(folder / SPARSE).state if masked else load_file(file)), mark
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ArtifactError(f"{file} is not a complete safetensors file: {error}", hint="prune again") from error


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror or error}", hint="check the path and its permissions"
        ) from error
