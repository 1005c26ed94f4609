"""Sizes that a network's own code leaves open stay open where it is kept as a program, and are proved at others."""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import trace
from compressor.channels.open_sizes import opened
from compressor.channels.silenced import silenced_outputs
from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import load_artifact
from compressor.errors import InputError, SurgeryError
from compressor.export.onnx import export_onnx
from compressor.graph.outputs import outputs_of, relative_difference
from compressor.graph.recorded import RecordedProgram
from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.mending import mended
from compressor.surgery.plan import ChannelBudget, PruningPlan, Scores, gone_labels, plan_pruning
from compressor.surgery.proof import random_like
from compressor.surgery.shrinking import forms, shrink
from tests.support.topologies import alive, checkpoint_of

HALF = Request(budget=ChannelBudget(ratio=0.5), align=1)


class Sized(nn.Module):
    """Splits at a number in the code, and divides by height times width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(24, 24, 1), nn.Conv2d(32, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = torch.split(self.a(x).relu(), (8, 24), dim=1)
        mean = rest.sum(3, keepdim=True).sum(2, keepdim=True) / (rest.size(2) * rest.size(3))
        return self.c(torch.cat([kept, rest * self.b(mean).sigmoid()], 1))


class Speech(nn.Module):
    """Frames of a signal of any length, with a gate whose halves are a number in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 32, 8, 4), nn.Conv1d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        values, gates = y.view(y.shape[0], 2, 16, y.shape[-1]).unbind(1)
        y = values * gates.sigmoid() / y.shape[-1]
        return self.b(y.permute(0, 2, 1).reshape(-1, y.shape[-1], 16).transpose(1, 2))


class Shuffle(nn.Module):
    """Channel shuffles between strided convolutions, and a pooling to one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.down, self.fc = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 24, 3, 2, 1), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept, goes = self.stem(x).relu().split(8, dim=1)
        y = torch.cat([kept, self.point(self.branch(goes)).relu()], 1)
        batch, channels, height, width = y.shape
        y = y.view(batch, 2, 8, height, width).transpose(1, 2).contiguous()
        return self.fc(self.down(y.view(batch, channels, height, width)).relu().mean((2, 3)))


class Words(nn.Module):
    """Tokens and their mask, which are as long as each other; heads are a number in the views."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.qkv, self.out = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        batch, length = ids.shape
        q, k, v = self.qkv(self.e(ids)).view(batch, length, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind()
        scores = (q @ k.transpose(-2, -1)) / 8**0.5 + mask[:, None, None, :]
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 16)).sum(1) / length


class Placed(nn.Module):
    """Positions computed from the size, with a frequency for every channel, added before a number in the views."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        angle = torch.arange(y.shape[-1], dtype=y.dtype)[None, :] / torch.arange(1, 33, dtype=y.dtype)[:, None]
        y = y + angle.sin()[None, :, None, :]
        y = y.view(y.shape[0], 4, 8, *y.shape[2:]).transpose(1, 2).reshape(y.shape[0], 32, *y.shape[2:])
        return self.b(y)


class Shrinking(Sized):
    """An unpadded convolution, behind which the smallest image is one position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.avg_pool2d(x, 3, 1)).mean((2, 3))


class Branching(Sized):
    """Another network above a height."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if x.shape[2] > 20 else y


class Frozen(Sized):
    """Code that asks for its size as a number, which the export has as one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * int(x.shape[2] * x.shape[3])


class Flattening(Sized):
    """A linear layer behind a flattening takes one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8 * 12 * 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(super().forward(x).flatten(1))


class Windowed(Sized):
    """Arithmetic on the sizes without end, as windows that are padded need."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for size in (7, 5, 3, 11):
            y = nn.functional.pad(y, (0, (size - y.shape[3] % size) % size, 0, (size - y.shape[2] % size) % size))
        return y


def pruned(module: nn.Module, shape: tuple[int, ...]) -> Pruned:
    found = prune(checkpoint_of(alive(module), shape), HALF)
    assert found.kept_as == "program"
    return found


def half(module: nn.Module, *example: Tensor) -> tuple[RecordedProgram, Any, PruningPlan]:
    """The module without half of its channels, kept as a program; the trace and the plan."""
    traced = trace(alive(module), example)
    by_root = {g.root: torch.arange(g.channels).double() for g in traced.groups}
    plan = plan_pruning(traced.groups, Scores(by_root=by_root, comparable=True), budget=ChannelBudget(ratio=0.5))
    small, _ = shrink(module, traced, plan, example)
    assert isinstance(small, RecordedProgram)
    return small, traced, plan


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# Oracles


@pytest.mark.parametrize(
    ("kind", "shape", "others"),
    [(Sized, (1, 3, 16, 16), [(2, 3, 24, 24), (1, 3, 64, 64), (3, 3, 16, 5), (1, 3, 1, 1)]),
     (Shuffle, (1, 3, 32, 32), [(2, 3, 64, 64), (1, 3, 20, 36), (1, 3, 4, 4)]),
     (Shrinking, (1, 3, 16, 16), [(1, 3, 3, 3), (2, 3, 3, 20), (1, 3, 20, 3)]),
     (Placed, (1, 3, 16, 16), [(2, 3, 24, 40), (1, 3, 3, 2)]),
     (Speech, (1, 1, 400), [(2, 1, 160), (1, 1, 1000), (3, 1, 8)])],
)  # fmt: skip
def test_a_program_says_at_other_sizes_what_the_silenced_network_says(
    kind: type[nn.Module], shape: tuple[int, ...], others: list[tuple[int, ...]]
) -> None:
    """Each size has a trace and a reference of its own, made at that size by the module's own code."""
    module = kind()
    small, traced, plan = half(module, images(*shape))
    for other in others:
        x = images(*other)
        again = trace(module, (x[:1],))
        assert [g.root for g in again.groups] == [g.root for g in traced.groups]
        gone = gone_labels(again.groups, plan)
        expected = silenced_outputs(again.ground, module, gone, [x], {}, dtype=torch.float32)
        assert [t.shape for t in outputs_of(small, [x])] == [t.shape for t in expected]
        assert all(relative_difference(a, b) < 1e-4 for a, b in zip(outputs_of(small, [x]), expected, strict=True))


def test_inputs_that_are_as_long_as_each_other_stay_so() -> None:
    ids, mask = torch.arange(12)[None], torch.ones(1, 12)
    module = Words()
    small, _, plan = half(module, ids, mask)
    for length in (1, 5, 40):
        given = [torch.arange(2 * length).view(2, length) % 50, torch.rand(2, length) + 0.1]
        again = trace(module, (given[0][:1], given[1][:1]))
        expected = silenced_outputs(
            again.ground, module, gone_labels(again.groups, plan), given, {}, dtype=torch.float32
        )
        assert relative_difference(outputs_of(small, given)[0], expected[0]) < 1e-4
    with pytest.raises(InputError, match=r"ids.shape\[1\] == mask.shape\[1\]"):
        small(torch.zeros(1, 6, dtype=torch.int64), torch.ones(1, 5))


def test_an_artifact_takes_any_size_and_prunes_again(workdir: Any) -> None:
    found = pruned(Sized(), (1, 3, 16, 16))
    assert found.takes == "x: any x 3 x any x any"
    write_artifact(
        workdir / "net.compressed",
        found.checkpoint,
        source={"path": "net.pt", "sha256": "0" * 64},
        results=Results(),
    )  # read in a fresh process
    again = load_artifact(workdir / "net.compressed").module
    for x in (images(2, 3, 24, 40), images(1, 3, 16, 16)):
        assert torch.equal(again(x), found.checkpoint.module(x))
    twice = prune(found.checkpoint, HALF)
    assert twice.takes == found.takes
    assert twice.checkpoint.module(images(1, 3, 40, 24)).shape == (1, 8, 40, 24)
    parity = export_onnx(found.checkpoint, workdir / "net.onnx")
    assert parity.dynamic_batch
    session = onnxruntime.InferenceSession(workdir / "net.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="invalid dimensions"):  # what was compared is what it takes
        session.run(None, {"input_0": images(1, 3, 24, 24).numpy()})


# What is fixed stays fixed


@pytest.mark.parametrize("kind", [Frozen, Flattening])
def test_a_size_that_is_fixed_is_refused_by_name(kind: type[nn.Module]) -> None:
    found = pruned(kind(), (1, 3, 12, 12))
    assert found.takes == "x: any x 3 x 12 x 12"
    found.checkpoint.module(images(3, 3, 12, 12))
    with pytest.raises(InputError, match="needs 12"):
        found.checkpoint.module(images(1, 3, 12, 24))


def test_a_way_that_the_code_takes_by_the_size_is_the_only_one() -> None:
    module = Branching()
    found = pruned(module, (1, 3, 24, 24))
    assert found.takes == "x: any x 3 x any x any (where x.shape[2] >= 21)"
    small = found.checkpoint.module
    small(images(1, 3, 30, 5))
    for again in (small, copy.deepcopy(small), prune(found.checkpoint, HALF).checkpoint.module):
        with pytest.raises(InputError, match=r"requires \(x.shape\[2\] >= 21\)"):
            again(images(1, 3, 20, 24))
    json.dumps(small.recorded, allow_nan=False)


def test_sizes_that_take_much_arithmetic_stay_fixed() -> None:
    module, x = alive(Windowed()), images(1, 3, 12, 12)
    traced = trace(module, (x,))
    assert opened(traced.ground, module, (x,)) is None


def test_a_program_that_is_wrong_elsewhere_is_made_for_the_examples_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last proof, at another size: here a number is put into the open program that is right at the example's."""
    module, x = Sized(), images(1, 3, 16, 16)
    small, traced, plan = half(module, x)
    assert small.recorded["takes"]["inputs"][0]["shape"] == [None, 3, None, None]
    true = mended

    def tampered(*arguments: Any) -> dict[str, Any]:
        recorded = true(*arguments)
        node = next(n for n in recorded["nodes"] if "div" in n.get("call", ""))
        node["args"][1] = 256
        return recorded

    monkeypatch.setattr(sys.modules["compressor.surgery.shrinking"], "mended", tampered)
    *_, open_program, _ = forms(module, traced, plan, (x,))
    with pytest.raises(SurgeryError, match="differs"):
        open_program()
    again, _ = shrink(module, traced, plan, (x,))
    assert isinstance(again, RecordedProgram)
    assert again.recorded["takes"]["inputs"][0]["shape"] == [None, 3, 16, 16]


def test_the_network_and_its_trace_are_left_as_they_were() -> None:
    module, x = alive(Sized()).train(), images(1, 3, 16, 16)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    traced = trace(module, (x,))
    shapes = dict(traced.ground.shapes)
    found = opened(traced.ground, module, (x,))
    assert found is opened(traced.ground, module, (x,))
    assert found is not None
    assert traced.ground.shapes == shapes
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert [t.shape for t in random_like(found.elsewhere)] == [(2, 3, 32, 32)]
