"""Checkpoints in all the forms that people have, and those that are refused by name."""

from __future__ import annotations

import math
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.loading import load
from compressor.checkpoint.pickles.skeletons import read_skeleton, write_skeleton
from compressor.checkpoint.reading import read_state
from compressor.errors import CheckpointError, CompressError, UntrustedPickle
from compressor.graph.finite import broken_in

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8, classes=3):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.net(x))
"""


class Net(nn.Module):
    """The same as in `NET`, so that its state can be made here."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net(x))


@pytest.fixture(scope="module")
def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=7).eval()


WRAPPINGS: dict[str, Callable[[nn.Module], object]] = {
    "whole module": lambda m: m,
    "whole module in DataParallel": lambda m: nn.DataParallel(m),
    "bare state": lambda m: m.state_dict(),
    "under state_dict": lambda m: {"epoch": 3, "state_dict": m.state_dict(), "optimizer": {"lr": 0.1}},
    "under model": lambda m: {"model": m.state_dict(), "args": None},
    "under model_state_dict": lambda m: {"model_state_dict": m.state_dict()},
    "under net": lambda m: {"net": m.state_dict(), "acc": 93.1},
    "under ema": lambda m: {"ema": m.state_dict()},
    "a whole module under model": lambda m: {"model": m, "epoch": 3},
    "module. prefix": lambda m: {"state_dict": {f"module.{k}": v for k, v in m.state_dict().items()}},
    "_orig_mod. prefix": lambda m: {f"_orig_mod.{k}": v for k, v in m.state_dict().items()},
    "both prefixes": lambda m: {f"module._orig_mod.{k}": v for k, v in m.state_dict().items()},
    "Lightning": lambda m: {
        "state_dict": {f"model.{k}": v for k, v in m.state_dict().items()},
        "hyper_parameters": {"lr": 0.1},
        "pytorch-lightning_version": "2.5.0",
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_torchvision_network_is_recognised_in_every_wrapping(
    tmp_path: Path, small_resnet: nn.Module, wrapping: str
) -> None:
    torch.save(WRAPPINGS[wrapping](small_resnet), tmp_path / "net.ckpt")
    found = load(tmp_path / "net.ckpt")
    assert found.architecture == Architecture(ref="torchvision:resnet18", arguments=(("num_classes", 7),))
    assert found.example_inputs[0].shape == (1, 3, 224, 224)
    inputs = torch.randn(1, 3, 64, 64)
    assert torch.equal(found.module(inputs), small_resnet(inputs))
    assert not found.module.training


def test_safetensors_load_whatever_their_order(tmp_path: Path, small_resnet: nn.Module) -> None:
    save_file(small_resnet.state_dict(), tmp_path / "net.safetensors")
    assert dict(load(tmp_path / "net.safetensors").architecture.arguments) == {"num_classes": 7}


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "densenet121", "googlenet", "regnet_y_400mf"]
    + [pytest.param(n, marks=pytest.mark.slow) for n in ("vgg11_bn", "resnext50_32x4d", "vit_b_32", "swin_t")],
)
def test_other_families_are_recognised(tmp_path: Path, name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    module = torchvision.models.get_model(name, num_classes=5, **options)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    found = load(tmp_path / "net.pt").architecture
    assert found.ref == f"torchvision:{name}"
    assert dict(found.arguments)["num_classes"] == 5


def test_a_sample_model_knows_itself(samples: Path) -> None:
    found = load(samples / "fashion_resnet20.pt")
    assert found.classes is not None
    assert found.classes[9] == "ankle boot"
    assert found.training is not None
    assert found.training.budget.epochs == 12
    assert (found.preprocessing.mean, found.preprocessing.size) == ((0.2860,), (28, 28))


def test_a_network_from_a_file(workdir: Path) -> None:
    (workdir / "net.py").write_text(NET)
    torch.save(Net(width=6).state_dict(), workdir / "w.pt")
    found = load(workdir / "w.pt", arch="net.py:Net", arch_arguments=(("width", 6),), inputs=("1x3x16x16",))
    assert found.architecture.sha256 is not None
    assert found.example_inputs[0].shape == (1, 3, 16, 16)
    with pytest.raises(CheckpointError, match=r"of another shape: net\.0\.weight"):
        load(workdir / "w.pt", arch="net.py:Net", inputs=("1x3x16x16",))


def test_the_weights_of_another_network_are_refused_with_their_names(workdir: Path, small_resnet: nn.Module) -> None:
    torch.save(small_resnet.state_dict(), workdir / "w.pt")
    with pytest.raises(CheckpointError, match=r"missing: layer1\.2"):
        load(workdir / "w.pt", arch="torchvision:resnet34")


def test_the_input_is_asked_for_where_several_fit_and_inferred_where_one_does(workdir: Path) -> None:
    (workdir / "net.py").write_text(NET)
    torch.save(Net().state_dict(), workdir / "w.pt")
    with pytest.raises(CheckpointError, match="several sizes") as caught:
        load(workdir / "w.pt", arch="net.py:Net")
    assert "--input 1x3x" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="does not run on 1x4x16x16"):
        load(workdir / "w.pt", arch="net.py:Net", inputs=("1x4x16x16",))
    with pytest.raises(CheckpointError, match="is not a shape"):
        load(workdir / "w.pt", arch="net.py:Net", inputs=("big",))
    flat = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 5))
    torch.save(flat, workdir / "flat.pt")
    assert load(workdir / "flat.pt").example_inputs[0].shape == (1, 1, 28, 28)
    torch.save(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2)), workdir / "mlp.pt")
    assert load(workdir / "mlp.pt").example_inputs[0].shape == (1, 20)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("protocol", ["torch", "legacy", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(workdir: Path, protocol: str) -> None:
    payload = {"state_dict": {"w": torch.zeros(2)}, "extra": Evil()}
    if protocol == "pickle":
        (workdir / "evil.pt").write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, workdir / "evil.pt", _use_new_zipfile_serialization=protocol == "torch")
    with pytest.raises(CheckpointError) as caught:
        load(workdir / "evil.pt")
    assert not (workdir / "pwned").exists()
    if protocol == "torch":
        assert isinstance(caught.value, UntrustedPickle)
        assert caught.value.classes == ("posix.system",)
        assert "--arch" in str(caught.value.hint)
        assert "--trust-pickle" in str(caught.value.hint)


@pytest.mark.parametrize("function", ["torch.load", "torch.hub.load", "builtins.eval", "torchvision.models.get_weight"])
def test_functions_of_known_packages_are_not_allowed(workdir: Path, function: str) -> None:
    """A name inside an allowed package is built only if it is a module class."""

    class Call:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            home, _, leaf = function.rpartition(".")
            return getattr(__import__(home, fromlist=[leaf]), leaf), ("'x'",)

    torch.save({"w": Call()}, workdir / "call.pt")
    with pytest.raises(UntrustedPickle):
        load(workdir / "call.pt")


def test_a_class_of_the_user_is_refused_by_name_and_loads_when_trusted(workdir: Path) -> None:
    torch.save(Net(), workdir / "mine.pt")
    with pytest.raises(UntrustedPickle) as caught:
        load(workdir / "mine.pt", inputs=("1x3x16x16",))
    assert caught.value.classes == ("tests.checkpoint.test_loading.Net",)
    assert load(workdir / "mine.pt", inputs=("1x3x16x16",), trust_pickle=True).name == "mine"


def test_a_checkpoint_cannot_name_code_to_run(workdir: Path) -> None:
    (workdir / "evil.py").write_text("open('pwned', 'w')\nclass Net: pass\n")
    for ref in ("evil.py:Net", f"{workdir}/evil.py:Net", "os:system", "evil:Net"):
        torch.save({"state_dict": {"w": torch.zeros(2)}, "architecture": ref}, workdir / "c.pt")
        with pytest.raises(CompressError) as caught:
            load(workdir / "c.pt")
        assert "--arch" in str(caught.value.hint)
    assert not (workdir / "pwned").exists()


def test_what_is_no_checkpoint_is_refused_with_a_hint(workdir: Path, small_resnet: nn.Module) -> None:
    torch.save(small_resnet.state_dict(), workdir / "w.pt")
    whole = (workdir / "w.pt").read_bytes()
    (workdir / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (workdir / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (workdir / "empty.pt").touch()
    (workdir / "text.pt").write_text("not a checkpoint at all")
    (workdir / "net.onnx").write_bytes(b"\x08\x07")
    torch.save({"epoch": 3, "loss": [1.0]}, workdir / "nothing.pt")
    (workdir / "program.pt2").write_bytes(b"not an archive")
    broken = {**small_resnet.state_dict(), "fc.bias": torch.full((7,), float("nan"))}
    torch.save(broken, workdir / "nan.pt")
    for name, said in {
        "gone.pt": "is not there", "cut.pt": "cut short", "cut.safetensors": "safetensors", "empty.pt": "empty",
        "text.pt": "not a checkpoint", "net.onnx": "ONNX", "nothing.pt": "no weights", "program.pt2": "program",
        "nan.pt": "`fc.bias` holds values that are not finite",
    }.items():  # fmt: skip
        with pytest.raises(CheckpointError, match=said) as caught:
            load(workdir / name)
        assert caught.value.hint, name


def test_torchscript_is_refused_by_name(workdir: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # later versions of torch call it deprecated
        torch.jit.trace(Net().eval(), torch.randn(1, 3, 8, 8)).save(str(workdir / "script.pt"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        load(workdir / "script.pt")


def test_a_skeleton_holds_shapes_and_no_weights(workdir: Path, small_resnet: nn.Module) -> None:
    write_skeleton(small_resnet, workdir / "s.pt")
    assert (workdir / "s.pt").stat().st_size < 200_000
    again = read_skeleton(workdir / "s.pt")
    again.load_state_dict(small_resnet.state_dict(), assign=True)
    inputs = torch.randn(1, 3, 64, 64)
    assert torch.equal(again.eval()(inputs), small_resnet(inputs))


def test_loading_leaves_the_random_state_alone(workdir: Path, small_resnet: nn.Module) -> None:
    torch.save(small_resnet.state_dict(), workdir / "w.pt")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(workdir / "w.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_early_state_is_read_under_its_wrapping(workdir: Path, small_resnet: nn.Module) -> None:
    wrapped = {"state_dict": {f"module.{k}": v for k, v in small_resnet.state_dict().items()}}
    torch.save(wrapped, workdir / "early.pt")
    assert read_state(workdir / "early.pt").keys() == small_resnet.state_dict().keys()


def test_a_class_that_asks_which_version_wrote_its_state_is_answered(workdir: Path) -> None:
    network = torchvision.models.mnasnet0_5(weights=None).eval()
    torch.save(dict(network.state_dict()), workdir / "bare.pt")  # as a file of bare tensors: no version in it
    again = load(workdir / "bare.pt", arch="torchvision:mnasnet0_5")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(x), network(x))


def test_bounds_may_be_infinite_and_statistics_may_not(workdir: Path, small_resnet: nn.Module) -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.register_buffer("least", torch.tensor(-float("inf")))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).clamp(min=self.least)

    assert broken_in(Bounded()) is None
    small_resnet.bn1.running_var[0] = float("inf")
    assert broken_in(small_resnet) == "bn1.running_var"
    torch.save(small_resnet.state_dict(), workdir / "w.pt")
    with pytest.raises(CheckpointError, match=r"`bn1\.running_var` holds values that are not finite"):
        load(workdir / "w.pt")
    bounded = Bounded()
    bounded.least.fill_(float("nan"))
    assert broken_in(bounded) == "least"


@pytest.mark.parametrize("at", [0, 3, 8])
def test_a_weight_that_is_not_finite_is_found_wherever_it_stands(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.graph.finite.ELEMENTS_AT_ONCE", 4)
    layer = nn.Linear(3, 3, bias=False)
    assert broken_in(layer) is None
    with torch.no_grad():
        layer.weight.view(-1)[at] = math.inf
    assert broken_in(layer) == "weight"
