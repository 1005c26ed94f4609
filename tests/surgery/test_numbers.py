"""Networks whose numbers are not all float32: integers in, complex weights, casts on the way, other precisions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compressor.channels.groups import trace, without
from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import load_artifact
from compressor.checkpoint.loading import load
from compressor.errors import CheckpointError, GroupError, SurgeryError
from compressor.graph.precision import in_types_
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget, PruningPlan
from compressor.surgery.proof import TOLERANCE, Proof
from compressor.surgery.proved import shrink_proved
from tests.surgery.test_shrinking import random_plan


class Tokens(nn.Module):
    """Reads integers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(50, 16), nn.Linear(16, 24), nn.Linear(24, 10)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.b(self.a(self.table(ids)).relu())
        return found


class Fourier(nn.Module):
    """A complex parameter and a complex buffer filter the features before the layers that can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 4)
        self.filter = nn.Parameter(torch.randn(9, dtype=torch.cfloat))
        self.register_buffer("turn", torch.polar(torch.ones(9), torch.linspace(0, 2, 9)))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.a(x)) * self.filter * self.turn
        found: Tensor = self.c(self.b(torch.fft.irfft(spectrum, n=16)).relu())
        return found


class CastByTensor(nn.Module):
    """Computes a part in float32 whatever it runs in: the type comes from a tensor that nothing converts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 4)
        self.kind = [torch.zeros(1)]  # in a list: no buffer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.c(self.b(self.a(x).to(self.kind[0]).relu().to(x.dtype)).relu())
        return found


def proof_of(module: nn.Module, *inputs: Tensor) -> Proof:
    module.eval()
    traced = trace(module, inputs)
    return shrink_proved(module, traced, random_plan(traced.groups, 0.5), inputs)[2]


def ids(*shape: int) -> Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(0))


def test_a_network_that_reads_integers_alone_is_proved_in_float64() -> None:
    torch.manual_seed(0)
    proof = proof_of(Tokens(), ids(1, 12))
    assert proof.dtype is torch.float64
    assert proof.largest_relative_difference <= 1e-10
    assert proof.moved > 1e-3
    assert proof.result.to_json()["tolerance"] == 1e-10


def test_complex_weights_keep_their_imaginary_part() -> None:
    torch.manual_seed(0)
    module, x = Fourier(), torch.randn(1, 8)
    module.eval()
    traced = trace(module, (x,))
    plan = random_plan(traced.groups, 0.5)
    small, _, proof = shrink_proved(module, traced, plan, (x,))
    assert proof.dtype is torch.float64
    assert proof.holds
    assert proof.largest_relative_difference <= 1e-10
    assert torch.equal(small.get_parameter("filter"), module.filter)
    assert small.get_buffer("turn").dtype is torch.complex64
    assert small.get_parameter("b.weight").shape[0] < 32


def test_a_cast_to_float32_on_the_way_widens_the_tolerance_and_is_said() -> None:
    torch.manual_seed(0)
    proof = proof_of(CastByTensor(), torch.randn(1, 8))
    assert proof.largest_relative_difference > 1e-10
    assert proof.dtype is torch.float64
    assert proof.narrowest is torch.float32
    assert TOLERANCE[torch.float64] < proof.tolerance < TOLERANCE[torch.float32]  # what a last bit does to it
    assert proof.holds
    assert proof.result.to_json()["narrowest"] == "float32"


def test_a_cast_lets_no_faintly_wrong_network_pass() -> None:
    class Faint(CastByTensor):
        """Heads that a plain cut would divide wrongly, which hardly shows in what the network says."""

        def __init__(self) -> None:
            super().__init__()
            self.part = 4
            self.inner, self.outer, self.beside = nn.Linear(12, 16), nn.Linear(16, 5), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            units = self.inner(x).to(self.kind[0]).view(len(x), -1, self.part).softmax(1).to(x.dtype)
            found: Tensor = self.beside(x) + 3e-4 * self.outer(units.flatten(1))
            return found

    torch.manual_seed(0)
    module, x = Faint().eval(), torch.randn(2, 12)
    traced = trace(module, (x,))
    plan = PruningPlan(removed={g.root: tuple(range(g.channels // 2)) for g in traced.groups})
    assert shrink_proved(module, traced, plan, (x,))[1].attributes[""]["part"] == 2


def test_a_wrong_network_that_hardly_shows_it_is_refused_where_nothing_is_cast() -> None:
    """Weights are kept in float32: that is no type that anything is computed in."""

    class Attends(nn.Module):
        """One head whose features a plain cut would divide by another root, behind a factor that nearly hides it."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.attention, self.outer = nn.Linear(6, 8), nn.MultiheadAttention(8, 1), nn.Linear(8, 5)
            self.beside = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            found: Tensor = self.beside(x) + 1e-5 * self.outer(self.attention(y, y, y)[0])
            return found

    torch.manual_seed(0)
    module, x = Attends().eval(), torch.randn(4, 2, 6)
    traced = trace(module, (x,), heads=False)
    plan = PruningPlan(removed={g.root: tuple(range(g.channels // 2)) for g in traced.groups})
    small, surgery, proof = shrink_proved(module, traced, plan, (x,))
    assert proof.largest_relative_difference < 1e-10
    assert surgery.program is not None  # its class cannot keep the scale
    assert small(x).shape == module(x).shape


def test_a_float64_proof_without_casts_stays_strict() -> None:
    torch.manual_seed(0)
    proof = proof_of(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(1, 8))
    assert proof.narrowest is None
    assert proof.tolerance == 1e-10


@pytest.mark.parametrize(("moved", "vacuous"), [(0.0, True), (1e-12, True), (1e-3, False)])
def test_a_proof_that_has_seen_nothing_says_so(moved: float, vacuous: bool) -> None:
    proof = Proof(largest_relative_difference=0.0, moved=moved, dtype=torch.float64, outputs=1, inputs="random")
    assert proof.vacuous is vacuous
    assert proof.result.to_json()["vacuous"] is vacuous


def test_a_wrong_network_is_refused_whatever_its_types(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, x = CastByTensor().eval(), torch.randn(1, 8)
    traced = trace(module, (x,))
    monkeypatch.setattr("compressor.surgery.proved.prove", lambda small, reference: _spoiled(small, reference))
    with pytest.raises(SurgeryError, match="differs from the silenced dense one"):
        shrink_proved(module, traced, random_plan(traced.groups, 0.5), (x,))


def _spoiled(small: nn.Module, reference: object) -> Proof:
    from compressor.surgery.proof import prove

    with torch.no_grad():
        small.get_parameter("c.weight").mul_(1.01)
    return prove(small, reference)  # type: ignore[arg-type]  # a `Reference`


class Branches(nn.Module):
    """Of the parts beside, one runs on large images, and one in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.large = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 16, 1)
        self.aux = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.shape[-1] > 100:
            x = self.large(x)
        if self.training:
            x = x + self.aux(x).mean()
        found: Tensor = self.b(x.relu())
        return found


def test_branches_that_no_input_reached_are_named() -> None:
    traced = trace(Branches().eval(), (torch.randn(1, 3, 8, 8),))
    reasons = {alone.layer: alone.reason for alone in traced.left_alone}
    assert "no input reached it" in reasons["large"]
    assert "no input reached it" in reasons["aux"]
    assert set(reasons) == {"b", "large", "aux"}
    reached = trace(Branches().eval(), (torch.randn(1, 3, 128, 128),))
    assert {alone.layer for alone in reached.left_alone} == {"b", "aux"}


def test_a_group_that_cannot_be_proved_keeps_its_reason_and_the_refusal_has_all_of_them() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2), nn.Linear(2, 2))
    traced = trace(module.eval(), (torch.randn(1, 4),))
    once = without(traced, {"0": "for a first reason"})
    twice = without(once, {"2": "for a second reason"})
    assert {a.layer: a.reason for a in twice.left_alone} == {
        "0": "for a first reason", "2": "for a second reason", "5": "its channels are the network's output",
    }  # fmt: skip
    with pytest.raises(GroupError) as caught:
        without(twice, {"4": "for a second reason"})
    said = str(caught.value)
    assert "`0`: for a first reason" in said
    assert "`2`, `4`: for a second reason" in said
    assert "`5`: its channels are the network's output" in said


def test_a_layer_with_several_groups_keeps_the_reasons_of_all() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.a(x).relu().chunk(2, 1)
            found: Tensor = self.b(first) + self.c(second.tanh())
            return found

    traced = trace(Parts().eval(), (torch.randn(1, 4),))
    assert [g.root for g in traced.groups] == ["a", "a/2"]
    with pytest.raises(GroupError, match="one way; another way"):
        without(without(traced, {"a": "one way"}), {"a/2": "another way"})


def images_in(cast: Callable[[nn.Module], object]) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    cast(module.eval())
    return module


PRECISIONS: dict[str, Callable[[nn.Module], object]] = {
    "float16": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "float64": lambda module: module.double(),
    "a part in float16": lambda module: module[3].half(),  # type: ignore[index]  # a `Sequential`
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_whole_module_in_another_precision_comes_back_in_it(name: str, tmp_path: Path) -> None:
    module = images_in(PRECISIONS[name])
    torch.save(module, tmp_path / "net.pt")
    checkpoint = load(tmp_path / "net.pt", inputs=("1x1x12x12",))
    assert {p.dtype for p in checkpoint.module.parameters()} == {torch.float32}
    pruned = prune(checkpoint, Request(budget=ChannelBudget(ratio=0.5)))
    assert pruned.proof.dtype is torch.float64
    folder = tmp_path / "net.compressed"
    write_artifact(
        folder, pruned.checkpoint, source={"path": "", "sha256": "0" * 64}, results=Results(), verify=name == "float16"
    )
    state = load_file(folder / "model.safetensors")
    surgery = pruned.checkpoint.surgery
    assert surgery is not None
    dense = surgery.cut_state(module.state_dict())
    assert {n: t.dtype for n, t in state.items()} == {n: t.dtype for n, t in dense.items()}
    for key, tensor in dense.items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-7 if tensor.dtype is torch.float64 else 0, atol=0)
    again = load_artifact(folder)
    assert again.types == {n: dtype for n, dtype in checkpoint.types.items() if n in state}
    typed = in_types_(again.module, again.types)
    assert {n: t.dtype for n, t in typed.state_dict().items()} == {n: t.dtype for n, t in dense.items()}
    weight = next(typed.parameters())
    if name != "a part in float16":
        assert typed(torch.randn(2, 1, 12, 12, dtype=weight.dtype)).dtype is weight.dtype


def test_a_network_that_insists_on_half_precision_is_refused_in_those_words(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    path.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a = nn.Linear(8, 4).half()\n"
        "    def forward(self, x):\n"
        "        return self.a(x.half()).float()\n"
    )
    torch.save(nn.ModuleDict({"a": nn.Linear(8, 4).half()}).state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="in float16 is computed in float32") as caught:
        load(tmp_path / "w.pt", arch=f"{path}:Net", inputs=("1x8",))
    assert "cast" in str(caught.value.hint)
