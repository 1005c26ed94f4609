"""Masked networks from checkpoint to repair: zeros stay zero, what is kept makes up for what is gone."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import CalibrationError, PlanError, RepairError
from compressor.graph.outputs import outputs_of, relative_difference
from compressor.planning import moments
from compressor.pruning.masking import mask_weights
from compressor.pruning.repair.least_squares import reconstruct
from compressor.pruning.repair.repairing import Repair, renormed, repair
from compressor.pruning.request import MaskRequest
from compressor.surgery.mask_criteria import MaskCriterion, mask_by
from compressor.surgery.masks import MaskScope, WeightMask, apply_mask_, magnitude, maskable
from compressor.surgery.surgery import Surgery
from tests.support.topologies import INPUT, TOPOLOGIES, Residual, alive, checkpoint_of, head, plain

BY_IMAGES = [r for r in Repair if r not in (Repair.NONE, Repair.AUTO)]


def batches(*, count: int = 8, size: int = 4, shape: tuple[int, ...] = INPUT[1:]) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, *shape, generator=generator),) for _ in range(count)]


def masked(net: nn.Module, sparsity: float = 0.5) -> tuple[nn.Module, WeightMask]:
    mask = magnitude(net, sparsity=sparsity)
    return apply_mask_(copy.deepcopy(net), mask), mask


def random_mask(net: nn.Module, *, density: float, seed: int) -> WeightMask:
    generator = torch.Generator().manual_seed(seed)
    return WeightMask(kept={n: torch.rand(p.shape, generator=generator) < density for n, p in maskable(net).items()})


def holds(module: nn.Module, mask: WeightMask) -> bool:
    """Whether all that was removed is +0.0, as the sparse storage wants it."""
    gone = [module.get_parameter(name).detach()[~kept] for name, kept in mask.kept.items()]
    return not any(bool(t.any()) or bool(t.signbit().any()) for t in gone)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def data(count: int = 96) -> Data:
    images = torch.rand(count, *INPUT[1:], generator=torch.Generator().manual_seed(0))
    return Data(name="noise", source="noise", train=Images(images), tune=None, test=None)


# Oracles


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_mask_that_keeps_everything_leaves_the_dense_network(name: str) -> None:
    net = alive(TOPOLOGIES[name]())
    mask = WeightMask(kept={n: torch.ones_like(p, dtype=torch.bool) for n, p in maskable(net).items()})
    found = reconstruct(net, net, Surgery(), batches(), mask=mask)
    assert same_state(found.module, net)
    assert found.layers == ()


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_torchs_least_squares_row_by_row(
    bias: bool, sparsity: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "RIDGES", (1e-9,))
    net = alive(nn.Sequential(nn.Linear(8, 5, bias=bias)))
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    given = [(x @ mixing + 0.5,) for (x,) in batches(size=64, shape=(8,))]  # features that can stand in for each other
    small, mask = masked(net, sparsity)
    found = reconstruct(net, small, Surgery(), given, mask=mask).module
    every = torch.cat([b[0] for b in given]).double()
    targets = outputs_of(net, [every.float()])[0].double()
    for row, kept in enumerate(mask.kept["0.weight"]):
        design = every[:, kept]
        if bias:
            design = torch.cat([design, torch.ones(len(every), 1, dtype=torch.float64)], dim=1)
        exact = torch.linalg.lstsq(design, targets[:, row]).solution
        weight = found[0].weight[row].detach()  # type: ignore[index]
        torch.testing.assert_close(weight[kept].double(), exact[: int(kept.sum())], rtol=1e-3, atol=1e-3)
        if bias:
            torch.testing.assert_close(found[0].bias[row].detach().double(), exact[-1], rtol=1e-3, atol=1e-3)  # type: ignore[index]
    assert len(every) < moments.LEAST_ROWS  # every row was looked at


class Twins(nn.Module):
    """Channels that repeat each other, and a layer that reads them."""

    def __init__(self, reader: nn.Module, width: int) -> None:
        super().__init__()
        self.stem, self.reader, self.head = nn.Conv2d(3, 4, 3), reader, head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).repeat_interleave(2, dim=1)  # each channel beside its twin
        return self.head(torch.relu(self.reader(x)))


READERS: dict[str, tuple[nn.Module, int]] = {
    "conv": (nn.Conv2d(8, 6, 3), 1),
    "conv without bias": (nn.Conv2d(8, 6, 3, bias=False), 1),
    "conv and norm": (nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)), 1),
    "grouped": (nn.Conv2d(8, 6, 3, groups=2), 1),
    "transposed": (nn.ConvTranspose2d(8, 6, 3, stride=2), 0),
    "transposed, grouped": (nn.ConvTranspose2d(8, 6, (3, 2), groups=2), 0),
}


@pytest.mark.parametrize("name", READERS)
def test_weights_that_others_can_stand_in_for_are_made_up_for_exactly(name: str) -> None:
    """Of each pair of weights that read twins one goes: which one is drawn for every row."""
    reader, dim = READERS[name]
    net = alive(Twins(reader, 6))
    weight = next(n for n, p in net.reader.named_parameters(prefix="reader") if p.ndim == 4)  # type: ignore[union-attr,operator]
    pairs = net.get_parameter(weight).detach().movedim(dim, 0).unflatten(0, (-1, 2))  # [pairs, 2, ...]
    first = torch.rand(pairs[:, 0].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = WeightMask(kept={weight: torch.stack([first, ~first], dim=1).flatten(0, 1).movedim(0, dim)})
    small = apply_mask_(copy.deepcopy(net), mask)
    found = reconstruct(net, small, Surgery(), batches(), mask=mask)
    x = [torch.randn(16, *INPUT[1:], generator=torch.Generator().manual_seed(9))]
    wanted, before, after = (outputs_of(m, x)[0] for m in (net, small, found.module))
    assert relative_difference(before, wanted) > 1e-2
    assert relative_difference(after, wanted) < 1e-3
    assert holds(found.module, mask)


# Properties


@given(
    density=st.floats(0, 1), seed=st.integers(0, 1000), how=st.sampled_from(BY_IMAGES),
    name=st.sampled_from([*TOPOLOGIES]),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_zeros_stay_zero_for_any_mask_and_any_repair(density: float, seed: int, how: Repair, name: str) -> None:
    net = alive(TOPOLOGIES[name]())
    if how is Repair.BATCH_NORM and not any(isinstance(m, nn.BatchNorm2d) for m in net.modules()):
        how = Repair.LEAST_SQUARES
    mask = random_mask(net, density=density, seed=seed)
    small = apply_mask_(copy.deepcopy(net), mask)
    found = repair(net, small, Surgery(), batches(count=4), how=how, mask=mask, steps=2)
    assert holds(found.module, mask)
    assert all(bool(t.isfinite().all()) for t in found.module.state_dict().values())
    assert found.after is not None
    assert found.before is not None
    assert found.after <= found.before


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_repaired_masked_network_is_nearer_to_the_dense_one_and_the_callers_stay(name: str) -> None:
    net = alive(TOPOLOGIES[name]())
    small, mask = masked(net, 0.6)
    net.train()
    states = [copy.deepcopy(m) for m in (net, small)]
    found = repair(net, small, Surgery(), batches(), how=Repair.LEAST_SQUARES, mask=mask)
    assert found.kept
    assert found.after is not None
    assert found.before is not None
    assert found.after < found.before
    assert net.training
    assert all(same_state(a, b) for a, b in zip((net, small), states, strict=True))
    assert holds(found.module, mask)
    assert all(layer.after <= layer.before for layer in found.layers)


# Hand-made cases


def test_the_first_layer_is_fitted_too_and_one_that_is_protected_behind_it_whole() -> None:
    net = alive(plain())
    mask = magnitude(net, sparsity=0.5, protect=("3", "5.2"))
    small = apply_mask_(copy.deepcopy(net), mask)
    smooth = [(nn.functional.avg_pool2d(x, 3, 1, 1),) for (x,) in batches()]  # pixels that tell of their neighbours
    found = reconstruct(net, small, Surgery(), smooth, mask=mask)
    assert [layer.layer for layer in found.layers] == ["0", "3", "5.2"]
    assert not torch.equal(found.module[0].weight, small[0].weight)  # type: ignore[index]
    assert bool(found.module[3].weight.all())  # type: ignore[index]
    assert not torch.equal(found.module[3].weight, net[3].weight)  # type: ignore[index]


def test_the_mean_alone_moves_no_weight() -> None:
    net = alive(plain())
    small, mask = masked(net)
    found = repair(net, small, Surgery(), batches(), how=Repair.MEAN, mask=mask)
    assert found.kept
    assert all(torch.equal(found.module.get_parameter(n), small.get_parameter(n)) for n in mask.kept)
    assert not torch.equal(found.module[3].bias, small[3].bias)  # type: ignore[index]


def test_a_repair_that_makes_a_masked_network_worse_is_not_kept() -> None:
    """Batches of one image say nothing of a variance: the statistics would be those of a fresh norm."""
    net = renormed(alive(plain()), batches())
    small, mask = masked(net, 0.01)
    found = repair(net, small, Surgery(), batches(size=1), how=Repair.BATCH_NORM, mask=mask)
    assert not found.kept
    assert same_state(found.module, small)
    assert found.after == found.before


def test_a_network_that_its_mask_was_not_applied_to_is_refused() -> None:
    net = alive(plain())
    with pytest.raises(RepairError, match=r"`0\.weight` has weights that the mask removed") as caught:
        repair(net, net, Surgery(), batches(), how=Repair.LEAST_SQUARES, mask=masked(net)[1])
    assert "apply_mask_" in str(caught.value.hint)


def test_a_mask_of_another_network_is_refused() -> None:
    net = alive(plain())
    with pytest.raises(PlanError, match="no such parameter"):
        repair(net, net, Surgery(), batches(), how=Repair.LEAST_SQUARES, mask=masked(alive(Residual()))[1])


# From checkpoint to results


def test_a_masked_checkpoint_is_repaired_from_a_few_images_and_says_so() -> None:
    checkpoint = checkpoint_of(alive(plain()))
    request = MaskRequest(sparsity=0.6, repair=Repair.LEAST_SQUARES, images=64)
    found, again = (mask_weights(checkpoint, request, data=data()) for _ in range(2))
    assert same_state(checkpoint.module, alive(plain()))
    assert same_state(found.checkpoint.module, again.checkpoint.module)
    assert holds(found.checkpoint.module, found.mask)
    said = json.loads(json.dumps(found.repair_result.to_json(), allow_nan=False))
    assert (said["how"], said["images"], said["judged"], said["kept"]) == ("least-squares", 64, 8, True)
    assert said["rise"][1] < said["rise"][0]
    assert [layer["layer"] for layer in said["layers"]] == ["0", "3", "5.2"]
    assert [step["step"] for step in found.checkpoint.lineage] == ["mask", "repair"]
    other = mask_weights(checkpoint, dataclasses.replace(request, seed=1), data=data())
    assert not same_state(found.checkpoint.module, other.checkpoint.module)


def test_without_a_repair_only_zeros_are_made() -> None:
    checkpoint = checkpoint_of(alive(plain()))
    found = mask_weights(checkpoint, MaskRequest(sparsity=0.6, scope=MaskScope.GLOBAL))
    assert found.repair_result is None
    assert same_state(found.checkpoint.module, masked(checkpoint.module, 0.6)[0])
    assert [step["step"] for step in found.checkpoint.lineage] == ["mask"]


def test_little_memory_means_few_images() -> None:
    checkpoint = checkpoint_of(alive(plain()))
    request = MaskRequest(sparsity=0.6, repair=Repair.LEAST_SQUARES, images=96, memory_bytes=1)
    said = mask_weights(checkpoint, request, data=data()).repair_result.to_json()
    assert said is not None
    assert said["images"] == 12


@pytest.mark.parametrize("how", BY_IMAGES)
def test_a_repair_without_images_is_refused(how: Repair) -> None:
    with pytest.raises(CalibrationError, match=f"by {how} needs images") as caught:
        mask_weights(checkpoint_of(alive(plain())), MaskRequest(sparsity=0.6, repair=how))
    assert "labels are not needed" in str(caught.value.hint)


def test_no_images_are_refused() -> None:
    with pytest.raises(PlanError, match="calibration images is 0"):
        MaskRequest(sparsity=0.5, images=0)


# Criteria that look back


@pytest.mark.parametrize("criterion", [c for c in MaskCriterion if c is not MaskCriterion.LARGE_FINAL])
def test_a_masked_checkpoint_is_masked_by_its_criterion_and_says_so(criterion: MaskCriterion) -> None:
    checkpoint, initial = checkpoint_of(alive(plain())), plain().state_dict()
    request = MaskRequest(sparsity=0.6, criterion=criterion, scope=MaskScope.GLOBAL, protect=("3",), seed=4)
    found = mask_weights(checkpoint, request, initial=initial if criterion.looks_back else None)
    expected = mask_by(
        criterion, initial=initial, final=maskable(checkpoint.module, protect=("3",)), sparsity=0.6, scope="global",
        seed=4,
    )  # fmt: skip
    assert all(torch.equal(found.mask.kept[name], kept) for name, kept in expected.kept.items())
    assert holds(found.checkpoint.module, expected)
    assert found.result.to_json()["criterion"] == str(criterion)
    assert found.checkpoint.lineage[-1]["criterion"] == str(criterion)


def test_initial_weights_are_given_where_they_are_looked_at_and_nowhere_else() -> None:
    checkpoint, initial = checkpoint_of(alive(plain())), plain().state_dict()
    with pytest.raises(PlanError, match="`movement` compares every weight with its value") as caught:
        mask_weights(checkpoint, MaskRequest(sparsity=0.6, criterion=MaskCriterion.MOVEMENT))
    assert "--initial FILE" in str(caught.value.hint)
    with pytest.raises(PlanError, match="`large-final` does not use initial weights"):
        mask_weights(checkpoint, MaskRequest(sparsity=0.6), initial=initial)
    with pytest.raises(PlanError, match=r"initial values of `0\.weight` are missing"):
        mask_weights(
            checkpoint, MaskRequest(sparsity=0.6, criterion=MaskCriterion.MOVEMENT),
            initial=alive(Residual()).state_dict(),
        )  # fmt: skip
