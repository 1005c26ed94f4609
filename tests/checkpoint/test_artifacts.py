"""Artifacts: what is written can be read, elsewhere and later, and nothing is ever half written."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compressor.checkpoint import artifact_writing
from compressor.checkpoint.artifact_writing import add_results, write_artifact
from compressor.checkpoint.artifacts import Artifact, load_artifact, open_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.data.preprocessing import Preprocessing
from compressor.errors import ArtifactError
from compressor.graph.outputs import outputs_of
from compressor.jobs.prune import prune_to
from compressor.pruning.pipeline import prune
from compressor.pruning.request import MaskRequest, Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget


@pytest.fixture
def small(samples: Path) -> Checkpoint:
    return prune(load(samples / "fashion_resnet20.pt"), Request(budget=ChannelBudget(ratio=0.5))).checkpoint


def write(folder: Path, small: Checkpoint, **options: bool) -> Artifact:
    source = {"path": small.path, "sha256": small.sha256}
    return write_artifact(folder, small, source=source, results=Results(), **options)


def test_what_is_written_is_read_back_bit_by_bit(workdir: Path, small: Checkpoint) -> None:
    write(workdir / "a.compressed", small)
    again = load_artifact(workdir / "a.compressed")
    assert all(torch.equal(v, again.module.state_dict()[k]) for k, v in small.module.state_dict().items())
    assert (again.name, again.classes, again.preprocessing) == (small.name, small.classes, small.preprocessing)
    assert again.lineage == tuple(json.loads(json.dumps(small.lineage)))
    assert again.training == small.training


def test_it_loads_in_a_fresh_process_from_another_folder(workdir: Path, small: Checkpoint) -> None:
    folder = write(workdir / "a.compressed", small, verify=False).folder.resolve()
    code = (
        "import sys, compressor, torch; m = compressor.load(sys.argv[1]).module;"
        "print(sum(p.numel() for p in m.parameters()), type(m).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd="/", check=True
    )
    count = sum(p.numel() for p in small.module.parameters())
    assert done.stdout.split() == [str(count), "ResNet"]


def test_an_artifact_that_does_not_come_back_is_refused_and_leaves_nothing(
    workdir: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = artifact_writing.recipe_of

    def broken(checkpoint: Checkpoint, *, source: dict[str, str]) -> dict[str, object]:
        recipe = whole(checkpoint, source=source)
        recipe["surgery"] = {"slices": {}, "attributes": {}}
        return recipe

    monkeypatch.setattr(artifact_writing, "recipe_of", broken)
    with pytest.raises(ArtifactError, match="does not load in a fresh process"):
        write(workdir / "a.compressed", small)
    assert list(workdir.iterdir()) == []


def test_a_changed_file_is_refused(workdir: Path, small: Checkpoint) -> None:
    folder = write(workdir / "a.compressed", small, verify=False).folder
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="changed since it was written"):
        load_artifact(folder)


def test_a_folder_in_the_way_is_left_as_it_is(workdir: Path, small: Checkpoint) -> None:
    (workdir / "mine").mkdir()
    (workdir / "mine" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(ArtifactError, match="in the way"):
            write(workdir / "mine", small, force=force)
    (workdir / "file").write_text("a file")
    with pytest.raises(ArtifactError, match="in the way"):
        write(workdir / "file", small, force=True)
    assert (workdir / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_artifact_is_replaced_only_by_force(workdir: Path, small: Checkpoint) -> None:
    folder = write(workdir / "a.compressed", small, verify=False).folder
    add_results(folder, command="mine")
    with pytest.raises(ArtifactError, match="there already"):
        write(workdir / "a.compressed", small)
    assert open_artifact(folder).results().command == "mine"
    write(workdir / "a.compressed", small, force=True, verify=False)
    assert open_artifact(folder).results().command is None


def test_a_full_disk_leaves_the_old_artifact_whole(
    workdir: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(workdir / "a.compressed", small, verify=False).folder

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact_writing, "write_json", full)
    with pytest.raises(ArtifactError, match="No space left"):
        write(workdir / "a.compressed", small, force=True)
    monkeypatch.undo()
    assert load_artifact(folder).name == small.name
    assert [p.name for p in workdir.iterdir()] == ["a.compressed"]


def test_an_interruption_leaves_nothing_half_written(
    workdir: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact_writing, "_read_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(workdir / "a.compressed", small)
    assert list(workdir.iterdir()) == []


def test_the_newest_artifact_is_taken_and_said_so(workdir: Path, small: Checkpoint) -> None:
    with pytest.raises(ArtifactError, match="no artifact in this folder"):
        open_artifact()
    write(workdir / "old.compressed", small, verify=False)
    write(workdir / "new.compressed", small, verify=False)
    os.utime(workdir / "old.compressed" / "recipe.json", ns=(1, 1))
    assert open_artifact().folder == Path("new.compressed")
    assert open_artifact().taken_by_default
    assert not open_artifact(workdir / "old.compressed").taken_by_default


def test_what_is_no_artifact_is_refused(workdir: Path) -> None:
    with pytest.raises(ArtifactError, match="is not there"):
        open_artifact(workdir / "nowhere")
    (workdir / "empty").mkdir()
    with pytest.raises(ArtifactError, match="not an artifact"):
        open_artifact(workdir / "empty")
    (workdir / "empty" / "recipe.json").write_text('{"schema": 99}')
    with pytest.raises(ArtifactError, match="schema 99"):
        open_artifact(workdir / "empty")
    (workdir / "empty" / "recipe.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot read"):
        open_artifact(workdir / "empty")


def test_the_dense_network_is_found_again_and_checked(workdir: Path, samples: Path, small: Checkpoint) -> None:
    folder = write(workdir / "a.compressed", small, verify=False).folder
    assert open_artifact(folder).dense().sha256 == small.sha256
    with pytest.raises(ArtifactError, match="sha256 differs"):
        open_artifact(folder).dense(samples / "fashion_resnet20.early.pt")
    with pytest.raises(ArtifactError, match="is not at"):
        open_artifact(folder).dense(workdir / "gone.pt")


def test_an_artifact_made_of_an_artifact_finds_what_it_was_made_of(workdir: Path, small: Checkpoint) -> None:
    first = write(workdir / "a.compressed", small, verify=False).folder
    prune_to(workdir / "b.compressed", load(first), Request(budget=ChannelBudget(ratio=0.25)))
    dense = open_artifact(workdir / "b.compressed").dense()
    assert dense.path == str(first)
    ours, theirs = dense.module.state_dict(), small.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_masked_artifact_is_stored_sparse_and_comes_back(workdir: Path, samples: Path) -> None:
    dense = load(samples / "fashion_mobilenet_v2.pt")
    results = prune_to(workdir / "m.compressed", dense, MaskRequest(sparsity=0.9))
    again = load_artifact(workdir / "m.compressed")
    mask = open_artifact(workdir / "m.compressed").mask()
    assert mask is not None
    assert mask.sparsity == pytest.approx(0.9, abs=1e-4)
    for name, kept in mask.kept.items():
        weight = again.module.state_dict()[name]
        assert torch.equal(weight, dense.module.state_dict()[name] * kept)
    masking = results.to_json()["mask"]
    assert masking["stored_bytes"] < 0.3 * masking["dense_bytes"]
    assert "not time" in masking["statement"]
    assert not (workdir / "m.compressed" / "model.safetensors").exists()
    assert outputs_of(again.module, dense.example_inputs)[0].shape == (1, 10)


def test_the_dense_network_sees_what_the_small_one_was_made_to_see(workdir: Path, samples: Path) -> None:
    """A file of weights says nothing of its normalisation: the artifact does."""
    state = load(samples / "fashion_resnet20.pt").module.state_dict()
    torch.save(state, workdir / "bare.pt")
    bare = load(workdir / "bare.pt", arch="sample_models.networks:resnet20", inputs=("1x1x28x28",))
    seen = Preprocessing(mean=(0.2,), std=(0.4,), size=(28, 28), channels=1)
    told = dataclasses.replace(bare, preprocessing=seen)
    small = prune(told, Request(budget=ChannelBudget(ratio=0.5))).checkpoint
    source = {"path": str(workdir / "bare.pt"), "sha256": bare.sha256}
    artifact = write_artifact(workdir / "a.compressed", small, source=source, results=Results())
    assert artifact.dense().preprocessing == seen
