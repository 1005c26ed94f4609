"""Records: what `to_json` writes `from_json` reads, and a value of the wrong kind is refused by its place."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import compressor.results
from compressor.errors import ArtifactError
from compressor.results.artifact import Evaluation, Results
from compressor.results.quality import Accuracy, Agreement, Quality, Score
from compressor.results.records import Pair, Plain, Record
from compressor.results.timing import Speedup

MODULES = [m.name for m in pkgutil.iter_modules(compressor.results.__path__, "compressor.results.")]
RECORDS = sorted(
    {
        value
        for name in MODULES
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and issubclass(value, Record) and value not in (Record, Quality)
    },
    key=lambda kind: kind.__name__,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf(Record):
    KEYS: ClassVar = {"inputs": "in"}

    count: int
    inputs: Pair | None = None
    share: float | None = None
    words: tuple[str, ...] = ()
    plain: Plain = field(default_factory=dict)
    samples: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree(Record):
    leaves: tuple[Leaf, ...] = ()
    one: Leaf | None = None
    quality: Quality | None = None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
leaves = st.builds(
    Leaf,
    count=st.integers(),
    inputs=st.none() | st.tuples(st.integers(), st.integers()),
    share=st.none() | st.floats(allow_nan=False) | st.integers(),
    words=st.lists(st.text(), max_size=3).map(tuple),
    plain=st.dictionaries(st.text(max_size=3), json_values, max_size=3),
    samples=st.lists(st.lists(st.integers(), max_size=3).map(tuple), max_size=2).map(tuple),
    rest=st.dictionaries(st.sampled_from(["newer", "figure"]), json_values, max_size=2),
)


@given(st.builds(Tree, leaves=st.lists(leaves, max_size=3).map(tuple), one=st.none() | leaves))
def test_what_is_written_is_read(tree: Tree) -> None:
    assert Tree.from_json(json.loads(json.dumps(tree.to_json()))) == tree


def test_a_key_that_nobody_knows_is_kept_and_written_again() -> None:
    plain = {"one": {"count": 1, "newer": [2]}, "other": {"a": 1}}
    tree = Tree.from_json(plain)
    assert tree.rest == {"other": {"a": 1}}
    assert tree.one is not None
    assert tree.one.rest == {"newer": [2]}
    assert tree.to_json()["other"] == {"a": 1}
    assert ("newer", [2]) in tree.one.facts()


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        (
            {"leaves": [{"count": 1}, {"count": "two"}]},
            "`results.leaves[1].count` in the results is not a whole number",
        ),
        ({"leaves": [{"in": [1, 2]}]}, "`results.leaves[0]` in the results lacks its `count`"),
        ({"one": 3}, "`results.one` in the results is not an object: 3"),
        ({"one": {"count": True}}, "`results.one.count` in the results is not a whole number: True"),
        ({"one": {"count": 1, "in": [1]}}, "`results.one.in` in the results is not a pair of whole numbers: [1]"),
        ({"one": {"count": 1, "in": [1, "x"]}}, "is not a pair of whole numbers: [1, 'x']"),
        ({"one": {"count": 1, "share": "much"}}, "`results.one.share` in the results is not a number: 'much'"),
        ({"one": {"count": 1, "words": "abc"}}, "`results.one.words` in the results is not a list: 'abc'"),
        ({"one": {"count": 1, "words": [1]}}, "`results.one.words[0]` in the results is not a string: 1"),
        ({"one": {"count": 1, "plain": 3}}, "`results.one.plain` in the results is not an object: 3"),
        ({"one": {"count": 1, "samples": [[1], [None]]}}, "`results.one.samples[1][0]`"),
        ({"quality": {"correct": 3, "total": 2}}, "`results.quality` in the results: 3 out of 2 images is no share"),
        ([], "`results` in the results is not an object"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_place(plain: Any, says: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        Tree.from_json(plain)
    assert says in str(caught.value)


def test_a_quality_is_read_by_what_it_counts() -> None:
    assert isinstance(Quality.from_json({"correct": 1, "total": 2, "split": "test"}), Accuracy)
    close = Tree.from_json({"quality": {"agreeing": 1, "total": 2, "split": "test", "relative_error": 0.5}}).quality
    assert isinstance(close, Agreement)
    assert Tree(quality=close).to_json()["quality"]["agreeing"] == 1
    entry = Evaluation(model="small", data="here", quality=Accuracy(correct=1, total=2, split="test"))
    assert entry.to_json() == {"model": "small", "data": "here", **entry.quality.to_json()}
    assert Evaluation.from_json(entry.to_json()) == entry


def test_an_interval_that_does_not_hold_its_estimate_is_no_speed_up() -> None:
    with pytest.raises(ArtifactError, match="does not lie in"):
        Speedup.from_json({"ratio": 2.0, "low": 2.1, "high": 2.2})


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_record_is_frozen_and_says_what_it_is(kind: type[Record]) -> None:
    assert len(RECORDS) > 25
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert kind.__doc__
    names = {f.name for f in dataclasses.fields(kind)}
    assert set(kind.KEYS) | set(kind.SPARE) <= names
    assert all(hasattr(kind, name) for name in kind.DERIVED)


def test_nothing_that_is_spare_is_written() -> None:
    assert Results().to_json() == {"schema": 2, "name": "unnamed network", "lineage": []}


def test_a_score_comes_back_as_a_score_and_knows_what_is_worse() -> None:
    dense = Score(total=60, split="tune", metric="perplexity", score=10.0, bounds=(9.0, 11.0), percent=False,
                  higher_is_better=False)  # fmt: skip
    small = dataclasses.replace(dense, score=10.5)
    assert Quality.from_json(dense.to_json()) == dense
    assert small.lost_against(dense) == pytest.approx(5.0)  # percent of the dense network's
    assert dense.lost_against(small) == pytest.approx(-100 / 21)
    share = Score(total=60, metric="mIoU", score=0.8, bounds=(0.7, 0.9))
    assert dataclasses.replace(share, score=0.79).lost_against(share) == pytest.approx(1.0)  # points
    assert Accuracy(correct=90, total=100).lost_against(Accuracy(correct=92, total=100)) == pytest.approx(2.0)
