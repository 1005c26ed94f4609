"""The artifact: a folder with the small network's weights, the recipe that rebuilds it, and everything measured.

`recipe.json` and `model.safetensors` are enough to load it, without the original pickle. `results.json` has the
measurements; `model.onnx` and `report.html` are added by their commands. Files appear whole or not at all, and a fresh
process reads the folder back before the command reports success.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.checkpoint import forms
from compressor.children import python_code
from compressor.errors import ArtifactError, CheckpointError
from compressor.files.atomic import exchanged, save_tensors
from compressor.files.json_files import read_json as read_json
from compressor.files.json_files import write_json as write_json
from compressor.files.leftovers import OLD, PART, beside, sweep, temporary
from compressor.files.schema import check
from compressor.results.artifact import Results
from compressor.results.changes import Masking

if TYPE_CHECKING:
    from compressor.checkpoint.architectures import Architecture
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.data.splits import Preprocessing
    from compressor.graph.input_spec import InputSpec
    from compressor.surgery.masks import WeightMask

SCHEMA = 2  # schema 1 hashed only the files, not the program and the numbers in the recipe itself
FORMS = {1: forms.RECIPE_1, 2: forms.RECIPE_2}
EDITED = "it was edited, or is incomplete: prune again, or use the original copy"
UNBUILDABLE = (
    KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError, AssertionError,
    RecursionError, NotImplementedError,
)  # fmt: skip  # the errors of torch and fx for numbers and names that describe no network
SUFFIX = ".compressed"
RECIPE, WEIGHTS, RESULTS, ONNX = "recipe.json", "model.safetensors", "results.json", "model.onnx"
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
        from compressor.checkpoint.reading import load_file, with_inputs

        source = self.recipe["source"]
        file = Path(source["path"]) if path is None else path
        if not file.exists():
            raise ArtifactError(f"the dense network is not at {file}", hint="set its path: `--dense PATH`")
        architecture = self.recipe["architecture"]
        arch = None if architecture["ref"] in ("pickle", "program") else architecture["ref"]
        if arch is not None:  # a file that the recipe names runs only if the user has named it before
            check_harmless(_architecture(architecture))
        inputs = _specs(self.recipe)
        if file.is_dir():
            dense = with_inputs(load_artifact(file, trust_pickle=trust_pickle), inputs)
        else:
            arguments = tuple((k, v) for k, v in architecture["arguments"])
            dense = load_file(file, arch=arch, arch_arguments=arguments, inputs=inputs, trust_pickle=trust_pickle)
        if dense.sha256 != source["sha256"]:
            raise ArtifactError(
                f"{file} is not the network that {self.folder.name} was made from: its sha256 differs",
                hint="prune it again, or set the original's path: `--dense PATH`",
            )
        return replace(dense, preprocessing=_preprocessing(self.recipe))  # the same preprocessing as the small network


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


def sealed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with the hash of everything that it computes with: all its fields, except the dense network's
    path.
    """
    covered = {key: value for key, value in recipe.items() if key != "sha256"}
    covered["source"] = {key: value for key, value in recipe["source"].items() if key != "path"}
    content = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return {**recipe, "sha256": hashlib.sha256(content.encode()).hexdigest()}


def load_artifact(folder: Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Return the small network in `folder`. Refused: a missing or changed file."""
    import torch

    from compressor.checkpoint.architectures import build, check_harmless
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.checkpoint.pickled_structure import read_skeleton
    from compressor.checkpoint.recipes import recipe_from_json
    from compressor.graph.input_spec import TYPES, drawn_from
    from compressor.graph.precision import in_precision_
    from compressor.graph.recorded import program_from
    from compressor.surgery.surgery import put_state_, reshaped, surgery_from_json

    recipe = open_artifact(folder).recipe
    specs = _specs(recipe)
    for name, expected in recipe["files"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != expected:
            raise ArtifactError(f"{folder / name} is missing or was changed since it was written", hint="prune again")
    architecture = _architecture(recipe["architecture"])
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
    types = {name: TYPES[kind] for name, kind in recipe.get("types", {}).items()}
    if types:
        in_precision_(module, torch.float32)
    return Checkpoint(
        module=module,
        example_inputs=drawn_from(specs),
        architecture=architecture,
        preprocessing=_preprocessing(recipe),
        classes=tuple(recipe["classes"]) if recipe["classes"] else None,
        lineage=tuple(recipe["lineage"]),
        training=recipe_from_json(recipe["training"]) if recipe["training"] else None,
        name=recipe["name"],
        path=str(folder),
        sha256=recipe_sha256(recipe),
        surgery=surgery,
        input_specs=specs,
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


def recipe_sha256(recipe: Mapping[str, Any]) -> str:
    """Return the hash of the whole artifact; with schema 1, of its files alone."""
    if recipe["schema"] >= 2:
        return str(recipe["sha256"])
    return hashlib.sha256(json.dumps(recipe["files"], sort_keys=True).encode()).hexdigest()


def _preprocessing(recipe: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing in the recipe."""
    from compressor.data.splits import Preprocessing

    plain = recipe["preprocessing"]
    return Preprocessing(
        mean=tuple(plain["mean"]),
        std=tuple(plain["std"]),
        size=tuple(plain["size"]) if plain["size"] else None,
        channels=plain["channels"],
    )


def _architecture(plain: Mapping[str, Any]) -> Architecture:
    """The architecture in the recipe."""
    from compressor.checkpoint.architectures import Architecture

    arguments = tuple((k, v) for k, v in plain["arguments"])
    return Architecture(ref=plain["ref"], arguments=arguments, sha256=plain["sha256"])


def _specs(recipe: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    """The network's inputs; recipes of earlier versions have only shapes and types, and their integers are zeros."""
    from compressor.graph.input_spec import TYPES, InputSpec, spec_from_json

    if "inputs" in recipe:
        return tuple(map(spec_from_json, recipe["inputs"]))
    return tuple(
        InputSpec(shape=tuple(shape), dtype=TYPES[kind], low=low, below=below)
        for shape, kind in zip(recipe["input"], recipe["dtypes"], strict=True)
        for low, below in [(None, None) if TYPES[kind].is_floating_point else (0, 1)]
    )


def recipe_of(checkpoint: Checkpoint, *, source: Mapping[str, str]) -> dict[str, Any]:
    """Return the recipe that rebuilds the small network, as plain values."""
    from compressor.graph.input_spec import specs_of
    from compressor.surgery.surgery import Surgery

    architecture, preprocessing = checkpoint.architecture, checkpoint.preprocessing
    return {
        "schema": SCHEMA,
        "name": checkpoint.name,
        "architecture": {
            "ref": architecture.ref,
            "arguments": [list(pair) for pair in architecture.arguments],
            "sha256": architecture.sha256,
        },
        "source": dict(source),
        "input": [list(t.shape) for t in checkpoint.example_inputs],
        "dtypes": [str(t.dtype).removeprefix("torch.") for t in checkpoint.example_inputs],
        "inputs": [spec.to_json() for spec in checkpoint.input_specs or specs_of(checkpoint.example_inputs)],
        "types": {name: str(dtype).removeprefix("torch.") for name, dtype in checkpoint.types.items()},
        "preprocessing": {
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "size": list(preprocessing.size) if preprocessing.size else None,
            "channels": preprocessing.channels,
        },
        "classes": list(checkpoint.classes) if checkpoint.classes else None,
        "training": checkpoint.training.to_json() if checkpoint.training else None,
        "surgery": (checkpoint.surgery or Surgery()).to_json(),
        "lineage": list(checkpoint.lineage),
    }


def check_free(folder: Path, *, force: bool) -> None:
    """Refuse a path with other content; `force` allows an artifact to be replaced, and nothing else."""
    try:
        _check_free(folder, force=force)
    except OSError as error:  # a name that is too long, a loop of links
        raise ArtifactError(
            f"cannot write {folder}: {error.strerror or error}", hint="choose another place: `--out DIR`"
        ) from error


def _check_free(folder: Path, *, force: bool) -> None:
    if len(os.fsencode(beside(folder, PART).name)) > LONGEST_NAME:
        raise ArtifactError(f"the name {folder.name[:40]}… is too long", hint="choose a shorter one: `--out DIR`")
    if folder.is_symlink() and not folder.exists():
        raise ArtifactError(f"{folder} is a link to nothing", hint="choose another place: `--out DIR`")
    if not folder.exists():
        parent = next(p for p in folder.resolve().parents if p.exists())
        if not os.access(parent, os.W_OK):
            raise ArtifactError(f"cannot write to {parent}", hint="choose another place: `--out DIR`")
        return
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is in the way: it is a file", hint="choose another place: `--out DIR`")
    if not (folder / RECIPE).is_file() and any(folder.iterdir()):
        raise ArtifactError(f"{folder} is in the way: it is not an artifact", hint="choose another place: `--out DIR`")
    if (folder / RECIPE).is_file() and not force:
        raise ArtifactError(
            f"{folder} is there already", hint="replace it with `--force`, or choose another: `--out DIR`"
        )


def write_artifact(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    source: Mapping[str, str],
    results: Results,
    force: bool = False,
    verify: bool = True,
    trust_pickle: bool = False,
    mask: WeightMask | None = None,
) -> Artifact:
    """Write the small network to `folder`, whole or not at all, and read it back in a fresh process.

    With `mask` the weights are stored sparse, and the table of the saved bytes is added to the results under `mask`.
    Refused: a folder with other content, a full disk, an artifact that a fresh process reads back differently.
    """
    import torch
    from safetensors import SafetensorError

    from compressor.checkpoint.sparse import write_sparse
    from compressor.graph.precision import rounded, type_of

    check_free(folder, force=force)
    # safetensors has no type for complex numbers in double precision
    types = {name: dtype for name, dtype in checkpoint.types.items() if dtype is not torch.complex128}
    if types:
        checkpoint = replace(checkpoint, module=rounded(checkpoint.module, types))
    place = folder.resolve()  # a link's target is replaced; the link stays
    sweep(place.parent)
    part = beside(place, PART)
    try:
        part.mkdir(parents=True)
        state = {
            k: v.detach().to("cpu", type_of(k, v, types)).contiguous().clone()
            for k, v in checkpoint.module.state_dict().items()
        }
        if mask is None:
            save_tensors(state, part / WEIGHTS, metadata={MARK: str(SCHEMA)})
        else:
            (part / SPARSE).mkdir()
            table = write_sparse(part / SPARSE, state, mask, marks={MARK: str(SCHEMA)})
            results = replace(results, masking=table.on(results.masking or Masking()))
        as_class = checkpoint.surgery is None or checkpoint.surgery.program is None
        if checkpoint.architecture.ref == "pickle" and as_class:
            _write_skeleton(checkpoint, part / SKELETON)
        recipe = recipe_of(checkpoint, source=source)
        recipe["files"] = {str(p.relative_to(part)): sha256_of(p) for p in sorted(part.rglob("*")) if p.is_file()}
        write_json(part / RECIPE, sealed(recipe))
        write_json(part / RESULTS, results.to_json())
        if verify:
            _read_back(part, checkpoint, trust_pickle=trust_pickle)
        put_in_place(part, place)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        why = error.strerror if isinstance(error, OSError) else None
        raise ArtifactError(f"cannot write {folder}: {why or error}", hint="free some space, or `--out DIR`") from error
    finally:
        if part.exists():
            shutil.rmtree(part, ignore_errors=True)
    return open_artifact(folder)


def put_in_place(part: Path, place: Path) -> None:
    """Rename the folder `part` to `place`, and delete the folder that was there.

    At any moment one of both exists or can be restored: where the system cannot swap two names atomically, a process
    that is killed between the two renames leaves the old folder under a name that the next process's `sweep` restores.
    """
    if not place.exists():
        part.rename(place)
        return
    if exchanged(part, place):
        shutil.rmtree(part, ignore_errors=True)  # after the swap it is the old folder
        return
    old = beside(place, OLD)
    place.rename(old)
    try:
        part.rename(place)
    except BaseException:  # an interruption too: the old folder stays
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_skeleton(checkpoint: Checkpoint, file: Path) -> None:
    """Write the module's structure."""
    from compressor.checkpoint.pickled_structure import write_skeleton

    try:
        write_skeleton(checkpoint.module, file)
    except RuntimeError as error:  # torch raises it when the disk is full
        raise OSError(str(error)) from error


def _read_back(folder: Path, checkpoint: Checkpoint, *, trust_pickle: bool) -> None:
    """Load the folder in a fresh process and compare its outputs, within rounding."""
    from safetensors.torch import save_file

    from compressor.graph.lent import single_threaded
    from compressor.graph.outputs import outputs_of

    with temporary("probe") as scratch:
        probe = scratch / "probe.safetensors"
        inputs = list(checkpoint.example_inputs)
        with single_threaded():  # as the fresh process does: another order of sums may choose other detections
            outputs = outputs_of(checkpoint.module.eval(), inputs)
        tensors = {f"input{i}": t for i, t in enumerate(inputs)} | {f"output{i}": t for i, t in enumerate(outputs)}
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, probe)
        code = "from compressor.checkpoint.artifacts import read_back; read_back(*sys.argv[1:])"
        done = subprocess.run(
            python_code(code, str(folder), str(probe), "trust" if trust_pickle else ""),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
        raise ArtifactError(
            f"the artifact does not load in a fresh process: {last}", hint="please report this as a bug"
        )


def read_back(folder: str, probe: str, trust: str = "") -> None:
    """Load the artifact, in a fresh process, and compare its outputs with those in `probe`."""
    import torch
    from safetensors.torch import load_file

    from compressor.graph.outputs import outputs_of, relative_difference

    tensors = load_file(probe)
    inputs = [tensors[f"input{i}"] for i in range(len(tensors)) if f"input{i}" in tensors]
    expected = [tensors[f"output{i}"] for i in range(len(tensors)) if f"output{i}" in tensors]
    module = load_artifact(Path(folder), trust_pickle=bool(trust)).module
    torch.set_num_threads(1)
    answers = outputs_of(module, inputs)
    for answer, reference in zip(answers, expected, strict=True):
        difference = relative_difference(answer, reference)
        if difference > 1e-5:
            raise ArtifactError(
                f"outputs differ by {difference:.2g} after reloading", hint="please report this as a bug"
            )


def add_results(folder: Path, **sections: Any) -> None:
    """Store the sections, named as the fields of `Results`, in the folder's results, whole or not at all."""
    results = replace(open_artifact(folder).results(), **sections)
    write_json(folder / RESULTS, results.to_json())


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror or error}", hint="check the path and its permissions"
        ) from error
