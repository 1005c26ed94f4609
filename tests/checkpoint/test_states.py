"""Weights are found below any key, and under the names that wrappers, averages, pruning and norms give them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.factored_weights import multiplied_out
from compressor.checkpoint.loading import load
from compressor.checkpoint.reading import read_state
from compressor.errors import CheckpointError
from compressor.pruning.masking import mask_weights
from compressor.pruning.pipeline import prune as pruned
from compressor.pruning.request import MaskRequest, Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget

CODE = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.up, self.b = (
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 8, 2), nn.Linear(8, 4)
        )

    def forward(self, x):
        return self.b(self.up(self.n(self.a(x)).relu()).relu().mean((2, 3)))
"""
SCOPE: dict[str, Any] = {"__name__": "net"}
exec(CODE, SCOPE)
X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net(workdir: Path) -> nn.Module:
    (workdir / "net.py").write_text(CODE)
    torch.manual_seed(0)
    made: nn.Module = SCOPE["Net"]().eval()
    return made


def opened(content: object, **how: Any) -> nn.Module:
    torch.save(content, "w.pt")
    return load("w.pt", arch="net.py:Net", inputs=("1x3x8x8",), **how).module


def same(module: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.allclose(module(X), other(X), atol=1e-6)


def named(state: dict[str, Tensor], wrapper: str) -> dict[str, Tensor]:
    """The state with a wrapper's name inside each name, before its last part."""
    return {".".join([*n.split(".")[:-1], wrapper, n.split(".")[-1]]): t for n, t in state.items()}


NAMES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in s.items()}},
    "averaged inside": lambda s: {"m.n_averaged": torch.tensor(3), **{f"m.module.{n}": t for n, t in s.items()}},
    "averaged in parallel": lambda s: {
        "n_averaged": torch.tensor(3), **{f"module.module.{n}": t for n, t in s.items()}
    },
    "compiled inside": lambda s: named(s, "_orig_mod"),
    "FSDP": lambda s: {f"_fsdp_wrapped_module.{n}": t for n, t in named(s, "_fsdp_wrapped_module").items()},
    "checkpointed": lambda s: named(s, "_checkpoint_wrapped_module"),
    "FSDP of a checkpointed part": lambda s: named(s, "_fsdp_wrapped_module._checkpoint_wrapped_module"),
    "DataParallel inside": lambda s: named(s, "module"),
    "DataParallel in Lightning": lambda s: {f"model.{n}": t for n, t in named(s, "module").items()},
    "Lightning beside a loss": lambda s: {"loss.weight": torch.ones(4), **{f"net.{n}": t for n, t in s.items()}},
    "a prefix of its own": lambda s: {"head2.x": torch.ones(2), **{f"wrapped.student.{n}": t for n, t in s.items()}},
}  # fmt: skip


@pytest.mark.parametrize("names", NAMES)
def test_the_names_of_wrappers_are_read(net: nn.Module, names: str) -> None:
    assert same(opened(NAMES[names](net.state_dict())), net)


KEYS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "params_ema": lambda s: {"params": {n: t + 1 for n, t in s.items()}, "params_ema": s},
    "params": lambda s: {"params": s},
    "generator": lambda s: {"generator": s, "discriminator": {"x": torch.ones(3)}, "optimizer": {"state": {}}},
    "an unusual key": lambda s: {"epoch": 3, "my_weights": s, "optimizer_g": {"exp_avg": torch.ones(3)}},
    "nested": lambda s: {"checkpoint": {"inner": {"state_dict": s}}},
    "usual, then unusual": lambda s: {"model": {"student": s}},
    "in a list": lambda s: [3, s],
    "a state beside none": lambda s: {"model": None, "ema": s},
    "half": lambda s: {"student": {n: t.half() if t.is_floating_point() else t for n, t in s.items()}},
}


@pytest.mark.parametrize("key", KEYS)
def test_weights_lie_below_any_key(net: nn.Module, key: str) -> None:
    module = opened(KEYS[key](net.state_dict()))
    with torch.no_grad():
        assert torch.allclose(module(X), net(X), atol=1e-3 if key == "half" else 1e-6)
        assert module(X).dtype is torch.float32


def test_a_module_below_a_key_is_used_whatever_its_precision(workdir: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    half = copy.deepcopy(net).half()
    for content in ({"model": None, "ema": half}, {"runs": {"best": half}, "epoch": 1}):
        torch.save(content, "w.pt")
        found = load("w.pt", inputs=("1x3x8x8",))
        assert found.module[0].weight.dtype is torch.float32
        assert found.types["0.weight"] is torch.float16
        with torch.no_grad():
            assert torch.allclose(found.module(X), net(X), atol=1e-3)
    assert (workdir / "w.pt").is_file()


@pytest.mark.parametrize(("side", "taken"), [(48, 48), ("48", 0), (0, 0), (10**6, 0), ([48, 32], 0), (True, 0)])
def test_the_size_of_a_trainings_images_is_the_inputs(workdir: Path, side: object, taken: int) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    torch.save({"ema": None, "model": net.half(), "train_args": {"imgsz": side, "task": "detect"}}, workdir / "w.pt")
    if taken:
        assert load("w.pt").example_inputs[0].shape == (1, 1, taken, taken)
        assert load("w.pt", inputs=("1x1x9x9",)).example_inputs[0].shape == (1, 1, 9, 9)
    else:
        with pytest.raises(CheckpointError, match="several sizes"):
            load("w.pt")


class TestAKeyByName:
    """`--key` and `key=`."""

    def content(self, net: nn.Module) -> dict[str, Any]:
        other = {n: t + 1 for n, t in net.state_dict().items()}
        return {"params": other, "a.b": other, "all": {"teacher": other, "student": net.state_dict()}, "epoch": 3}

    def test_it_is_read(self, net: nn.Module) -> None:
        assert same(opened(self.content(net), key="all.student"), net)
        assert not same(opened(self.content(net), key="all.teacher"), net)
        assert not same(opened(self.content(net), key="a.b"), net)
        assert not same(opened(self.content(net)), net)  # `params` is the usual key

    def test_it_may_end_in_a_prefix_of_names(self, net: nn.Module) -> None:
        state = {f"{who}.{n}": t + plus for who, plus in (("t", 1), ("s", 0)) for n, t in net.state_dict().items()}
        assert same(opened({"state_dict": state}, key="state_dict.s"), net)
        assert same(opened(state, key="s"), net)
        with pytest.raises(CheckpointError, match="has no `x`") as caught:
            opened({"state_dict": state}, key="state_dict.x")
        assert "`t`, `s`" in str(caught.value.hint)

    def test_one_that_is_not_there_is_refused_with_those_that_are(self, net: nn.Module) -> None:
        with pytest.raises(CheckpointError, match="has no key `parms_ema`") as caught:
            opened(self.content(net), key="parms_ema")
        for name in ("`params`", "`a.b`", "`all.teacher`", "`all.student`"):
            assert name in str(caught.value.hint)
        assert "epoch" not in str(caught.value.hint)

    def test_it_is_asked_for_where_several_are_there(self, net: nn.Module) -> None:
        state = net.state_dict()
        with pytest.raises(CheckpointError, match=r"several keys: `runs\.one`, `runs\.two`") as caught:
            opened({"runs": {"one": state, "two": state}})
        assert "--key runs.one" in str(caught.value.hint)

    @pytest.mark.parametrize("key", [None, "gone"])
    def test_keys_of_the_file_are_printed_as_text(self, net: nn.Module, key: str | None) -> None:
        state = net.state_dict()
        with pytest.raises(CheckpointError) as caught:
            opened({"\x1b[2Ja": state, "b\n": state}, key=key)
        assert (str(caught.value) + str(caught.value.hint)).isprintable()

    def test_an_artifact_remembers_it_for_its_dense_network(self, net: nn.Module, workdir: Path) -> None:
        torch.save(self.content(net), "w.pt")
        dense = load("w.pt", arch="net.py:Net", inputs=("1x3x8x8",), key="all.student")
        small = pruned(dense, Request(budget=ChannelBudget(ratio=0.5), align=1)).checkpoint
        artifact = write_artifact(workdir / "a", small, source=dense.source, results=Results(), verify=False)
        assert same(artifact.dense().module, net)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"epoch": 3, "loss": [1.0]}, "no weights under a known key: epoch, loss"),
        ([1, 2], "no weights under a known key: list"),
        ({"a._flat_param": torch.ones(3)}, "is a shard of FSDP"),
        ({"optimizer": {"exp_avg": torch.ones(2)}}, "no weights under a known key: optimizer"),
    ],
)
@pytest.mark.usefixtures("net")
def test_content_without_a_networks_weights_is_refused(content: object, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        opened(content)
    assert caught.value.hint


class TestWeightsInParts:
    """What torch.nn.utils keeps in place of a weight is multiplied out."""

    def test_masks_of_pruning(self, net: nn.Module) -> None:
        for layer in (net.a, net.b):
            prune.random_unstructured(layer, "weight", amount=0.5)
        prune.random_unstructured(net.b, "bias", amount=1)
        state = {f"module.{n}": t for n, t in net.state_dict().items()}
        net.eval()(X)
        again = opened({"state_dict": state})
        assert same(again, net)
        assert int((again.a.weight == 0).sum()) == again.a.weight.numel() // 2

    def test_masks_of_one_share_are_those_of_the_same_sparsity(self, net: nn.Module) -> None:
        kept = {}
        for name in ("a", "up", "b"):
            prune.random_unstructured(net.get_submodule(name), "weight", amount=0.5)
            kept[f"{name}.weight"] = net.state_dict()[f"{name}.weight_mask"].bool()
        torch.save(net.state_dict(), "w.pt")
        dense = load("w.pt", arch="net.py:Net", inputs=("1x3x8x8",))
        masked = mask_weights(dense, MaskRequest(sparsity=0.5))
        assert all(torch.equal(masked.mask.kept[name], mask) for name, mask in kept.items())

    def test_masks_of_a_pruned_module(self, workdir: Path) -> None:
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2)
        ).eval()
        prune.l1_unstructured(layers[0], "weight", 0.5)
        prune.random_structured(layers[2], "weight", 0.25, dim=0)
        with torch.no_grad():
            expected = layers(X)
        for layer in (layers[0], layers[2]):
            layer.weight = layer.weight.detach()
        torch.save({"model": layers}, workdir / "w.pt")
        dense = load("w.pt", inputs=("1x3x8x8",), trust_pickle=True)
        with torch.no_grad():
            assert torch.equal(dense.module(X), expected)
        small = pruned(dense, Request(budget=ChannelBudget(ratio=0.5), align=1)).checkpoint.module
        assert small.get_submodule("0").weight.shape[0] == 4

    def test_norms_of_weights(self, net: nn.Module) -> None:
        weight_norm: Any = torch.nn.utils.weight_norm
        with pytest.warns(FutureWarning):
            weight_norm(net.a)
        with pytest.warns(FutureWarning):
            weight_norm(net.up, dim=None)
        parametrizations.weight_norm(net.b, dim=1)
        with torch.no_grad():
            net.a.weight_g.mul_(1.5)
        net(X)
        assert same(opened(net.state_dict()), net)

    def test_spectral_norms(self, net: nn.Module) -> None:
        torch.nn.utils.spectral_norm(net.a)
        torch.nn.utils.spectral_norm(net.up)  # 8 × 8 × 2 × 2: both axes fit the vectors
        parametrizations.spectral_norm(net.b)
        net.train()
        for _ in range(20):
            net(X + torch.randn(4, 3, 8, 8))
        net.eval()(X)
        assert same(opened(net.state_dict()), net)

    def test_a_network_of_such_parts_keeps_them(self) -> None:
        state = {"w_orig": torch.ones(2), "w_mask": torch.tensor([1.0, 0.0])}
        assert multiplied_out(state, {"w_orig", "w_mask"}).keys() == state.keys()
        assert multiplied_out(state, {"w"})["w"].tolist() == [1, 0]
        assert multiplied_out({"w_g": torch.ones(2)}).keys() == {"w_g"}


def test_an_early_state_lies_below_any_key_too(net: nn.Module) -> None:
    torch.save({"my": {"weights": net.state_dict()}}, "early.pt")
    assert read_state(Path("early.pt")).keys() == net.state_dict().keys()
