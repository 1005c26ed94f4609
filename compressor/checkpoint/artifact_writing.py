"""Write an artifact: the whole folder or nothing, read back in a fresh process before it takes its place."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.checkpoint.artifact_recipe import SCHEMA, recipe_of, sealed
from compressor.checkpoint.artifacts import (
    LONGEST_NAME,
    MARK,
    RECIPE,
    RESULTS,
    SKELETON,
    SPARSE,
    WEIGHTS,
    Artifact,
    load_artifact,
    open_artifact,
    sha256_of,
)
from compressor.children import python_code
from compressor.errors import ArtifactError
from compressor.files.atomic import put_in_place, save_tensors
from compressor.files.json_files import write_json
from compressor.files.leftovers import PART, beside, sweep, temporary
from compressor.results.artifact import Results
from compressor.results.changes import Masking

if TYPE_CHECKING:
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.surgery.masks import WeightMask


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


def _write_skeleton(checkpoint: Checkpoint, file: Path) -> None:
    """Write the module's structure."""
    from compressor.checkpoint.pickles.skeletons import write_skeleton

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
        code = "from compressor.checkpoint.artifact_writing import read_back; read_back(*sys.argv[1:])"
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
