"""Operators between two layers: half of the channels leave, and the rest is what the operator says of the survivors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it
from torch import Tensor, nn

from compressor.channels.destinations import destinations
from compressor.channels.groups import Traced, trace
from compressor.channels.rules import RULES
from compressor.channels.silenced import silenced_outputs
from compressor.errors import InternalError
from compressor.graph.recorded import RecordedProgram
from compressor.surgery.plan import gone_labels
from compressor.surgery.proved import shrink_proved
from tests.channels.test_tracing import half, reasons
from tests.support.topologies import alive

Between = Callable[[Tensor, Tensor], Tensor]
EXAMPLE = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)


class Around(nn.Module):
    """Two layers, what is between them and a third."""

    def __init__(self, between: Between, *, width: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Conv2d(3, width, 1), nn.Conv2d(3, width, 1), [between]
        made = between(*(torch.zeros(2, width, 6, 6) for _ in range(2)))
        self.c = nn.Conv2d(made.shape[1], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.between[0](self.a(x), self.b(x)))


def shrunk(between: Between) -> tuple[nn.Module, nn.Module, Traced, Any]:
    module = alive(Around(between))
    traced = trace(module, EXAMPLE)
    small, surgery, proof = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    assert proof.largest_relative_difference <= 1e-10
    return module, small, traced, surgery


def of_survivors(module: nn.Module, between: Between, surgery: Any, x: Tensor) -> Tensor:
    """What the operator makes of the survivors alone, read by what is left of the last layer."""
    kept = {}
    for name, dim in (("a", 0), ("b", 0), ("c", 1)):
        whole = torch.arange(module.get_parameter(f"{name}.weight").shape[dim])
        kept[name] = surgery.slices.get(f"{name}.weight", {}).get(dim, whole)
    with torch.no_grad():
        a, b = (module.get_submodule(name)(x)[:, kept[name]] for name in ("a", "b"))
        last = module.get_submodule("c")
        return F.conv2d(between(a, b), last.weight[:, kept["c"]], last.bias)  # type: ignore[arg-type]


def of(x: Tensor) -> Tensor:
    """Every pixel's channels last."""
    return x.flatten(2).transpose(1, 2)


def back(x: Tensor) -> Tensor:
    """The way back."""
    return x.transpose(1, 2).unflatten(2, (6, 6))


def per_image(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)[:, None, None, None]


def summed(x: Tensor, y: Tensor) -> Tensor:
    return torch.addbmm(x.new_zeros(1), x.permute(1, 0, 2), y.permute(1, 2, 0)).mean(1)[:, None, None]


def resampled(x: Tensor) -> Tensor:
    where = torch.eye(6, dtype=x.dtype)[None, ..., None].expand(len(x), 6, 6, 2)
    return F.grid_sample(x, where, align_corners=False)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Four heads of queries for two of keys and values."""
    each = k.shape[2] // 2
    q, k, v = (t.unflatten(2, (-1, each)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=0.5).transpose(1, 2).flatten(2)


def spatial(x: Tensor) -> Tensor:
    return F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1)


def indexed(x: Tensor) -> Tensor:
    return x.clone().index_add_(3, torch.tensor([1, 4]), x[..., :2])


def deformed(x: Tensor, y: Tensor) -> Tensor:
    import torchvision

    where = torch.linspace(-1, 1, 18, dtype=x.dtype)[:, None, None].expand(18, 6, 6)[None].repeat(len(x), 1, 1, 1)
    return y + torchvision.ops.deform_conv2d(x, where, torch.ones(1, x.shape[1], 3, 3, dtype=x.dtype), padding=1)


FOLLOWED: dict[str, Between] = {
    "logic": lambda x, y: x * ((x > 0) & (x < 1) | (y > 1)) + y,
    "where with a number": lambda x, y: torch.where(x > 0, x, 0.5) + y,
    "clamped": lambda x, y: torch.clamp(x, max=y),
    "bits": lambda x, y: ((8 * x).int() & (8 * y).int()).float(),
    "cosine": lambda x, y: x * F.cosine_similarity(x, y, dim=1)[:, None],
    "dot products over dimensions": lambda x, y: x * per_image(torch.tensordot(x, y, dims=([1], [1]))),
    "distances": lambda x, y: torch.cdist(of(x), of(y))[:, None],
    "distances of pairs": lambda x, y: x * F.pairwise_distance(of(x), of(y)).view(-1, 1, 6, 6),
    "einsum without its letters": lambda x, y: x + torch.einsum("nc...,nc...->n...", x, y)[:, None],
    "sums of products": lambda x, y: x * summed(x.mean(0), y.mean(0)),
    "gathered": lambda x, y: x.gather(3, (x + y).argsort(3)),
    "taken along": lambda x, y: torch.take_along_dim(x, y.argsort(2), 2),
    "scattered": lambda x, y: torch.zeros_like(x).scatter_add(3, x.argsort(3), y),
    "added by index": lambda x, y: indexed(x) * y,
    "running sums": lambda x, y: x.cumsum(2) + y.cummax(3).values,
    "sorted": lambda x, y: x.sort(dim=3).values * y,
    "best": lambda x, y: x.topk(2, dim=3).values[..., :1] + y,
    "median": lambda x, y: x.median(dim=3, keepdim=True).values + y.kthvalue(2, dim=2, keepdim=True).values,
    "deviation": lambda x, y: torch.std_mean(x, dim=(2, 3), keepdim=True)[0] * y,
    "mean and deviation of channels": lambda x, y: x * torch.var_mean(y, dim=1, keepdim=True)[1],
    "spectrum": lambda x, y: torch.fft.irfft2(torch.fft.rfft2(x) * torch.fft.rfft2(y), s=(6, 6)),
    "complex": lambda x, y: torch.view_as_real(torch.complex(x, y))[..., 0] * torch.complex(x, y).imag,
    "windows": lambda x, y: F.unfold(x, (1, 3), padding=(0, 1)).unflatten(2, (6, 6)) * y.mean((1, 2, 3), keepdim=True),
    "windows and back": lambda x, y: spatial(x) + y,
    "resampled": lambda x, y: resampled(x) + y,
    "deformed": deformed,
    "deviation from a target": lambda x, y: F.mse_loss(x, y, reduction="none") + F.smooth_l1_loss(x, y),
    "rounded as integers": lambda x, y: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127) + y,
    "a triangle": lambda x, y: x.tril() + y.triu(),
    "an inverse": lambda x, y: torch.linalg.inv(x + 9 * torch.eye(6)) + y,
    "a slice replaced": lambda x, y: torch.slice_scatter(x, y[..., 2:], 3, 2),
    "a place replaced": lambda x, y: torch.select_scatter(x, y[..., 0], 3, 2),
    "native norm of layers": lambda x, y: back(torch.native_layer_norm(of(x), [x.shape[1]], None, None, 1e-5)[0]) + y,
    "grouped heads": lambda x, y: back(attended(of(torch.cat([x, y], 1)), of(x), of(y))),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_half_of_what_an_operator_gets_leaves_and_the_survivors_are_what_it_makes_of_them(name: str) -> None:
    between = FOLLOWED[name]
    module, small, traced, surgery = shrunk(between)
    assert {"a", "b"} >= {g.root.partition("/")[0] for g in traced.groups}
    assert "a" not in reasons(traced)
    assert "b" not in reasons(traced)
    state = small.state_dict()
    assert all(len(state[f"{layer}.weight"]) == 4 for layer in ("a", "b"))
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(small(x), of_survivors(module, between, surgery, x), rtol=1e-4, atol=1e-5)


STAYING: dict[str, tuple[Between, str]] = {
    "sorted channels": (lambda x, y: x.sort(dim=1).values + y, "`sort` runs along it"),
    "gathered channels": (lambda x, y: x.gather(1, y.argsort(1)), "`gather` picks positions"),
    "a spectrum of channels": (lambda x, y: torch.fft.fft(x, dim=1).abs() + y, "`fft_fft` runs along it"),
    "an inverse of channels": (lambda x, y: y * torch.linalg.inv(of(x).mT @ of(x) + torch.eye(8))[:, :, :1, None],
                               "`linalg_inv` works on whole matrices"),
    "strides": (lambda x, y: x.as_strided((2, 8, 6, 6), (288, 36, 6, 1)) + y,
                "`as_strided` reads memory by its strides, whatever lies there"),
    "numbers of another width": (lambda x, y: x.contiguous().view(torch.int16)[..., ::2].float() + y,
                                 "its memory is read as numbers of another width"),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYING)
def test_what_cannot_leave_stays_for_a_reason_in_words(name: str) -> None:
    between, reason = STAYING[name]
    module = alive(nn.Sequential(Around(between), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)))
    assert reasons(trace(module, EXAMPLE))["0.a"] == reason


# Constants


class Positions(nn.Module):
    """Sines and cosines of every column's number, added to 16 channels."""

    def __init__(self, *, written: bool) -> None:
        super().__init__()
        self.a, self.b, self.written = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1), written

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        angle = torch.arange(x.shape[-1], dtype=x.dtype)[None] / torch.arange(1, 9, dtype=x.dtype)[:, None]
        if self.written:
            table = torch.zeros(16, x.shape[-1], dtype=x.dtype)
            table[0::2], table[1::2] = angle.sin(), angle.cos()
        else:
            table = torch.cat([angle.sin(), angle.cos()])
        return self.b(torch.relu(x + table[:, None]))


@pytest.mark.parametrize("written", [False, True])
def test_a_table_of_numbers_alone_shrinks_channel_by_channel(written: bool) -> None:
    """Each of the 16 is a channel of its own, twice; the program computes the table, and cuts it."""
    module = alive(Positions(written=written))
    traced = trace(module, EXAMPLE)
    assert [(g.root, g.channels) for g in traced.groups] == [("a", 16)]
    small, surgery, proof = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    assert proof.largest_relative_difference <= 1e-10
    assert isinstance(small, RecordedProgram)
    kept = surgery.slices["a.weight"][0]
    with torch.no_grad():
        dense = copy.deepcopy(module)
        dense.b.weight[:, [c for c in range(16) if c not in kept.tolist()]] = 0  # type: ignore[index, operator]
        x = torch.randn(3, 3, 6, 6)
        torch.testing.assert_close(small(x), dense(x), rtol=1e-4, atol=1e-5)
    again = trace(small, EXAMPLE)
    assert [g.channels for g in again.groups] == [8]
    smaller, _, second = shrink_proved(small, again, half(again.groups), EXAMPLE)
    assert second.largest_relative_difference <= 1e-10
    assert len(smaller.get_parameter("a.weight")) == 4


def test_a_table_that_inputs_are_written_into_is_no_constant() -> None:
    def between(x: Tensor, y: Tensor) -> Tensor:
        table = torch.arange(8.0)[None, :, None, None].repeat(len(x), 1, 6, 6)
        table[:, 4:] = x[:, 4:]
        return table * y

    traced = trace(alive(nn.Sequential(Around(between), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1))), EXAMPLE)
    assert not any(n.name.startswith(("arange", "repeat", "slice")) for n in traced.ground.tables)
    shrink_proved(
        alive(Around(between)), *(lambda t: (t, half(t.groups)))(trace(alive(Around(between)), EXAMPLE)), EXAMPLE
    )


# Whose fault it is


def test_what_a_rule_raises_is_no_reason_for_a_channel_to_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("a bug")

    monkeypatch.setitem(RULES, "sigmoid", broken)
    with pytest.raises(InternalError, match=r"the rule for the operator `sigmoid` fails: KeyError: 'a bug'") as noticed:
        trace(alive(Around(lambda x, y: x.sigmoid() + y)), EXAMPLE)
    assert "report" in str(noticed.value.hint)


def test_an_operator_of_a_stranger_is_named_in_words() -> None:
    with torch.library._scoped_library("strange", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
        module = nn.Sequential(
            Around(lambda x, y: torch.ops.strange.twice(x) + y), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)
        )
        traced = trace(alive(module), EXAMPLE)
    assert reasons(traced)["0.a"] == "`strange.twice` is an operator that `compress` does not know"


def test_positions_are_numbers_that_torch_has_a_kernel_for() -> None:
    places: list[Any] = []

    def run(numbers: Tensor) -> Tensor:
        places.append(numbers.dtype)
        return torch.ops.aten.im2col(numbers, [1, 2], [1, 1], [0, 0], [1, 1])

    went = destinations((1, 3, 1, 2), 1, run)
    assert went is not None
    assert places[-1] is torch.float64
    assert went[0].ravel().tolist() == [1, 1, 2, 2, 3, 3]


def test_what_torch_runs_on_no_numbers_of_positions_stays_for_that_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.channels.destinations.NUMBERS", ())
    module = nn.Sequential(Around(lambda x, y: x.flip(3) + y), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1))
    assert reasons(trace(alive(module), EXAMPLE))["0.a"] == "torch cannot run `flip` on the numbers of its channels"


# Weights that are computed


class Modulated(nn.Module):
    """A convolution with weights of its own for every image, normed over what each reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.style, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Conv2d(8, 4, 1)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        images, _, height, width = x.shape
        weight = self.weight[None] * self.style(x.mean((2, 3)))[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        y = F.conv2d(x.reshape(1, -1, height, width), weight.flatten(0, 1), padding=1, groups=images)
        return self.b(torch.relu(y.reshape(images, 8, height, width)))


@pytest.mark.parametrize("images", [1, 2])
def test_a_convolution_with_weights_for_every_image_loses_what_it_reads(images: int) -> None:
    module = alive(Modulated())
    traced = trace(module, (EXAMPLE[0][:images],))
    assert [(g.root, g.channels) for g in traced.groups] == [("a", 8)]
    plan = half(traced.groups)
    small, surgery, proof = shrink_proved(module, traced, plan, (EXAMPLE[0][:images],))
    assert proof.largest_relative_difference <= 1e-10
    three = torch.randn(3, 3, 6, 6)  # traced with two
    (silenced,) = silenced_outputs(
        traced.ground, module, gone_labels(traced.groups, plan), [three], {}, dtype=torch.float32
    )
    with torch.no_grad():
        torch.testing.assert_close(small(three), silenced, rtol=1e-4, atol=1e-5)
    kept = surgery.slices["a.weight"][0].tolist()
    gone = [c for c in range(8) if c not in kept]
    with torch.no_grad():
        dense = copy.deepcopy(module)
        dense.weight[:, gone] = 0  # type: ignore[index]
        dense.style.weight[:, gone] = 0  # type: ignore[index, union-attr]
        x = torch.randn(3, 3, 6, 6)
        torch.testing.assert_close(small(x), dense(x), rtol=1e-4, atol=1e-5)


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "spectral": nn.utils.parametrizations.spectral_norm,
    "spectral, by a hook": nn.utils.spectral_norm,
    "weight": nn.utils.parametrizations.weight_norm,
    "weight, by a hook": lambda layer: torch.nn.utils.weight_norm(layer),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_a_weight_stays_what_it_is(name: str) -> None:
    """A weight norm's outputs leave; nothing leaves from under a norm that is taken over it."""
    layer = NORMS[name](nn.Conv2d(8, 12, 3))
    module = nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.ReLU(), nn.Conv2d(12, 6, 1), nn.Conv2d(6, 4, 1))
    module(EXAMPLE[0])  # old hooks make the weight as they run
    module = alive(module)
    traced = trace(module, EXAMPLE)
    said = reasons(traced)
    small, surgery, proof = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    assert proof.largest_relative_difference <= 1e-10
    assert "0" in said
    if "spectral" in name:
        assert [g.root for g in traced.groups] == ["3"]
        assert "a norm of the whole weight is taken over it" in said.values()
        return
    kept = surgery.slices["3.weight"]
    assert len(kept[1]) == 6
    with torch.no_grad():  # the dense one, in which nobody reads what left
        for reader, read in (("3", kept[1]), ("4", kept[0])):
            weight = module.get_parameter(f"{reader}.weight")
            weight[:, [c for c in range(weight.shape[1]) if c not in read.tolist()]] = 0
        torch.testing.assert_close(small(EXAMPLE[0]), module(EXAMPLE[0]), rtol=1e-4, atol=1e-5)
