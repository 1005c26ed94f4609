"""References in files build networks of a registry, with numbers as arguments: no function of the file's choosing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.checkpoint.architectures import Architecture, architecture_from_user, build, check_harmless
from compressor.checkpoint.artifact_recipe import sealed
from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import open_artifact
from compressor.checkpoint.loading import load
from compressor.errors import ArchitectureError, CompressError
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget
from sample_models.networks import small_cnn
from tests.support.command_line import full_disk

FUNCTIONS = [
    "torchvision._internally_replaced_utils:load_state_dict_from_url",
    "torchvision.models:get_model",
    "torchvision.datasets.utils:download_url",
    "torchvision.datasets:MNIST",
    "torchvision.models.resnet:resnet18",
    "torchvision.models:resnet18",
    "torchvision.io:write_file",
    "timm.models._helpers:load_state_dict",
    "timm.models:create_model",
    "timm.utils.summary:get_outdir",
    "timm:hf-hub:someone/net",
    "timm:local-dir:/tmp",
    "sample_models.train:main",
    "sample_models.networks:nn.Linear",
    "sample_models.networks:conv_norm",
    "sample_models.networks:__builtins__",
    "torchvision",
    "torchvision:",
    "torchvision:a b",
    "os:system",
    "",
]


@pytest.mark.parametrize("ref", FUNCTIONS)
def test_functions_of_known_packages_are_not_networks(ref: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        check_harmless(Architecture(ref=ref))
    assert caught.value.hint


ARGUMENTS: list[tuple[str, Any]] = [
    ("weights", "DEFAULT"), ("weights_backbone", "DEFAULT"), ("pretrained", True), ("pretrained_cfg", {"url": "x"}),
    ("pretrained_cfg_overlay", {}), ("checkpoint_path", "p.pt"), ("cache_dir", "x"), ("progress", True),
    ("features_only", True), ("feature_cls", "fx"), ("out_indices", [1]), ("scriptable", True), ("exportable", True),
    ("num_classes", "file:///x"), ("num_classes", 10**12), ("num_classes", {"a": 1}), ("num_classes", float("inf")),
    ("num_classes", [[1] * 1000]), ("norm_layer", "torch.nn:Linear"), ("a b", 1), ("__class__=x", 1), (3, 1),
    ("url", 1), ("model_dir", 1), ("block", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ARGUMENTS)
@pytest.mark.parametrize("ref", ["torchvision:resnet18", "timm:resnet18", "sample_models.networks:small_cnn"])
def test_arguments_are_numbers_of_harmless_names(ref: str, name: Any, value: Any) -> None:
    with pytest.raises(ArchitectureError) as caught:
        check_harmless(Architecture(ref=ref, arguments=((name, value),)))
    assert str(caught.value).isprintable()
    assert caught.value.hint


def test_networks_of_the_registries_are_built() -> None:
    for ref, arguments in {
        "torchvision:resnet18": {"num_classes": 7},
        "torchvision:googlenet": {"aux_logits": False, "init_weights": False, "num_classes": 3},
        "timm:vit_tiny_patch16_224": {"img_size": [32, 32], "patch_size": 8, "global_pool": "avg"},
        "sample_models.networks:small_cnn": {"widths": [4, 4, 10], "inputs": 1},
    }.items():
        architecture = Architecture(ref=ref, arguments=tuple(arguments.items()))
        check_harmless(architecture)
        assert isinstance(build(architecture), nn.Module)


def test_what_the_user_names_another_way_is_written_as_the_registry_has_it() -> None:
    architecture = architecture_from_user("torchvision.models.resnet:resnet18")
    assert architecture.ref == "torchvision:resnet18"
    check_harmless(architecture)


def test_an_artifact_calls_nothing_of_its_recipes_choosing(workdir: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (workdir / "ran",)

    torch.save([Runs()], workdir / "p.pt")
    torch.save(
        {"state_dict": small_cnn().state_dict(), "architecture": "sample_models.networks:small_cnn"}, workdir / "net.pt"
    )
    found = load(workdir / "net.pt", inputs=("1x1x16x16",))
    small = prune(found, Request(budget=ChannelBudget(ratio=0.5), align=1))
    write_artifact(
        workdir / "a.compressed",
        small.checkpoint,
        source={"path": "net.pt", "sha256": "0" * 64},
        results=Results(),
        verify=False,
    )
    recipe = json.loads((workdir / "a.compressed" / "recipe.json").read_text())
    recipe["architecture"] = {
        "ref": "torchvision._internally_replaced_utils:load_state_dict_from_url", "sha256": None,
        "arguments": [["url", (workdir / "p.pt").as_uri()], ["model_dir", str(workdir / "dl")]],
    }  # fmt: skip
    (workdir / "a.compressed" / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(CompressError):
        load(workdir / "a.compressed")
    torch.save({"state_dict": {"w": torch.ones(2)}, "architecture": recipe["architecture"]["ref"]}, workdir / "c.pt")
    with pytest.raises(CompressError):
        load(workdir / "c.pt")
    assert not (workdir / "ran").exists()
    assert not (workdir / "dl").exists()


class TestCodeThatTheUserNamed:
    """Trust is of a file's content and a name in it; what that file imports comes from where the user named it."""

    NET = "from torch import nn\n\nfrom .beside import WIDTH\n\n\ndef net():\n    return nn.Linear(3, WIDTH)\n"

    def package(self, folder: Path, beside: str = "") -> Path:
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "beside.py").write_text(f"WIDTH = 2\n{beside}")
        (folder / "net.py").write_text(self.NET)
        return folder / "net.py"

    def recipe_of(self, workdir: Path) -> Path:
        torch.save(nn.Linear(3, 2).state_dict(), workdir / "w.pt")
        dense = load(workdir / "w.pt", arch="mine/net.py:net")
        write_artifact(workdir / "a", dense, source=dense.source, results=Results(), verify=False)
        return workdir / "a" / "recipe.json"

    def edited(self, recipe: Path, ref: str) -> None:
        plain = json.loads(recipe.read_text())
        plain["architecture"]["ref"] = ref
        recipe.write_text(json.dumps(sealed(plain)))

    def test_a_copy_elsewhere_imports_nothing_beside_it(self, workdir: Path) -> None:
        self.package(workdir / "mine")
        recipe = self.recipe_of(workdir)
        copy = self.package(workdir / "theirs" / "mine", beside="open('ran', 'w')\n")
        self.edited(recipe, f"{copy}:net")
        opened = open_artifact(workdir / "a")
        for read in (opened.checkpoint, opened.dense, opened.checkpoint):
            with pytest.raises(ArchitectureError, match="does not run"):
                read()
        assert not (workdir / "ran").exists()

    @pytest.mark.parametrize("name", ["beside", "nn", "__builtins__"])
    def test_another_name_of_the_file_is_not_called(self, workdir: Path, name: str) -> None:
        self.package(workdir / "mine")
        recipe = self.recipe_of(workdir)
        self.edited(recipe, f"{workdir / 'mine' / 'net.py'}:{name}")
        with pytest.raises(ArchitectureError, match="would run that code"):
            load(workdir / "a")

    def test_a_module_is_not_trusted_for_its_files_hash_alone(self, workdir: Path) -> None:
        self.package(workdir / "mine")
        recipe = self.recipe_of(workdir)
        for ref in ("mine.net:net", "os:system", "net:net"):
            self.edited(recipe, ref)
            with pytest.raises(ArchitectureError, match="would run that code"):
                load(workdir / "a")

    def test_what_an_earlier_version_remembered_still_counts(self, workdir: Path) -> None:
        (workdir / "net.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(3, 2)\n")
        digest = hashlib.sha256((workdir / "net.py").read_bytes()).hexdigest()
        (workdir / "state" / "trusted").mkdir(parents=True)
        (workdir / "state" / "trusted" / digest).touch()
        named = Architecture(ref=f"{workdir / 'net.py'}:net", sha256=digest)
        check_harmless(named)
        architecture_from_user("net.py:other")
        check_harmless(named)
        assert isinstance(build(named), nn.Linear)

    def test_a_full_disk_leaves_no_trust(self, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TMPDIR", str(workdir / "temp"))
        monkeypatch.setattr("tempfile.tempdir", str(workdir / "temp"))
        (workdir / "temp").mkdir()
        (workdir / "net.py").write_text("def net(): pass\n")
        with full_disk(0), pytest.raises(ArchitectureError, match="cannot write to"):
            architecture_from_user("net.py:net")
        assert not [p for folder in ("state", "temp") for p in (workdir / folder).rglob("*") if p.is_file()]

    def test_lines_of_the_store_that_are_broken_are_none(self, workdir: Path) -> None:
        (workdir / "net.py").write_text("def net(): pass\n")
        named = architecture_from_user("net.py:net")
        store = workdir / "state" / "trusted" / str(named.sha256)
        for broken in ("[1]\n", "{}\n", '{"ref": 3}\n', "\xff\n", '{"ref": "x:net", "file": 3, "roots": [1]}\n'):
            store.write_text(broken)
            with pytest.raises(ArchitectureError, match="would run that code"):
                check_harmless(named)
