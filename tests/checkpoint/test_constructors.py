"""Constructors may compute, run and read; what a network keeps beside its state survives an artifact."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.loading import load
from compressor.errors import ArchitectureError, CheckpointError
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget

CODE = """
from pathlib import Path

import torch
from torch import nn


class Looks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)
        self.std = float(self.a.weight.detach().std())

    def forward(self, x):
        return self.b(self.a(x).relu().mean((2, 3)))


class Runs(Looks):
    def __init__(self):
        super().__init__()
        self.side = int(self.a(torch.zeros(1, 3, 32, 32)).sum().isfinite()) + len(self.b.weight.tolist())


class Reads(Looks):
    def __init__(self, path=str(Path(__file__).parent / "widths.txt")):
        super().__init__()
        self.widths = list(map(int, Path(path).read_text().split()))


class Prints(Looks):
    def __init__(self):
        super().__init__()
        print("built")


print("imported")


class Raises(Looks):
    def __init__(self):
        raise ZeroDivisionError("two\\nlines")


class Strided(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.stride = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1), torch.tensor([8.0])
        self.register_buffer("shift", torch.tensor([3.0]), persistent=False)

    def _apply(self, function, *args, **kwargs):
        super()._apply(function, *args, **kwargs)
        self.stride = function(self.stride)
        return self

    def forward(self, x):
        return self.b(self.a(x).relu()) * self.stride.view(1, 1, 1, 1) + self.shift
"""


@pytest.fixture
def nets(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (workdir / "computing_nets.py").write_text(CODE)
    (workdir / "widths.txt").write_text("3 4")
    monkeypatch.syspath_prepend(str(workdir))
    monkeypatch.setenv("PYTHONPATH", str(workdir))
    import computing_nets  # type: ignore[import-not-found]  # written above

    torch.manual_seed(0)
    yield computing_nets
    del sys.modules["computing_nets"]


@pytest.mark.parametrize("name", ["Looks", "Runs", "Reads"])
def test_a_constructor_may_compute(nets: Any, name: str) -> None:
    made = getattr(nets, name)().eval()
    torch.save(made.state_dict(), "w.pt")
    found = load("w.pt", arch=f"computing_nets.py:{name}", inputs=("1x3x32x32",))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.module(x), made(x))


def test_what_the_code_prints_is_not_on_stdout(nets: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nets.Looks().state_dict(), "w.pt")
    capsys.readouterr()
    load("w.pt", arch="computing_nets.py:Prints", inputs=("1x3x32x32",))
    out, err = capsys.readouterr()
    assert out == ""
    assert {"built", "imported"} <= set(err.split())


def test_an_error_of_a_constructor_has_a_way_out(nets: Any) -> None:
    torch.save(nets.Looks().state_dict(), "w.pt")
    with pytest.raises(ArchitectureError, match=r"Raises\(\)` failed: ZeroDivisionError: two lines") as caught:
        load("w.pt", arch="computing_nets.py:Raises")
    assert "--arch-arg" in str(caught.value.hint)
    with pytest.raises(ArchitectureError, match="FileNotFoundError") as caught:
        load("w.pt", arch="computing_nets.py:Reads", arch_arguments=(("path", "gone.txt"),))
    assert "reads a file" in str(caught.value.hint)


@pytest.mark.parametrize("half", [False, True])
def test_tensors_that_no_state_has_survive_an_artifact(nets: Any, half: bool) -> None:
    module = nets.Strided().eval()
    torch.save({"ema": module.half() if half else module}, "whole.pt")
    dense = load("whole.pt", inputs=("1x3x8x8",), trust_pickle=True)
    small = prune(dense, Request(budget=ChannelBudget(ratio=0.5), align=1)).checkpoint
    artifact = write_artifact(
        Path("a"), small, source=dense.source, results=Results(), verify=not half, trust_pickle=True
    )
    again = artifact.checkpoint(trust_pickle=True).module
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(again(x), small.module(x), rtol=1e-2 if half else 1e-6, atol=1e-2 if half else 1e-6)
    assert again.stride.item() == 8
    assert again.shift.item() == 3


@pytest.mark.parametrize("name", ["w.tar", "w.pth.tar", "w.ckpt", "w.bin", "w"])
def test_the_name_of_a_file_says_nothing_about_it(workdir: Path, name: str) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    torch.save(module, workdir / name)
    found = load(name)
    assert found.name == "w"
    assert len(found.module) == 3


def test_torchscript_is_refused_with_the_way_out(workdir: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # later versions of torch call it deprecated
        torch.jit.script(nn.Linear(3, 2)).save(str(workdir / "script.pt"))
    with pytest.raises(CheckpointError, match="TorchScript") as caught:
        load("script.pt")
    assert "torch.jit.load('script.pt').state_dict()" in str(caught.value.hint)
