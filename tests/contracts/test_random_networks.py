"""Networks drawn at random, as people write them, through the front door: right by the oracle, or refused.

`python -m tests.support.surveyed --seed S --first INDEX --count 1 --shrink` shows one of them again, made small.
"""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings

from tests.support.drawn import KINDS, Drawn, Node, Seeded, Spec, spec_by, specs, without
from tests.support.oracle import distinct_
from tests.support.reasons import internal_in
from tests.support.surveyed import drawn, judge, smallest, surveyed

FEATURES = {
    *KINDS, "tensor output", "dict output", "tuple output", "nested output", "1-D", "2-D", "integer input",
    "two inputs", "batch by len()",
}  # fmt: skip
REFUSED = 0.05  # of all networks, at most
SMALL = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def test_a_few_random_networks_are_right_or_refused() -> None:
    survey = surveyed(8, seed=1)
    assert survey.count("wrong") + survey.count("internal") + survey.count("unjudged") == 0, survey.reasons()


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_thousand_random_networks_are_right_or_refused() -> None:
    survey = surveyed(1000, seed=0)
    print(survey.table(), survey.reasons(), sep="\n\n")
    assert survey.count("wrong") == 0, survey.reasons()
    assert survey.count("internal") == 0, survey.reasons()
    assert survey.count("unjudged") == 0, survey.reasons()
    assert survey.count("refused") + survey.count("fixed") < REFUSED * 1000, survey.reasons()
    assert survey.count("right") > 900


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=100, **SMALL)  # type: ignore[arg-type]
@given(specs())
def test_hypothesis_finds_no_wrong_network(spec: Spec) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = judge(spec)
    event(found.verdict)
    assert found.verdict in ("right", "refused", "fixed"), found.reason


# The networks themselves


def test_every_feature_is_in_a_tenth_of_the_networks() -> None:
    networks = [drawn(0, index).features for index in range(1000)]
    rare = {f: share for f in FEATURES if (share := sum(f in one for one in networks) / 1000) < 0.1}
    assert not rare
    assert set().union(*networks) == FEATURES


def test_a_seed_and_an_index_give_the_same_network() -> None:
    assert drawn(3, 7) == drawn(3, 7)
    assert len({drawn(3, index) for index in range(50)}) == 50


@pytest.mark.parametrize("index", range(12))
def test_what_is_drawn_runs_at_any_batch_size(index: int) -> None:
    spec = spec_by(Seeded(f"runs {index}"))
    module = distinct_(Drawn(spec))
    for batch in (1, 3):
        leaves = torch.utils._pytree.tree_leaves(module(*spec.inputs(batch)))
        assert all(t.shape == (batch, 4) and bool(t.isfinite().all()) for t in leaves)


def test_a_node_less_is_a_network_still() -> None:
    spec = Spec(
        nodes=(
            Node("conv", (0,), (4, 1)),
            Node("chunk", (1,)),
            Node("activation", (3,), ("tanh",)),
            Node("cat", (2, 4)),
        ),
        stems=(4,),
    )
    less = without(spec, 2)
    assert less.nodes == (*spec.nodes[:2], Node("cat", (2, 3)))
    Drawn(less).eval()(*less.inputs(2))


def test_the_smallest_network_with_a_verdict_holds_what_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def judged_by_kind(spec: Spec) -> object:
        kinds = [node.kind for node in spec.nodes]
        verdict = "wrong" if "shuffle" in kinds else "right"
        return dataclasses.make_dataclass("Found", ["verdict"])(verdict)

    monkeypatch.setattr("tests.support.surveyed.judge", judged_by_kind)
    spec = next(s for s in (drawn(0, i) for i in range(100)) if "shuffle" in s.features)
    small = smallest(spec, "wrong")
    assert "shuffle" in small.features
    assert len(small.nodes) < len(spec.nodes)
    assert small.second == "none"


@pytest.mark.parametrize(
    "text",
    [
        '`im2col` cannot be followed: "im2col_out_cpu" not implemented for \'Int\'', "KeyError: 'x'",
        "`running_mean` is not an nn.Parameter", "Expected all tensors to be on the same device",
        "'Holder' object has no attribute 'weight'", "shape '[1, 6, 6]' is invalid for input of size 72",
    ],
)  # fmt: skip
def test_words_for_programmers_are_internal(text: str) -> None:
    assert internal_in(text)


@pytest.mark.parametrize(
    "text",
    ["its channels are the network's output", "`add` joins it with what cannot shrink", "`fft_rfft` has no rule"],
)
def test_words_for_users_are_not(text: str) -> None:
    assert internal_in(text) is None
