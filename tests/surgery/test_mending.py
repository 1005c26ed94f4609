"""A small network that is a program: plain values, and a module like any other."""

from __future__ import annotations

import builtins
import contextlib
import copy
import functools
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import trace
from compressor.errors import SurgeryError
from compressor.graph.input_spec import random_like
from compressor.graph.outputs import outputs_of, relative_difference
from compressor.graph.recorded import RecordedProgram, program_from
from compressor.surgery.mending import as_program
from compressor.surgery.plan import ChannelBudget, Scores, plan_pruning
from compressor.surgery.shrinking import shrink
from compressor.surgery.surgery import Surgery, operate, reshaped, surgery_from_json
from tests.support.command_line import done
from tests.support.topologies import INPUT, TOPOLOGIES, WAYS, FusedAttention, PaddedSkip, Residual, alive, head

EXAMPLE = (torch.randn(INPUT, generator=torch.Generator().manual_seed(1)),)
PROGRAMS = {
    name: (TOPOLOGIES | WAYS)[name]
    for name in ("attention", "halves", "padded skip", "fused attention", "bias table", "einsum attention")
}


def pruned(module: nn.Module) -> tuple[RecordedProgram, Surgery]:
    """The module without half of its channels, which its class cannot hold."""
    traced = trace(module, EXAMPLE)
    by_root = {g.root: torch.arange(g.channels).double() for g in traced.groups}
    plan = plan_pruning(traced.groups, Scores(by_root=by_root, comparable=True), budget=ChannelBudget(ratio=0.5))
    small, surgery = shrink(module, traced, plan, EXAMPLE)
    assert surgery.program is not None
    assert isinstance(small, RecordedProgram)
    return small, surgery


@functools.cache
def _pruned_by_name(name: str) -> tuple[nn.Module, RecordedProgram, Surgery]:
    module = alive(PROGRAMS[name]())
    return module, *pruned(module)


def pruned_by_name(name: str) -> tuple[nn.Module, RecordedProgram, Surgery]:
    """A network of `PROGRAMS`, what is left of it, and how: a copy for each test of what is made once."""
    return copy.deepcopy(_pruned_by_name(name))


def said(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def images(count: int, *, seed: int = 0) -> Tensor:
    return torch.randn(count, *INPUT[1:], generator=torch.Generator().manual_seed(seed))


# Oracles


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_in_which_nothing_is_mended_says_what_the_module_says(name: str) -> None:
    module = alive(PROGRAMS[name]())
    program = as_program(module, EXAMPLE)
    assert relative_difference(said(program, images(3)), said(module, images(3))) < 1e-6
    assert {n: t.shape for n, t in program.named_parameters()} == {n: t.shape for n, t in module.named_parameters()}


def test_a_program_learns_what_its_class_learns() -> None:
    """The same steps of the same optimiser on the same images, with the batch norms' own statistics."""
    module = alive(PaddedSkip())
    program = as_program(module, EXAMPLE)
    for net in (module, program):
        net.train()
        optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        for step in range(3):
            optimiser.zero_grad()
            net(images(4, seed=step)).square().mean().backward()
            optimiser.step()
        net.eval()
    state = program.state_dict()
    for key, value in module.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-6)
    assert relative_difference(said(program, images(2)), said(module, images(2))) < 1e-4


# Properties


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_survives_json_with_the_same_outputs(name: str) -> None:
    module, small, surgery = pruned_by_name(name)
    plain = json.loads(json.dumps(surgery.to_json(), allow_nan=False))
    again = operate(module, surgery_from_json(plain))
    assert list(again.state_dict()) == list(small.state_dict())
    assert torch.equal(said(again, images(2)), said(small, images(2)))
    held = program_from(plain["program"], small.state_dict())
    assert torch.equal(said(held, images(2)), said(small, images(2)))
    trained = {k: v + 0.1 if v.is_floating_point() else v for k, v in small.state_dict().items()}
    loaded = reshaped(module, surgery_from_json(plain), trained)
    assert all(torch.equal(v, trained[k]) for k, v in loaded.state_dict().items())


@pytest.mark.parametrize("name", PROGRAMS)
def test_names_are_those_of_the_dense_network(name: str) -> None:
    module, small, surgery = pruned_by_name(name)
    assert [n for n, _ in small.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert set(small.state_dict()) >= set(module.state_dict())
    cut = surgery.cut_state(module.state_dict())
    assert all(torch.equal(small.state_dict()[n], cut[n]) for n in module.state_dict())


@pytest.mark.parametrize("name", PROGRAMS)
def test_any_number_of_images_runs_and_each_is_answered_by_itself(name: str) -> None:
    _, small, _ = pruned_by_name(name)
    every = said(small, images(7))
    assert every.shape == (7, 5)
    for size in (1, 2, 3):
        torch.testing.assert_close(said(small, images(7)[:size]), every[:size], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_can_be_exported_again(name: str) -> None:
    _, small, _ = pruned_by_name(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    found = torch.export.export(small, (images(2),), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(said(found, images(5)), said(small, images(5)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs_in_another_precision_and_comes_back(name: str) -> None:
    _, small, _ = pruned_by_name(name)
    before = said(small, images(2))
    exact = copy.deepcopy(small).double()
    assert said(exact, images(2).double()).dtype is torch.float64
    torch.testing.assert_close(said(exact, images(2).double()).float(), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(said(exact.float(), images(2)), before)


def test_batch_norms_move_in_training_and_not_in_evaluation() -> None:
    _, small, _ = pruned_by_name("padded skip")
    before = {k: v.clone() for k, v in small.state_dict().items()}
    assert not small.training
    small(images(4))
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    small.train()
    small(images(4))
    moved = {k for k, v in small.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {f"bn{i}.running_{what}" for i in (1, 2) for what in ("mean", "var")}
    with torch.no_grad():
        seen = small.get_submodule("stem")  # the program's submodules hold tensors, and do nothing
        x = torch.relu(nn.functional.conv2d(images(4), seen.weight, seen.bias, padding=1))  # type: ignore[arg-type]
        x = nn.functional.conv2d(x, small.get_parameter("conv1.weight"), small.get_parameter("conv1.bias"), 2, 1)
    expected = 0.9 * before["bn1.running_mean"] + 0.1 * x.mean((0, 2, 3))
    torch.testing.assert_close(small.get_buffer("bn1.running_mean"), expected)
    small.eval()
    torch.testing.assert_close(said(small, images(4))[:1], said(small, images(4)[:1]))


def test_a_norm_that_never_moved_does_not_begin_to() -> None:
    """An instance norm, and a batch norm without statistics, take those of the batch in either mode."""

    class Unmoved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), head(8)
            self.norm, self.plain = nn.InstanceNorm2d(8, affine=True), nn.BatchNorm2d(8, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            stays, goes = self.norm(self.stem(x)).chunk(2, dim=1)
            return self.head(torch.relu(self.plain(self.last(torch.cat([stays, torch.sigmoid(goes)], 1)))))

    torch.manual_seed(0)
    module = Unmoved().eval()
    program = as_program(module, EXAMPLE)
    for mode in (True, False, True):
        program.train(mode)
        module.train(mode)
        torch.testing.assert_close(said(program, images(4)), said(module, images(4)), rtol=1e-4, atol=1e-5)


def test_dropout_drops_in_training_alone() -> None:
    _, small, _ = pruned_by_name("fused attention")
    assert torch.equal(small(images(4)), small(images(4)))
    small.train()
    torch.manual_seed(0)
    first, second = small(images(4)), small(images(4))
    assert not torch.equal(first, second)
    small.eval()
    assert torch.equal(small(images(4)), small(images(4)))


def test_a_copy_is_independent_and_like_it() -> None:
    _, small, _ = pruned_by_name("padded skip")
    small.get_parameter("conv1.weight").requires_grad_(False)
    small.train()
    twin = copy.deepcopy(small)
    assert twin.training
    assert [(n, p.requires_grad) for n, p in twin.named_parameters()] == [
        (n, p.requires_grad) for n, p in small.named_parameters()
    ]
    before = {k: v.clone() for k, v in small.state_dict().items()}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    twin(images(4))
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    small.eval()
    assert twin.training
    answer = twin(images(4))
    assert not torch.equal(answer, copy.deepcopy(twin).eval()(images(4)))


def test_what_is_frozen_stays_frozen_by_name() -> None:
    module = alive(FusedAttention(table=True))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in ("table", "proj.bias", "norm.weight"))
    small, _ = pruned(module)
    assert {n for n, p in small.named_parameters() if p.requires_grad} == {"table", "proj.bias", "norm.weight"}


def test_every_parameter_learns() -> None:
    for name in PROGRAMS:
        _, small, _ = pruned_by_name(name)
        small.train()
        small(images(4)).square().mean().backward()
        assert [n for n, p in small.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())] == []


def test_the_callers_network_shares_nothing_with_the_program() -> None:
    module = alive(PaddedSkip())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    small, _ = pruned(module)
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.fill_(3)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


# Hand-made cases


def recorded_of(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"nodes": list(nodes), "outputs": ["y"], "constants": {}, "trainable": [], "tied": {}}


def tampered(call: str, *args: Any) -> dict[str, Any]:
    """A program of one step."""
    step = {"name": "y", "call": call, "args": [{"node": "x"}, *args], "kwargs": {}}
    return recorded_of({"name": "x", "input": True}, step)


def test_a_program_of_one_step_runs() -> None:
    assert program_from(tampered("aten.mul.Tensor", 3), {})(torch.ones(2)).tolist() == [3, 3]


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "eval", "torch.load", "torch.hub.load", "operator.attrgetter", "_quantized.linear",
     "", "aten", "aten.", "aten.no_such_operator.default", "torchvision.no_such_operator"],
)  # fmt: skip
def test_a_program_that_names_anything_but_an_operator_is_refused(name: str) -> None:
    with pytest.raises(SurgeryError):
        program_from(tampered(name), {})


@pytest.mark.parametrize("name", ["aten.__class__.__subclasses__", "aten.__dict__.update", "aten.__init__"])
def test_what_is_beside_the_operators_is_refused(name: str) -> None:
    with pytest.raises(SurgeryError):
        program_from(tampered(name), {})


def test_an_operator_that_opens_files_is_refused() -> None:
    with pytest.raises(SurgeryError):
        program_from(tampered("aten.from_file.default", True, 4), {})


CODE = "setattr(__import__('builtins'), 'ran', True)"
NAMED = {
    "input": ({"name": f"x={CODE}", "input": True}, {"name": "y", "call": "aten.neg.default", "kwargs": {}}),
    "held": ({"name": "x", "held": f'w") if {CODE} else getattr(self, "w'.replace("'", '"')},
             {"name": "y", "call": "aten.neg.default", "kwargs": {}}),
    "keyword": ({"name": "x", "input": True},
                {"name": "y", "call": "aten.add.Tensor", "kwargs": {f"other={CODE}, alpha": 1}}),
}  # fmt: skip


@pytest.mark.parametrize("where", NAMED)
def test_code_in_a_name_does_not_run(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.fx writes Python out of names; a record's are refused, or replaced."""
    monkeypatch.setattr("builtins.ran", False, raising=False)
    first, step = NAMED[where]
    recorded = recorded_of(first, {**step, "args": [{"node": first["name"]}]})
    held = {str(first["held"]): torch.zeros(2)} if "held" in first else {}
    with contextlib.suppress(SurgeryError):
        program_from(recorded, held)(*([] if held else [torch.zeros(2)]))
    assert not builtins.ran  # type: ignore[attr-defined]


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(SurgeryError):
        program_from(tampered("aten.to.dtype", {"dtype": "load"}), {})


def test_two_inputs_and_two_outputs_stay_two() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            first, second = torch.relu(self.a(x)).split([2, 6], 1)
            joined = torch.cat([second, first], 1) + self.b(y)
            return self.c(joined), self.c(-joined)

    module, example = alive(Two()), (torch.randn(2, 4), torch.randn(2, 4))
    traced = trace(module, example)
    by_root = {g.root: torch.arange(g.channels).double() for g in traced.groups}
    plan = plan_pruning(traced.groups, Scores(by_root=by_root, comparable=True), budget=ChannelBudget(ratio=0.5))
    small, surgery = shrink(module, traced, plan, example)
    assert surgery.program is not None
    given = random_like(example, batch=5)
    assert [t.shape for t in outputs_of(small, given)] == [(5, 3), (5, 3)]


def test_heads_beside_the_batch_that_are_sliced_keep_any_number_of_images() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.pair, self.out = nn.Conv2d(3, 16, 1), nn.Linear(12, 12), nn.Conv2d(16, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            units = self.inner(x).reshape(-1, 2, 12, 12)  # two channels a head, the heads beside the images
            paired = self.pair(units)[:, :, 1:, :4]
            back = nn.functional.pad(paired, [0, 8, 1, 0]).reshape(-1, 16, 12, 12)
            return self.out(torch.relu(back)).mean((2, 3))

    module = alive(Beside())
    small, surgery = pruned(module)
    assert surgery.slices["out.weight"][1].numel() == 8
    every = said(small, images(7))
    for size in (1, 2, 7):
        torch.testing.assert_close(said(small, images(7)[:size]), every[:size], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "kept_as"), [(FusedAttention, "program"), (Residual, "class")])
def test_whoever_prunes_is_told_what_the_network_is_kept_as(kind: type[nn.Module], kept_as: str, workdir: Path) -> None:
    torch.save(alive(kind()).state_dict(), "net.pt")
    (workdir / "made.py").write_text(
        f"import torch\nfrom torch import Tensor, nn\n\n{inspect.getsource(head)}\n\n{inspect.getsource(kind)}"
    )
    arch = ("--arch", f"made.py:{kind.__name__}", "--input", "x".join(map(str, INPUT)))
    said = done("prune", "net.pt", *arch, "--ratio", 0.5, "--align", 1).stdout
    assert ("kept as an exported program" in said) == (kept_as == "program")
    assert ("the program takes inputs of x: any x 3 x" in said) == (kept_as == "program")
    results = json.loads((workdir / "net.compressed" / "results.json").read_text())["prune"]
    assert results["kept_as"] == kept_as
    assert ("takes" in results) == (kept_as == "program")
