"""With `--arch` the weights of pickled modules are read by placeholders, whatever their classes and the format."""

from __future__ import annotations

import argparse
import pathlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.checkpoint.loading import load
from compressor.checkpoint.pickles.placeholders import weights_in
from compressor.errors import CheckpointError, UntrustedPickle

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.a, self.n, self.fc = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 2)
        self.register_buffer("one", torch.ones(1), persistent=False)

    def forward(self, x):
        return self.fc(self.n(self.a(x)).relu().mean((2, 3))) * self.one
"""
ARCH = "net.py:Net"
INPUTS = ("1x3x8x8",)
Save = Callable[[object, str], None]


@pytest.fixture(params=["zip", "old"])
def save(request: pytest.FixtureRequest) -> Save:
    """`torch.save`, in its present format and its first."""
    return lambda content, name: torch.save(content, name, _use_new_zipfile_serialization=request.param == "zip")


@pytest.fixture(params=["__main__", "a_script_elsewhere"])
def net(request: pytest.FixtureRequest, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network whose class a fresh process would not find."""
    (workdir / "net.py").write_text(CODE)
    home = types.ModuleType(request.param)
    exec(CODE, vars(home))
    monkeypatch.setitem(sys.modules, request.param, home)
    monkeypatch.setattr(
        "torch.serialization.get_source_lines_and_file", lambda _: ([CODE], 0, "net.py")
    )  # it stores them
    torch.manual_seed(0)
    made: nn.Module = home.Net().eval()
    with torch.no_grad():
        made.n.running_mean.normal_()  # type: ignore[union-attr,operator]
    return made


def absent(monkeypatch: pytest.MonkeyPatch, net: nn.Module) -> None:
    monkeypatch.setitem(sys.modules, type(net).__module__, types.ModuleType(type(net).__module__))


CONTENTS: dict[str, Callable[[nn.Module], object]] = {
    "bare": lambda m: m,
    "in a dict": lambda m: {"epoch": 1, "model": m},
    "in half, under a usual key": lambda m: {"model": None, "ema": m.half()},
    "in DataParallel": nn.DataParallel,
    "in a layer": lambda m: nn.Sequential(m),
    "beside values of other classes": lambda m: {
        "args": argparse.Namespace(path=pathlib.PurePosixPath("x")), "model": m, "seen": {1, 2}
    },
}  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
def test_the_weights_are_read(net: nn.Module, save: Save, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = net(x)
    save(CONTENTS[content](net), "w.pt")
    absent(monkeypatch, net)
    found = load("w.pt", arch=ARCH, inputs=INPUTS).module
    with torch.no_grad():
        assert torch.allclose(found(x), expected, atol=5e-3 if "half" in content else 0, rtol=0)


def test_they_are_what_a_state_has(net: nn.Module, save: Save) -> None:
    net.a.bias = nn.Parameter(net.a.weight[:, 0, 0, 0].detach())  # type: ignore[index,union-attr]  # a view
    net.tied = net.fc
    net.empty = nn.Module()
    net.nothing = None
    net.register_parameter("none", None)
    save(net, "w.pt")
    found, state = weights_in(Path("w.pt")), net.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype is tensor.dtype for name, tensor in state.items())
    assert found["a.bias"].data_ptr() == found["a.weight"].data_ptr()
    assert "one" not in found


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int8", "bool", "complex64", "uint16"])
def test_every_type_is_read(workdir: Path, save: Save, dtype: str) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    save({"a": tensor.t(), "b": tensor[1:, ::2], "c": tensor[:0], "d": nn.Parameter(torch.ones(()))}, "w.pt")
    found = weights_in(workdir / "w.pt")
    assert torch.equal(found["a"], tensor.t())
    assert torch.equal(found["b"], tensor[1:, ::2])
    assert found["c"].shape == (0, 3)
    assert found["d"].item() == 1


def test_without_arch_they_are_refused_with_the_way_out(net: nn.Module, save: Save) -> None:
    save(net, "w.pt")
    with pytest.raises(UntrustedPickle) as caught:
        load("w.pt", inputs=INPUTS)
    assert caught.value.classes == (f"{type(net).__module__}.Net",)
    assert "--arch net.py:Net" in str(caught.value.hint)


def test_trusted_without_its_code_it_says_so(net: nn.Module, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    save(net, "w.pt")
    absent(monkeypatch, net)
    with pytest.raises(CheckpointError, match=r"needs code that is not here: Can't get attribute 'Net'") as caught:
        load("w.pt", inputs=INPUTS, trust_pickle=True)
    assert "cut short" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert "--arch net.py:Net" in str(caught.value.hint)


def test_trusted_without_its_package_it_says_which(net: nn.Module, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    if type(net).__module__ == "__main__":
        return  # which is always there
    save(net, "w.pt")
    monkeypatch.delitem(sys.modules, type(net).__module__)
    with pytest.raises(CheckpointError, match="No module named 'a_script_elsewhere'") as caught:
        load("w.pt", inputs=INPUTS, trust_pickle=True)
    assert "install `a_script_elsewhere`" in str(caught.value.hint)


REBUILT = """
from torch import nn


class Rebuilt(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x):
        return self.a(x)

    def __reduce__(self):
        return rebuilt, (self.a.weight.tolist(), self.a.bias.tolist())


def rebuilt(weight, bias):
    import torch

    made = Rebuilt()
    made.a.weight, made.a.bias = nn.Parameter(torch.tensor(weight)), nn.Parameter(torch.tensor(bias))
    return made
"""


def test_where_placeholders_cannot_answer_the_users_code_stands_in_for_the_script(
    workdir: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "own.py").write_text(REBUILT)
    home = types.ModuleType("__main__")
    exec(REBUILT, vars(home))
    monkeypatch.setitem(sys.modules, "__main__", home)
    monkeypatch.setattr("torch.serialization.get_source_lines_and_file", lambda _: ([REBUILT], 0, "own.py"))
    module = home.Rebuilt()
    save({"model": module}, "w.pt")
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    with pytest.raises(CheckpointError, match="no weights under a known key: model"):
        load("w.pt", arch="own.py:Rebuilt")
    found = load("w.pt", arch="own.py:Rebuilt", trust_pickle=True)
    assert torch.equal(found.module.a.weight, module.a.weight)
