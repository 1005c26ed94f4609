"""Code in packages: named by file or by module, it imports its siblings, and artifacts of it are read back."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import Artifact, open_artifact
from compressor.checkpoint.loading import load
from compressor.errors import ArchitectureError
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget

PARTS = """
from torch import nn


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
"""
BODY = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.b, self.fc = block(3, 32), nn.Linear(32, 10)

    def forward(self, x):
        from {late} import block

        return self.fc(self.b(x).mean((2, 3)))
"""
IMPORTS = {"relative": ".parts", "from the root": "packaged.parts", "from above": "aside.parts"}


@pytest.fixture(params=IMPORTS)
def repository(request: pytest.FixtureRequest, workdir: Path) -> Iterator[Path]:
    """A working folder with a package, whose network imports from a sibling, at once and when it runs."""
    source = IMPORTS[request.param]
    for name in ("packaged", "aside"):
        (workdir / name).mkdir()
        (workdir / name / "__init__.py").touch()
        (workdir / name / "parts.py").write_text(PARTS)
    (workdir / "packaged" / "net.py").write_text(f"from {source} import block\n" + BODY.format(late=source))
    before = list(sys.path)
    yield workdir
    sys.path[:] = before
    forget()


def forget() -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in ("packaged", "aside")]:
        del sys.modules[name]


def artifact_of(arch: str, folder: Path, *, verify: bool = False) -> Artifact:
    weights = folder / "w.pt"
    if not weights.exists():
        scope: dict[str, object] = {"__name__": "made"}
        exec(PARTS + BODY.format(late="torch"), scope)
        torch.save(scope["Net"]().state_dict(), weights)  # type: ignore[operator]
    dense = load(weights, arch=arch, inputs=("1x3x8x8",))
    small = prune(dense, Request(budget=ChannelBudget(ratio=0.5))).checkpoint
    return write_artifact(folder / "a", small, source=dense.source, results=Results(), verify=verify, force=True)


@pytest.mark.parametrize("arch", ["packaged/net.py:Net", "packaged.net:Net", "{here}/packaged/net.py:Net"])
def test_it_is_read_back_in_any_folder(repository: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = artifact_of(arch.format(here=repository), repository, verify=arch == "packaged.net:Net")
    monkeypatch.chdir("/")
    sys.path[:] = [p for p in sys.path if not p.startswith(str(repository))]
    forget()
    x = torch.randn(2, 3, 8, 8)
    assert artifact.checkpoint().module(x).shape == (2, 10)
    assert artifact.dense().module(x).shape == (2, 10)


def test_an_edit_beside_the_class_leaves_it_readable_and_one_of_its_file_does_not(repository: Path) -> None:
    artifact = artifact_of("packaged.net:Net", repository)
    (repository / "packaged" / "parts.py").write_text(PARTS + "\nOTHER = 3\n")
    (repository / "packaged" / "__init__.py").write_text("WIDTH = 3\n")
    forget()
    artifact.checkpoint()
    with (repository / "packaged" / "net.py").open("a") as stream:
        stream.write("\nOTHER = 3\n")
    with pytest.raises(ArchitectureError, match="is not the file that this was made with"):
        artifact.checkpoint()


def test_an_edited_file_is_imported_again(repository: Path) -> None:
    artifact_of("packaged/net.py:Net", repository)
    with (repository / "packaged" / "net.py").open("a") as stream:
        stream.write("\nEDITED = 3\n")
    load("w.pt", arch="packaged/net.py:Net", inputs=("1x3x8x8",))
    assert sys.modules["packaged.net"].EDITED == 3


def test_two_packages_of_one_name_are_kept_apart(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact_of("packaged/net.py:Net", repository)
    other = repository / "other"
    for name in ("packaged", "aside"):
        shutil.copytree(repository / name, other / name)
    with (other / "packaged" / "net.py").open("a") as stream:
        stream.write("\nclass Net(Net):\n    other = True\n")
    monkeypatch.chdir(other)
    assert load(repository / "w.pt", arch="packaged/net.py:Net", inputs=("1x3x8x8",)).module.other is True
    assert not hasattr(open_artifact(repository / "a").checkpoint().module, "other")


class TestImportsThatFail:
    def test_a_module_that_is_nowhere(self, repository: Path) -> None:
        artifact_of("packaged/net.py:Net", repository)
        with pytest.raises(ArchitectureError, match=r"cannot import `nowhere\.net`") as caught:
            load("w.pt", arch="nowhere.net:Net")
        assert "--arch pkg/net.py:Net" in str(caught.value.hint)

    def test_a_file_that_needs_what_is_not_here(self, workdir: Path) -> None:
        (workdir / "net.py").write_text("import not_installed_anywhere")
        torch.save({"w": torch.ones(1)}, "w.pt")
        with pytest.raises(ArchitectureError, match="No module named 'not_installed_anywhere'") as caught:
            load("w.pt", arch="net.py:Net")
        assert "install" in str(caught.value.hint)

    def test_a_module_that_raises(self, workdir: Path) -> None:
        (workdir / "raising_net.py").write_text("1 / 0")
        torch.save({"w": torch.ones(1)}, "w.pt")
        with pytest.raises(ArchitectureError, match="`raising_net` does not run: ZeroDivisionError"):
            load("w.pt", arch="raising_net:Net")

    def test_a_folder_with_the_name_of_an_installed_package(self, workdir: Path) -> None:
        (workdir / "torch").mkdir()
        (workdir / "torch" / "__init__.py").touch()
        (workdir / "torch" / "net.py").write_text("from . import x")
        torch.save({"w": torch.ones(1)}, "w.pt")
        with pytest.raises(ArchitectureError, match="the name of an installed package"):
            load("w.pt", arch="torch/net.py:Net")

    def test_a_package_that_does_not_run_leaves_a_file_that_does(self, workdir: Path) -> None:
        (workdir / "broken_package").mkdir()
        (workdir / "broken_package" / "__init__.py").write_text("import not_installed_anywhere")
        (workdir / "broken_package" / "net.py").write_text(
            "from torch import nn\n\n\ndef net(): return nn.Linear(3, 2)"
        )
        torch.save(torch.nn.Linear(3, 2).state_dict(), "w.pt")
        assert load("w.pt", arch="broken_package/net.py:net").example_inputs[0].shape == (1, 3)
