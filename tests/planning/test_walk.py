"""A forward pass as a list of operators: it says what the module says, and leaves the module alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import RepairError
from compressor.graph.outputs import outputs_of
from compressor.planning.walk import READING, Walk, in_step, operator, program_of, readers, run
from tests.support.topologies import INPUT, TOPOLOGIES, Residual, alive, plain


def images(seed: int = 0, *, count: int = 4, shape: tuple[int, ...] = INPUT[1:]) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


class InPlace(nn.Module):
    """Activations and sums that write into their arguments, one value read before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6 * 100, 5)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        kept = x.clone()
        x = self.act(x)
        x += self.b(x)
        x.mul_(0.5).add_(kept)
        return self.out(functional.hardswish(x, inplace=True).flatten(1))


class Several(nn.Module):
    """A dict of outputs, one of them twice, one of them its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        y = self.a(x)
        return {"z": self.b(y), "again": (y, x), "a": y}


def encoder() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=12, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=5
    )


MORE: dict[str, Callable[[], nn.Module]] = {"in place": InPlace, "vision transformer": encoder}


@pytest.mark.parametrize("name", [*TOPOLOGIES, *MORE])
def test_the_operators_say_what_the_module_says(name: str) -> None:
    module = alive({**TOPOLOGIES, **MORE}[name]())
    program = program_of(module, (images(9, count=1),), batch=4)
    given = [images(1), images(2)]
    said = run(program, [given])[0]
    for batch, answer in zip(given, said, strict=True):
        torch.testing.assert_close(answer, outputs_of(module, [batch])[0], rtol=1e-4, atol=1e-5)


def test_nested_outputs_come_in_order_and_as_often_as_they_are_named() -> None:
    module, x = Several(), torch.randn(2, 4)
    program = program_of(module, (x,), batch=2)
    for value, expected in zip(run(program, [[x]]), outputs_of(module, [x]), strict=True):
        torch.testing.assert_close(value[0], expected)


def test_inputs_are_not_written_into() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x.relu_())

    given = [torch.randn(3, 4)]
    before = given[0].clone()
    module = Writes()
    program = program_of(module, (torch.randn(3, 4),), batch=3)
    said = run(program, [given])[0][0]
    assert torch.equal(given[0], before)
    torch.testing.assert_close(said, outputs_of(module, [before.clone()])[0])


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_the_callers_module_stays_as_it_was(name: str) -> None:
    module = alive(TOPOLOGIES[name]()).train()
    next(module.children()).eval()
    next(module.parameters()).requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    modes, grads = [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    run(program_of(module, (images(),), batch=4), [[images()]])
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == grads
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() == fastpath


def test_a_network_that_looks_at_its_data_is_refused_with_a_way_out() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x)
            return y if float(x.sum()) > 0 else -y

    with pytest.raises(RepairError, match="cannot be followed") as caught:
        program_of(Looks(), (torch.randn(2, 4),), batch=2)
    assert "--repair batch-norm" in str(caught.value.hint)


def test_a_view_that_is_written_into_is_refused() -> None:
    """What is run one by one writes into nothing: the values of other views would be the old ones."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x)
            y[:, :2].zero_()
            return y

    module = Views()
    nn.init.ones_(module.a.bias)
    with pytest.raises(RepairError, match="differ from it"):
        program_of(module, (torch.randn(2, 4),), batch=2)


def test_another_random_draw_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + torch.randn(2, 2)

    with pytest.raises(RepairError, match="differ from it"):
        program_of(Noisy(), (torch.randn(2, 4),), batch=2)


def test_programs_of_other_steps_are_refused_and_other_widths_are_not() -> None:
    wide, narrow = alive(plain()), alive(nn.Sequential(*plain()))
    narrow[3] = nn.Conv2d(16, 12, 3, stride=2)
    in_step(*(program_of(m, (images(),), batch=4) for m in (wide, narrow)))
    other = alive(plain())
    other[2] = nn.Tanh()
    with pytest.raises(RepairError, match="other steps"):
        in_step(*(program_of(m, (images(),), batch=4) for m in (wide, other)))


@pytest.mark.parametrize("name", ["residual", "concatenated", "attention"])
def test_a_fork_anywhere_equals_running_the_changed_module(name: str) -> None:
    """Weights that are read behind the fork may change; the walk that was forked goes on as it was."""
    module = alive(TOPOLOGIES[name]())
    program = program_of(module, (images(),), batch=4)
    given = [images(3), images(4)]
    dense = [outputs_of(module, [x])[0] for x in given]
    for index, node in readers(program):
        changed = copy.deepcopy(module)
        weight = changed.get_parameter(str(program.tensor_name(node.args[1])))
        with torch.no_grad():
            weight.mul_(-0.5)
            walk = Walk(program, [given])
            while walk.at < index:
                walk.step()
            forked = walk.fork({str(program.tensor_name(node.args[1])): weight.detach()}).finish()[0]
            rest = walk.finish()[0]
        for batch, answer, straight, reference in zip(given, forked, rest, dense, strict=True):
            torch.testing.assert_close(answer, outputs_of(changed, [batch])[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(straight, reference, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(answer, reference, rtol=1e-3)


def test_other_weights_replace_the_modules() -> None:
    module, other = alive(Residual()), alive(Residual(), seed=1)
    program = program_of(module, (images(),), batch=4)
    said = run(program, [[images(5)]], weights={n: t.detach() for n, t in other.state_dict().items()})[0][0]
    torch.testing.assert_close(said, outputs_of(other, [images(5)])[0], rtol=1e-4, atol=1e-5)


def test_a_walk_that_trains_uses_and_moves_the_batchs_statistics() -> None:
    module = alive(plain())
    program = program_of(module, (images(),), batch=4)
    held = {n: t.detach().clone() for n, t in module.state_dict().items()}
    said = Walk(program, [[images(1)]], weights=held, training=True).finish()[0][0]
    module.train()
    torch.testing.assert_close(said, module(images(1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(held["1.running_mean"], module[1].running_mean)
    torch.testing.assert_close(held["1.running_var"], module[1].running_var)


def test_values_are_let_go_of_when_nothing_reads_them_any_more() -> None:
    program = program_of(alive(plain()), (images(),), batch=4)
    walk = Walk(program, [[images(1)]])
    most = 0
    with torch.no_grad():
        while walk.at < len(program.nodes):
            walk.step()
            most = max(most, len(walk.values))
    assert most == 1  # a chain without branches


def test_a_weight_that_two_operators_read_is_no_reader() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.a(x).relu()))

    program = program_of(Shared(), (torch.randn(2, 4),), batch=2)
    assert [program.tensor_name(node.args[1]) for _, node in readers(program)] == ["b.weight"]
    assert sum(operator(node) in READING for node in program.nodes) == 3
