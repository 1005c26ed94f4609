"""The library's words are the command line's: what is `auto` becomes the same, and so does the network."""

from __future__ import annotations

from typing import Any

import pytest

from compressor import Request, prune
from compressor.data.splits import Data
from compressor.errors import PlanError
from compressor.jobs.prune import prune_to
from compressor.jobs.requests import PruneOptions, needs_data, request_from
from compressor.jobs.sensitivity import measure_curves
from compressor.pruning.masking import mask_weights
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import MaskRequest
from compressor.surgery.plan import (
    Budget,
    ChannelBudget,
    CostBudget,
    Countable,
    LatencyBudget,
    Scope,
    Sharing,
    plan_pruning,
)
from tests.pruning.test_masking import data, same_state
from tests.support.topologies import Residual, alive, checkpoint_of, plain
from tests.surgery.test_plan import group, scores

BUDGETS: list[tuple[dict[str, Any], Budget]] = [
    ({"ratio": 0.5}, ChannelBudget(ratio=0.5)),
    ({"macs": 0.5}, CostBudget(counted=Countable.MACS, stays=0.5)),
    ({"params": 0.5}, CostBudget(counted=Countable.PARAMS, stays=0.5)),
    ({"speedup": 1.5}, LatencyBudget(speedup=1.5)),
    ({"latency": "4ms"}, LatencyBudget(latency_ms=4.0)),
]


@pytest.mark.parametrize("has_data", [False, True])
@pytest.mark.parametrize(("asked", "budget"), BUDGETS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_every_budget_resolves_as_on_the_command_line(asked: dict[str, Any], budget: Budget, has_data: bool) -> None:
    said = request_from(PruneOptions(**asked), has_data=has_data)
    assert said == Request(budget=budget).resolved(has_data=has_data)
    assert needs_data(said) is has_data


@pytest.mark.parametrize(("asked", "budget"), BUDGETS[:3], ids=["ratio", "macs", "params"])
def test_while_training_too(asked: dict[str, Any], budget: Budget) -> None:
    said = request_from(PruneOptions(**asked), has_data=True, while_training=True)
    assert said == Request(budget=budget).resolved(has_data=True, while_training=True)
    assert isinstance(said, Request)
    assert (said.criterion, said.scope, said.repair) == ("l2-norm", Scope.UNIFORM, Repair.NONE)


@pytest.mark.parametrize("has_data", [False, True])
def test_single_weights_too(has_data: bool) -> None:
    said = request_from(PruneOptions(sparsity=0.5), has_data=has_data)
    assert said == MaskRequest(sparsity=0.5).resolved(has_data=has_data)
    assert said.repair is (Repair.LEAST_SQUARES if has_data else Repair.NONE)


def test_what_is_resolved_stays() -> None:
    asked = Request(budget=BUDGETS[1][1], criterion="taylor", scope=Scope.GLOBAL, repair=Repair.BATCH_NORM)
    assert asked.resolved(has_data=True) == asked.resolved(has_data=False) == asked
    once = Request(budget=BUDGETS[1][1]).resolved(has_data=True)
    assert once.resolved(has_data=False) == once


def test_nothing_is_left_auto() -> None:
    for has_data in (False, True):
        for _, budget in BUDGETS:
            request = Request(budget=budget).resolved(has_data=has_data)
            assert "auto" not in (request.criterion, request.scope, request.repair)


@pytest.mark.parametrize(("asked", "budget"), BUDGETS[:3], ids=["ratio", "macs", "params"])
@pytest.mark.parametrize("images", [data(64), None], ids=["data", "no data"])
def test_the_documented_call_gives_the_commands_network(
    asked: dict[str, Any], budget: Budget, images: Data | None
) -> None:
    dense = checkpoint_of(alive(Residual()))
    by_library = prune(dense, Request(budget=budget), data=images)
    said = request_from(PruneOptions(**asked), has_data=images is not None)
    assert isinstance(said, Request)
    by_command = prune(dense, said, data=images)
    assert by_library.request == by_command.request == said
    assert [level.plan for level in by_library.levels] == [level.plan for level in by_command.levels]
    assert same_state(by_library.checkpoint.module, by_command.checkpoint.module)
    assert (by_library.repair_result is None) is (images is None)


@pytest.mark.parametrize("images", [data(64), None], ids=["data", "no data"])
def test_the_job_takes_the_librarys_request_as_the_commands(images: Data | None) -> None:
    dense = checkpoint_of(alive(Residual()))
    said = request_from(PruneOptions(macs=0.5), has_data=images is not None)
    by_command = prune_to(None, dense, said, data=images)
    by_library = prune_to(None, dense, Request(budget=BUDGETS[1][1]), data=images)
    parts = ("pruning", "repairing", "lineage")
    assert [getattr(by_library, part) for part in parts] == [getattr(by_command, part) for part in parts]


def test_curves_are_those_of_the_command() -> None:
    dense = checkpoint_of(alive(Residual()))
    said = request_from(PruneOptions(macs=0.5), has_data=True)
    assert isinstance(said, Request)
    by_command = measure_curves(dense, said, data(64)).to_json()
    assert measure_curves(dense, Request(budget=BUDGETS[1][1]), data(64)).to_json() == by_command


def test_a_mask_is_repaired_where_there_is_data() -> None:
    dense = checkpoint_of(alive(plain()))
    assert mask_weights(dense, MaskRequest(sparsity=0.6, images=64), data=data()).repaired is not None
    assert mask_weights(dense, MaskRequest(sparsity=0.6)).repaired is None


def test_a_scope_that_nobody_resolved_shares_nothing() -> None:
    with pytest.raises(PlanError, match="auto"):
        plan_pruning(
            [group("a", 4)], scores([group("a", 4)]), budget=ChannelBudget(ratio=0.5), sharing=Sharing(scope=Scope.AUTO)
        )
