"""Gradients that are right on every processor: pointwise convolutions with a stride, and a check of all kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.channels.groups import trace
from compressor.checkpoint.recipes import Recipe, Schedule, Step
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import RetrainError
from compressor.graph import gradients
from compressor.graph.gradients import check_gradients, right_gradients
from compressor.planning.calibration import Needs
from compressor.planning.gathering import gather
from compressor.pruning.repair.distillation import distil
from compressor.pruning.transfer.scores import Pair, joint_gradients
from compressor.surgery.plan import ChannelBudget, Scores, plan_pruning
from compressor.surgery.shrinking import shrink
from compressor.training.domains.adaptation import Alignment
from compressor.training.loop import train

OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # what an x86 processor without AVX-512 runs
LIMIT_S = 120  # a faulty kernel may never end


class Dangerous(TorchDispatchMode):
    """Notes every backward pass of a pointwise convolution with a stride and few input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.any = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            weight, stride = args[2], args[4]
            self.any += 1
            if weight.shape[1] < 16 and set(weight.shape[2:]) == {1} and max(stride) > 1:
                self.seen.append(tuple(weight.shape))
        return func(*args, **(kwargs or {}))


def gradients_of(run: Callable[[Tensor, Tensor, Tensor], Tensor], *tensors: Tensor) -> list[Tensor]:
    held = [t.detach().clone().requires_grad_(True) for t in tensors]
    y = run(*held)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad(y, held, upstream.to(y.dtype))]


CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@given(
    axes=st.integers(1, 3), width=st.integers(1, 5), groups=st.integers(1, 3), stride=st.integers(1, 3),
    padding=st.integers(0, 2), last=st.booleans(), kernel=st.sampled_from((1, 1, 1, 2)), data=st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_outputs_and_gradients_are_those_of_the_convolution_as_written(
    axes: int, width: int, groups: int, stride: int, padding: int, last: bool, kernel: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(2, width * groups, *[4, 5, 6][:axes], generator=generator, dtype=torch.float64)
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    weight = torch.randn(2 * groups, width, *[kernel] * axes, generator=generator, dtype=torch.float64)
    bias = torch.randn(2 * groups, generator=generator, dtype=torch.float64)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return CONVOLUTIONS[axes](x, weight, bias, stride, padding, 1, groups)

    def general(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        each = [[n] * axes for n in (stride, padding, 1, 0)]
        return torch.ops.aten.convolution.default(x, weight, bias, *each[:3], False, each[3], groups)

    right = gradients_of(run, x, weight, bias)
    for form in (run, general):
        with right_gradients(), Dangerous() as dangerous:
            found = gradients_of(form, x, weight, bias)
        assert not dangerous.seen
        assert dangerous.any
        for ours, theirs in zip(found, right, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_program_of_operators_is_reached_too() -> None:
    from compressor.surgery.mending import as_program

    layer = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Flatten(), nn.Linear(36, 2))
    images = torch.randn(2, 3, 6, 6)
    program = as_program(layer, (images,)).train()
    for module in (layer, program):
        with Dangerous() as dangerous:
            module(images).sum().backward()
        assert dangerous.seen == [(4, 3, 1, 1)]
        with right_gradients(), Dangerous() as dangerous:
            module(images).sum().backward()
        assert not dangerous.seen
        assert dangerous.any


CHILD = """
import json, sys
import torch
from torch import nn
from compressor.graph.gradients import check_gradients, right_gradients
torch.set_num_threads(int(sys.argv[1]))
worst = {}
for width in map(int, sys.argv[2:]):
    torch.manual_seed(width)
    layer = nn.Conv2d(width, 16, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
    worst[width] = 0.0
    for _ in range(4):
        x = torch.randn(8, width, 28, 28).to(memory_format=torch.channels_last)
        check_gradients(layer, [x])
        with right_gradients():
            y = layer(x)
        g = torch.randn_like(y)
        layer.zero_grad()
        y.backward(g)
        right = torch.einsum("bohw,bihw->oi", g.double(), x[:, :, ::2, ::2].double())
        worst[width] = max(worst[width], float((layer.weight.grad[:, :, 0, 0] - right).norm() / right.norm()))
print(json.dumps(worst))
"""


def child(code: str, *arguments: object, older: bool) -> Any:
    environment = {**os.environ, **(OLDER if older else {})}
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True,
        timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("older", [False, True])
def test_weight_gradients_by_width_agree_with_float64(threads: int, older: bool) -> None:
    worst = child(CHILD, threads, *range(1, 21), older=older)
    assert len(worst) == 20
    assert max(worst.values()) < 1e-5


FUZZED = """
import json, random, sys
import torch
from torch import nn
from compressor.graph.gradients import right_gradients
threads, seed, count = map(int, sys.argv[1:])
torch.set_num_threads(threads)
draw, worst = random.Random(seed), {}
for _ in range(count):
    axes, transposed = draw.randint(1, 3), draw.random() < 0.25
    groups, last = draw.choice((1, 1, 2, 3, 0)), draw.random() < 0.5
    inputs, outputs = draw.randint(1, 20), draw.randint(1, 20)
    inputs, outputs = (inputs, inputs) if not groups else (inputs * groups, outputs * groups)  # depthwise, else grouped
    kernel, stride, padding = draw.randint(1, 3), draw.randint(1, 3), draw.randint(0, 1)
    kind = [getattr(nn, "ConvTranspose" * transposed + "Conv" * (not transposed) + f"{n}d") for n in (1, 2, 3)]
    torch.manual_seed(draw.randint(0, 10**6))
    layer = kind[axes - 1](inputs, outputs, kernel, stride, padding, groups=groups or inputs)
    x = torch.randn(draw.randint(1, 4), inputs, *[draw.randint(4, 14 if axes < 3 else 7) for _ in range(axes)])
    if last and axes > 1:
        form = torch.channels_last if axes == 2 else torch.channels_last_3d
        layer, x = layer.to(memory_format=form), x.to(memory_format=form)
    elif last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    found = []
    for dtype in (torch.float32, torch.float64):
        layer, y = layer.to(dtype), x.detach().to(dtype).requires_grad_(True)
        with right_gradients():
            out = layer(y)
        torch.manual_seed(7)
        upstream = torch.empty_like(out).copy_(torch.randn(out.shape))
        found.append([out.detach(), *torch.autograd.grad(out, [y, layer.weight, layer.bias], upstream)])
    for name, ours, right in zip(("output", "input", "weight", "bias"), *found):
        error = float((ours - right).norm() / right.norm().clamp(min=1e-6))
        if not error <= worst.get(name, (0.0,))[0]:
            worst[name] = (error, f"{layer}, {list(x.shape)}, last: {last}")
print(json.dumps(worst))
"""


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_random_convolutions_agree_with_float64(seed: int, threads: int, older: bool) -> None:
    """Plain, grouped, depthwise, transposed; one to three axes; both layouts: 2,000 of them on two kinds of kernels."""
    worst = child(FUZZED, threads, seed, 100, older=older)
    assert set(worst) == {"output", "input", "weight", "bias"}
    for error, layer in worst.values():
        assert error < 1e-4, layer


class Shortcut(nn.Module):
    """A residual block with a narrow shortcut, as pruning makes them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.body = nn.Conv2d(width, 6, 3, stride=2, padding=1)
        self.short = nn.Conv2d(width, 6, 1, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head((self.body(x) + self.short(x)).relu().mean((2, 3)))


def shortcut() -> Shortcut:
    torch.manual_seed(0)
    return Shortcut(5)


def labelled(count: int) -> Images:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 255, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(images, torch.randint(0, 3, (count,), generator=generator))


DATA = Data(name="noise", source="made", train=labelled(24), tune=labelled(8), test=labelled(9))
RECIPE = Recipe(budget=Step(epochs=1), schedule=Schedule(rate=0.05), batch_size=8)
SEEN = Preprocessing(mean=(0.5,), std=(0.5,), size=(8, 8), channels=1)
BATCHES = [torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(3)]
LABELS = torch.arange(8) % 3


def trains() -> None:
    train(shortcut(), DATA, recipe=RECIPE, preprocessing=SEEN)


def trains_what_is_in_channels_last_already() -> None:
    train(shortcut().to(memory_format=torch.channels_last), DATA, recipe=RECIPE, preprocessing=SEEN)


def follows_a_teacher() -> None:
    train(shortcut(), DATA, recipe=RECIPE, preprocessing=SEEN, teacher=shortcut())


def trains_by_an_objective() -> None:
    class Objective:
        identity: ClassVar[dict[str, object]] = {}

        def __call__(self, module: nn.Module, inputs: Tensor, labels: Tensor, /, *, step: int, steps: int) -> Tensor:
            del step, steps
            return functional.cross_entropy(module(inputs), labels)

    train(shortcut(), DATA, recipe=RECIPE, preprocessing=SEEN, objective=Objective())


def distils() -> None:
    net = shortcut().eval()
    traced = trace(net, (BATCHES[0],))
    scores = {g.root: torch.arange(g.channels, dtype=torch.float64) for g in traced.groups}
    plan = plan_pruning(traced.groups, Scores(by_root=scores, comparable=True), budget=ChannelBudget(ratio=0.4))
    small, surgery = shrink(net, traced, plan, (BATCHES[0],))
    distil(net, small, surgery, [(x,) for x in BATCHES[:2]], [(BATCHES[2],)], steps=2)


def scores_by_gradients() -> None:
    batches = [((x,), LABELS) for x in BATCHES]
    for needs in (Needs.GRADIENTS, Needs.SQUARED_GRADIENTS):
        gather(shortcut().to(memory_format=torch.channels_last), [], needs=needs, batches=batches, seed=0)


def scores_for_another_domain() -> None:
    pairs: list[Pair] = [(x, LABELS, x + 1) for x in BATCHES]
    joint_gradients(shortcut(), pairs, alignment=Alignment(layer="head", weight=0.5))


@pytest.mark.parametrize(
    "run",
    [trains, trains_what_is_in_channels_last_already, follows_a_teacher, trains_by_an_objective, distils,
     scores_by_gradients, scores_for_another_domain],
)  # fmt: skip
def test_no_backward_pass_of_ours_runs_the_faulty_kernel(run: Callable[[], None]) -> None:
    with Dangerous() as dangerous:
        run()
    assert dangerous.any
    assert not dangerous.seen


class TestCheck:
    def test_right_gradients_pass_and_leave_the_module_as_it_was(self) -> None:
        module = Shortcut(3).train()
        before = {k: v.clone() for k, v in module.state_dict().items()}
        check_gradients(module, [torch.randn(5, 1, 8, 8)])
        assert module.training
        assert all(p.grad is None for p in module.parameters())
        assert not any(layer._forward_pre_hooks for layer in module.modules())
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())

    def test_a_wrong_one_is_refused_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Wrong(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, weight: Tensor) -> Tensor:
                del ctx
                return weight.clone()

            @staticmethod
            def backward(ctx: Any, upstream: Tensor) -> Tensor:
                del ctx
                return upstream * 0.8 if upstream.dtype is torch.float32 else upstream

        class Broken(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return functional.linear(x, Wrong.apply(self.weight), self.bias)  # type: ignore[no-untyped-call]

        monkeypatch.setattr(gradients, "_RIGHT", set())
        module = nn.Sequential(nn.Linear(4, 5), Broken(5, 2))
        with pytest.raises(RetrainError, match="`1` is wrong by 20%"):
            check_gradients(module, [torch.randn(3, 4)])

    def test_a_kind_is_looked_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looked: list[nn.Module] = []
        monkeypatch.setattr(gradients, "_RIGHT", set())
        monkeypatch.setattr(gradients, "_error", lambda layer, _: looked.append(layer) or 0.0)
        for _ in range(2):
            check_gradients(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), [torch.randn(3, 4)])
        assert len(looked) == 1
