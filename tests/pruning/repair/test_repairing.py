"""Repair from images without labels: what it promises, and pruning with it from checkpoint to artifact."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor.channels.groups import trace
from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import load_artifact
from compressor.checkpoint.recipes import How
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import CalibrationError, RepairError
from compressor.export.onnx import export_onnx
from compressor.graph.outputs import outputs_of
from compressor.planning.sensitivity import rise
from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.repair import repairing as module_repair
from compressor.pruning.repair.least_squares import LayerFit
from compressor.pruning.repair.repairing import Repair, Repaired, affordable, emptied, renormed, repair, repair_named
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.constant import Silent
from compressor.surgery.plan import ChannelBudget, CostBudget, Countable, Scope, Scores, plan_pruning
from compressor.surgery.shrinking import shrink
from compressor.surgery.surgery import Surgery, operate
from compressor.training.retraining import starting_module
from tests.support.topologies import INPUT, Residual, alive, checkpoint_of, head, idle, plain

EXAMPLE = (torch.zeros(INPUT),)


def batches(seed: int = 0, *, count: int = 8, size: int = 4) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, *INPUT[1:], generator=generator),) for _ in range(count)]


def normed() -> nn.Module:
    """The batch norm sees what the cut leaves."""
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), head(12))


def cut(net: nn.Module, ratio: float = 0.4, *, roots: set[str] | None = None) -> tuple[nn.Module, Surgery]:
    traced = trace(net, EXAMPLE)
    groups = tuple(g for g in traced.groups if roots is None or g.root in roots)
    scores = {g.root: torch.arange(g.channels, dtype=torch.float64) for g in groups}
    plan = plan_pruning(groups, Scores(by_root=scores, comparable=True), budget=ChannelBudget(ratio=ratio))
    return shrink(net, traced, plan, EXAMPLE)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# Batch norms


def test_statistics_taken_again_are_the_means_over_the_batches() -> None:
    net = alive(plain()).train()
    net[1].eval()
    given = batches(count=3)
    found = renormed(net, given)
    with torch.no_grad():
        seen = [net[0](x).transpose(0, 1).flatten(1) for (x,) in given]
    torch.testing.assert_close(found[1].running_mean, torch.stack([s.mean(1) for s in seen]).mean(0))  # type: ignore[index]
    torch.testing.assert_close(found[1].running_var, torch.stack([s.var(1) for s in seen]).mean(0))  # type: ignore[index]
    assert [m.training for m in found.modules()] == [m.training for m in net.modules()]
    assert found[1].momentum == net[1].momentum == 0.1  # type: ignore[index]
    assert all(torch.equal(p, dict(net.named_parameters())[n]) for n, p in found.named_parameters())
    assert not torch.equal(found[1].running_mean, net[1].running_mean)  # type: ignore[index]


def test_a_later_norm_sees_what_the_earlier_one_gives_on_the_batch() -> None:
    net = alive(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)))
    found = renormed(net, batches())
    torch.testing.assert_close(found[2].running_mean, net[1].bias.detach(), rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_a_network_without_batch_norms_is_refused_with_another_repair() -> None:
    with pytest.raises(RepairError, match="no batch norm") as caught:
        renormed(alive(nn.Sequential(nn.Linear(3, 4))), [(torch.zeros(2, 3),)])
    assert "least-squares" in str(caught.value.hint)


# Every repair


@pytest.mark.parametrize("how", [r for r in Repair if r not in (Repair.NONE, Repair.AUTO)])
def test_every_repair_brings_the_output_nearer_and_leaves_the_callers_networks(how: Repair) -> None:
    net = alive(normed())
    renormed_net = renormed(net, batches())  # statistics that fit the images, as a trained network's do
    small, surgery = cut(renormed_net, 0.3, roots={"0"})
    renormed_net.train()
    small.train()
    states = [copy.deepcopy(m) for m in (renormed_net, small)]
    found = repair(renormed_net, small, surgery, batches(), how=how, steps=20)
    assert found.kept
    assert found.after < found.before
    assert (found.images, found.judged) == (32, 4)
    assert same_state(renormed_net, states[0])
    assert same_state(small, states[1])
    assert renormed_net.training
    assert [m.training for m in found.module.modules()] == [m.training for m in small.modules()]
    x = batches()[-1]
    outputs = [outputs_of(copy.deepcopy(m).eval(), x)[0] for m in (renormed_net, small, found.module)]
    assert rise(outputs[0], outputs[1]) == pytest.approx(found.before, rel=1e-3)
    assert rise(outputs[0], outputs[2]) == pytest.approx(found.after, rel=1e-3)
    plain_values = json.loads(json.dumps(found.result.to_json(), allow_nan=False))
    assert plain_values["how"] == how
    assert bool(plain_values["layers"]) == (how is not Repair.BATCH_NORM)
    assert bool(plain_values["distilled"]) == (how is Repair.DISTILL)


def test_a_repair_that_nobody_resolved_is_refused() -> None:
    net = alive(normed())
    small, surgery = cut(net, 0.3)
    with pytest.raises(RepairError, match="auto"):
        repair(net, small, surgery, batches(), how=Repair.AUTO)


def test_stronger_repairs_are_not_worse_than_weaker_ones() -> None:
    net = renormed(alive(normed()), batches())
    small, surgery = cut(net, 0.3)
    found = {h: repair(net, small, surgery, batches(), how=h, steps=1).after for h in Repair if h is not Repair.AUTO}
    assert found[Repair.LEAST_SQUARES] < found[Repair.MEAN] < found[Repair.NONE]
    assert found[Repair.DISTILL] <= found[Repair.LEAST_SQUARES] * 1.001


def test_a_repair_that_makes_things_worse_is_not_kept() -> None:
    """Batches of one image say nothing of a variance: the statistics would be those of a fresh norm."""
    net = alive(plain())
    found = repair(net, net, Surgery(), batches(size=1), how=Repair.BATCH_NORM)
    assert not found.kept
    assert found.module is not net
    assert same_state(found.module, net)
    assert found.before == found.after == 0
    assert found.result.to_json()["kept"] is False


@pytest.mark.parametrize("how", [Repair.MEAN, Repair.BATCH_NORM, Repair.LEAST_SQUARES])
def test_the_images_that_judge_are_not_fitted_on(how: Repair) -> None:
    net = renormed(alive(normed()), batches())
    small, surgery = cut(net, 0.3, roots={"0"})
    given = batches()
    others = [*given[:-1], tuple(torch.flip(t, [2]) for t in given[-1])]
    one, other = (repair(net, small, surgery, b, how=how) for b in (given, others))
    assert one.judged == len(given[-1][0])
    assert one.kept
    assert other.kept
    assert same_state(one.module, other.module)
    assert one.after != other.after


def test_without_a_repair_the_network_is_the_small_one() -> None:
    net = alive(plain())
    small, surgery = cut(net)
    found = repair(net, small, surgery, batches(), how=Repair.NONE)
    assert same_state(found.module, small)
    assert found.before == found.after > 0


def test_no_images_are_refused() -> None:
    with pytest.raises(RepairError, match="no images"):
        repair(alive(plain()), alive(plain()), Surgery(), [], how=Repair.MEAN)


def test_an_unknown_repair_is_refused_with_the_nearest_name() -> None:
    assert repair_named("batch-norm") is Repair.BATCH_NORM
    with pytest.raises(RepairError, match="no repair called `least-square`") as caught:
        repair_named("least-square")
    assert caught.value.hint == "did you mean `least-squares`?"


def test_what_is_not_finite_can_be_written_down() -> None:
    layer = LayerFit(layer="a", before=math.inf, after=math.nan, ridge=math.inf)
    found = Repaired(
        module=nn.Identity(), how=Repair.MEAN, images=1, judged=1, before=math.inf, after=1.0, layers=(layer,),
        distilled=(math.inf, 0.5),
    )  # fmt: skip
    plain_values = json.loads(json.dumps(found.result.to_json(), allow_nan=False))
    assert plain_values["layers"][0]["ridge"] is None
    assert plain_values["rise"][0] > 1e300
    assert plain_values["distilled"][1] == 0.5


# Memory


def test_fewer_images_are_held_where_there_is_less_memory() -> None:
    net, batch = alive(Residual()), batches()[0]
    held = [affordable(net, batch, images=1000, memory_bytes=m) for m in (0, 10**6, 10**7, 10**8, 10**10)]
    assert held[0] == 4
    assert held == sorted(held)
    assert held[1] < held[2] < held[3]
    assert held[-1] == 1000
    assert all(h % 4 == 0 for h in held)
    wide = affordable(alive(plain()), (torch.zeros(4, 3, 24, 24),), images=1000, memory_bytes=10**7)
    assert wide < affordable(alive(plain()), batch, images=1000, memory_bytes=10**7)


# Empty branches


def test_emptied_layers_leave_modes_and_outputs_as_they_were() -> None:
    net = alive(Residual())
    with torch.no_grad():
        net.conv2.weight.zero_()
    net.train()
    lighter, surgery = emptied(net, ["conv1", "conv2"], EXAMPLE)
    assert net.training
    assert lighter.training
    assert surgery.emptied == ("conv1", "conv2")
    x = batches()[0]
    torch.testing.assert_close(outputs_of(lighter.eval(), x)[0], outputs_of(net.eval(), x)[0])
    assert sum(p.numel() for p in lighter.parameters()) < sum(p.numel() for p in net.parameters()) / 3


def test_a_layer_that_still_says_something_cannot_be_emptied() -> None:
    with pytest.raises(RepairError, match="differs by") as caught:
        emptied(alive(Residual()), ["conv1", "conv2"], batches()[0])
    assert "--min-channels 1" in str(caught.value.hint)


# From checkpoint to artifact


def data(count: int = 96) -> Data:
    images = torch.rand(count, *INPUT[1:], generator=torch.Generator().manual_seed(0))
    return Data(name="noise", source="noise", train=Images(images), tune=None, test=None)


REQUEST = Request(
    budget=CostBudget(counted=Countable.MACS, stays=0.45),
    criterion="obs",
    scope=Scope.MEASURED,
    align=1,
    images=96,
    repair=Repair.LEAST_SQUARES,
)


@pytest.fixture(scope="module", name="pruned")
def pruned_fixture() -> Pruned:
    """With its useless branch gone."""
    return prune(checkpoint_of(idle()), REQUEST, data=data())


def test_a_useless_branch_is_emptied_and_the_budget_met(pruned: Pruned) -> None:
    assert pruned.levels[0].emptied == ("conv3",)
    assert isinstance(pruned.checkpoint.module.conv3, Silent)
    assert isinstance(pruned.checkpoint.module.conv4, Silent)
    assert pruned.small_cost.macs <= 0.45 * pruned.dense_cost.macs
    assert pruned.proof.holds
    curves = {c.root: c for c in pruned.levels[0].curves}
    assert set(curves) == {g.root for g in pruned.traced.groups}
    assert curves["conv3"].widths[-1] == 0
    assert curves["conv3"].measured[-1] < 1e-4 < curves["conv1"].measured[-1]


def test_a_repaired_network_is_near_the_dense_one(pruned: Pruned) -> None:
    repaired = pruned.levels[-1].repaired
    assert repaired is not None
    assert repaired.kept
    assert repaired.after < 0.5 * repaired.before
    images = torch.rand(32, *INPUT[1:], generator=torch.Generator().manual_seed(9))
    dense = outputs_of(idle(), [images])[0]
    assert rise(dense, outputs_of(pruned.checkpoint.module, [images])[0]) < 2 * repaired.after + 1e-3


def test_what_is_said_of_it_can_be_written_down(pruned: Pruned) -> None:
    said = json.loads(json.dumps(pruned.result.to_json(), allow_nan=False))
    assert said["emptied"] == ["conv3"]
    widths = {w["layer"]: w for w in said["widths"]}
    assert widths["conv3"]["out"] == [12, 0]
    assert widths["conv4"]["macs"][1] == 0
    assert said["achieved"]["channels"][1] < said["achieved"]["channels"][0]
    assert said["achieved"]["params"][1] == sum(p.numel() for p in pruned.checkpoint.module.parameters())
    repaired = pruned.repair_result.to_json()
    assert repaired is not None
    assert repaired["how"] == "least-squares"
    assert [entry["step"] for entry in pruned.checkpoint.lineage] == ["prune", "repair"]


def test_its_surgery_makes_the_same_shapes_from_the_dense_network(pruned: Pruned) -> None:
    surgery = pruned.checkpoint.surgery
    assert surgery is not None
    again = operate(idle(), surgery)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in pruned.checkpoint.module.state_dict().items()
    }


def test_its_artifact_is_read_back_bit_by_bit(pruned: Pruned, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(compressor.__file__).parents[1]))  # the fresh process finds the class
    folder = workdir / "net.compressed"
    results = {"schema": 1, "prune": pruned.result.to_json(), "repair": pruned.repair_result.to_json()}
    write_artifact(
        folder,
        pruned.checkpoint,
        source={"path": "net.pt", "sha256": ""},
        results=Results.from_json(results),
        trust_pickle=True,
    )
    again = load_artifact(folder, trust_pickle=True)
    assert same_state(again.module, pruned.checkpoint.module)
    assert isinstance(again.module.conv3, Silent)
    assert again.surgery is not None
    assert again.surgery.emptied == ("conv3", "conv4")
    x = batches()[0]
    torch.testing.assert_close(outputs_of(again.module, x)[0], outputs_of(pruned.checkpoint.module, x)[0])


def test_its_export_says_what_it_says(pruned: Pruned, tmp_path: Path) -> None:
    parity = export_onnx(pruned.checkpoint, tmp_path / "net.onnx")
    assert parity.largest_relative_difference <= 1e-4


def test_it_can_be_drawn_afresh_and_rewound(pruned: Pruned) -> None:
    fresh = [starting_module(pruned.checkpoint, How.SCRATCH_E, seed=s) for s in (0, 0, 1)]
    assert same_state(fresh[0], fresh[1])
    assert not same_state(fresh[0], fresh[2])
    assert not bool(fresh[0].conv3.bias.any())  # type: ignore[union-attr,operator]
    early = alive(idle(), seed=5)
    rewound = starting_module(pruned.checkpoint, How.REWIND_WEIGHTS, early_state=early.state_dict())
    assert set(rewound.bn4.bias.tolist()) < set(early.bn4.bias.tolist())  # type: ignore[union-attr,operator]
    outputs_of(rewound.eval(), batches()[0])


def test_the_checkpoint_stays_and_a_seed_gives_the_same_bytes(pruned: Pruned) -> None:
    checkpoint = checkpoint_of(idle())
    again = prune(checkpoint, REQUEST, data=data())
    assert same_state(checkpoint.module, idle())
    assert same_state(again.checkpoint.module, pruned.checkpoint.module)


def test_it_can_be_pruned_again(pruned: Pruned) -> None:
    request = dataclasses.replace(REQUEST, budget=CostBudget(counted=Countable.MACS, stays=0.7))
    second = prune(pruned.checkpoint, request, data=data())
    assert second.small_cost.macs <= 0.7 * pruned.small_cost.macs
    assert second.checkpoint.surgery is not None
    assert second.checkpoint.surgery.emptied == ("conv3", "conv4")


def test_with_least_widths_or_without_repair_no_branch_is_emptied() -> None:
    for change in ({"min_channels": 2}, {"repair": Repair.NONE}, {"repair": Repair.BATCH_NORM}):
        found = prune(checkpoint_of(idle()), dataclasses.replace(REQUEST, **change), data=data())  # type: ignore[arg-type]
        assert found.levels[0].emptied == ()
        assert not any(isinstance(m, Silent) for m in found.checkpoint.module.modules())


def test_levels_repair_between_them_and_reach_the_budget() -> None:
    found = prune(checkpoint_of(idle()), dataclasses.replace(REQUEST, levels=2), data=data())
    assert [level.repaired is not None for level in found.levels] == [True, True]
    assert found.small_cost.macs <= 0.45 * found.dense_cost.macs
    assert not bool(torch.isnan(outputs_of(found.checkpoint.module, batches()[0])[0]).any())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"scope": Scope.UNIFORM, "criterion": "l1-norm"}, "repair by least-squares"),
        ({"repair": Repair.NONE, "criterion": "l1-norm"}, "measuring widths"),
    ],
)
def test_without_images_it_says_what_they_are_for(change: dict[str, object], what: str) -> None:
    with pytest.raises(CalibrationError, match=f"{what} needs images") as caught:
        prune(checkpoint_of(idle()), dataclasses.replace(REQUEST, **change))  # type: ignore[arg-type]
    assert "labels are not needed" in str(caught.value.hint)


def test_a_criterion_that_gathers_no_second_moments_can_be_measured_all_the_same() -> None:
    found = prune(checkpoint_of(idle()), dataclasses.replace(REQUEST, criterion="l1-norm"), data=data())
    assert found.small_cost.macs <= 0.45 * found.dense_cost.macs
    assert found.levels[0].emptied == ("conv3",)


def test_little_memory_means_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(*args: object, **options: object) -> Repaired:
        seen.append(args[3])
        return repair(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("compressor.pruning.pipeline.repair", watched)
    request = Request(budget=ChannelBudget(ratio=0.5), images=96, align=1, repair=Repair.MEAN, memory_bytes=1)
    prune(checkpoint_of(idle()), request, data=data())
    assert [len(b[0]) for b in seen[0]] == [12]  # type: ignore[attr-defined]
    assert module_repair.HELD_OUT_SHARE > 1
