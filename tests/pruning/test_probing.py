"""What measuring widths may take: which groups can go altogether, and which images decide."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import trace
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import CalibrationError, GroupError, RepairError
from compressor.planning.calibration import calibration_split
from compressor.planning.walk import program_of
from compressor.pruning.pipeline import prune
from compressor.pruning.probing import emptiable, fitted_and_probed
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.surgery.plan import CostBudget, Countable, Scope
from tests.support.topologies import INPUT, Residual, alive, checkpoint_of, head


class Siblings(nn.Module):
    """Two branches whose sum is all that goes on: one may be taken out, both may not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.left = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.right = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        scores: Tensor = self.head(torch.relu(self.left(y) + self.right(y)))
        return scores


def roots_that_may_go(module: nn.Module) -> frozenset[str]:
    example = torch.randn(INPUT, generator=torch.Generator().manual_seed(0))
    return emptiable(module, program_of(module, (example,), batch=1), trace(module, (example,)).groups)


def test_a_branch_beside_a_stream_may_go_and_the_stream_may_not() -> None:
    net = alive(Residual())
    assert roots_that_may_go(net) == {"conv1"}


def test_of_two_branches_of_one_sum_only_one_may_go() -> None:
    assert len(roots_that_may_go(alive(Siblings()))) == 1


@pytest.mark.parametrize("count", [1, 2, 7, 16, 100])
def test_no_image_is_both_fitted_on_and_measured_on(count: int) -> None:
    batches = [(torch.full((4, 1), float(i)),) for i in range(count)]
    fitted, probed = fitted_and_probed(batches)
    assert probed
    shared = {float(b[0][0]) for b in fitted} & {float(b[0][0]) for b in probed}
    assert not shared or count == 1


class Sealed:
    """A split that nobody may read."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        raise AssertionError(f"image {index} of the test split was read")


def noise(count: int = 64) -> Images:
    return Images(torch.rand(count, *INPUT[1:], generator=torch.Generator().manual_seed(0)))


REQUEST = Request(
    budget=CostBudget(counted=Countable.MACS, stays=0.6), criterion="obs", scope=Scope.MEASURED, align=1, images=16,
    repair=Repair.DISTILL,
)  # fmt: skip


@pytest.mark.parametrize("split", ["train", "tune"])
def test_the_test_split_decides_nothing(split: str) -> None:
    splits: dict[str, object] = {"train": None, "tune": None, split: noise()}
    data = Data(name="noise", source="noise", test=Sealed(), **splits)  # type: ignore[arg-type]  # by the loop's names
    assert prune(checkpoint_of(alive(Residual())), REQUEST, data=data).small_cost.macs > 0


def test_a_test_split_alone_is_refused_with_a_way_on() -> None:
    data = Data(name="noise", source="noise", train=None, tune=None, test=Sealed())
    with pytest.raises(CalibrationError, match="only a test split") as refusal:
        calibration_split(data)
    assert refusal.value.hint


@pytest.mark.parametrize("how", [r for r in Repair if r is not Repair.AUTO])
def test_the_network_that_is_pruned_measured_and_repaired_stays_as_it_was(how: Repair) -> None:
    net = alive(Residual())
    net.train()
    next(net.parameters()).requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    wanted = [p.requires_grad for p in net.parameters()]
    data = Data(name="noise", source="noise", train=noise(), tune=None, test=None)
    prune(checkpoint_of(net), dataclasses.replace(REQUEST, repair=how), data=data)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == wanted


AS_IT_IS = dataclasses.replace(REQUEST, criterion="l1-norm", scope=Scope.UNIFORM, repair=Repair.BATCH_NORM)


class Choosing(nn.Module):
    """A network whose path hangs on its data, where it is given more than `most` images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.next = nn.Conv2d(8, 8, 1)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        if len(x) <= self.most or float(y.sum()) > -1:
            y = self.next(y)
        scores: Tensor = self.head(y)
        return scores


def test_a_network_that_cannot_be_traced_is_refused_with_what_to_look_at() -> None:
    data = Data(name="noise", source="noise", train=noise(), tune=None, test=None)
    with pytest.raises(GroupError, match="cannot be traced") as refusal:
        prune(checkpoint_of(alive(Choosing(most=0))), AS_IT_IS, data=data)
    assert "other layers for other inputs" in str(refusal.value.hint)


def test_what_is_said_to_a_network_that_cannot_be_followed_works() -> None:
    net = alive(Choosing(most=1))
    data = Data(name="noise", source="noise", train=noise(), tune=None, test=None)
    with pytest.raises(RepairError, match="cannot be followed") as refusal:
        prune(checkpoint_of(net), REQUEST, data=data)
    hint = str(refusal.value.hint)
    assert "--criterion l1-norm --scope uniform --repair batch-norm" in hint
    repaired = prune(checkpoint_of(net), AS_IT_IS, data=data).levels[-1].repaired
    assert repaired is not None
    assert repaired.how is Repair.BATCH_NORM
