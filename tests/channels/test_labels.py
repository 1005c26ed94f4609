"""Labels: what was said to be the same is the same in the end, and what was pinned never leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.channels.labels import Dim, Labels


def ids(*numbers: int) -> Any:
    return np.array(numbers, dtype=np.int64)


def sets(labels: Labels, dim: Dim, length: int) -> list[set[int]]:
    """What each position along a dimension leaves with."""
    vectors = labels.resolve(dim)
    return [{int(v[i]) for v in vectors} - {0} for i in range(length)]


def product(*lengths: int) -> list[Any]:
    """For every factor of a dimension, which of it each position has: row-major."""
    grids = np.meshgrid(*(np.arange(n) for n in lengths), indexing="ij")
    return [g.reshape(-1) for g in grids]


def factored(labels: Labels, vector: Any, *lengths: int) -> list[Any]:
    """Say that a vector is a product of factors; fresh labels of each."""
    parts = [labels.fresh(n) for n in lengths]
    labels.unify((vector,), tuple(part[at] for part, at in zip(parts, product(*lengths), strict=True)))
    return parts


# Hand-made cases


def test_united_labels_have_one_representative_and_others_their_own() -> None:
    labels = Labels()
    a, b, c = (labels.fresh(3) for _ in range(3))
    labels.unify((a,), (b,))
    labels.unify((b,), (c,))
    assert labels.find(a).tolist() == labels.find(b).tolist() == labels.find(c).tolist()
    assert len(set(labels.find(a).tolist())) == 3


def test_a_label_that_repeats_unites_everything_that_it_meets() -> None:
    labels = Labels()
    a, b = labels.fresh(2), labels.fresh(4)
    labels.unify((a[[0, 0, 1, 1]],), (b,))
    assert sets(labels, (b,), 4) == [{int(x)} for x in labels.find(a)[[0, 0, 1, 1]]]


def test_a_vector_that_is_a_product_leaves_by_either_factor() -> None:
    labels = Labels()
    whole = labels.fresh(6)
    heads, features = factored(labels, whole, 3, 2)
    expected = [{int(h), int(f)} for h in heads for f in features]
    assert sets(labels, (whole,), 6) == expected
    assert all(labels.reason(int(i)) is None for i in whole)


def test_the_same_product_seen_twice_has_the_same_factors() -> None:
    labels = Labels()
    whole = labels.fresh(12)
    first, second = factored(labels, whole, 3, 4), factored(labels, whole, 3, 4)
    for one, other in zip(first, second, strict=True):
        assert labels.find(one).tolist() == labels.find(other).tolist()
    assert len(set(labels.find(np.concatenate(first)).tolist())) == 7
    assert len(labels.resolve((whole,))) == 2


def test_the_same_product_of_two_vectors_that_are_one_has_the_same_factors() -> None:
    labels = Labels()
    a, b = labels.fresh(6), labels.fresh(6)
    first, second = factored(labels, a, 2, 3), factored(labels, b, 2, 3)
    labels.unify((a,), (b,))
    for one, other in zip(first, second, strict=True):
        assert labels.find(one).tolist() == labels.find(other).tolist()


@pytest.mark.parametrize("lengths", [((3, 4), (6, 2)), ((2, 6), (4, 3)), ((2, 3, 2), (6, 2)), ((6, 2), (2, 3, 2))])
def test_a_product_that_divides_another_one_further_refines_it(
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    labels = Labels()
    whole = labels.fresh(12)
    first, second = (factored(labels, whole, *n) for n in lengths)
    resolved = labels.resolve((whole,))
    assert sorted(len(set(v.tolist())) for v in resolved) == [2, 2, 3]
    assert len({frozenset(s) for s in sets(labels, (whole,), 12)}) == 12
    for parts, counts in ((first, lengths[0]), (second, lengths[1])):
        said = tuple(part[at] for part, at in zip(parts, product(*counts), strict=True))
        assert sets(labels, said, 12) == sets(labels, (whole,), 12)


@pytest.mark.parametrize("lengths", [((2, 3), (3, 2)), ((4, 3), (3, 4)), ((2, 15), (5, 6))])
def test_products_that_do_not_divide_each_other_are_pinned_where_they_would_lie(
    lengths: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """3 x 2 has no label that is one of 2 x 3: what would have to leave together is everything."""
    labels = Labels()
    count = lengths[0][0] * lengths[0][1]
    whole = labels.fresh(count)
    both = [factored(labels, whole, *n) for n in lengths]
    expected = sets(labels, (whole,), count)
    for parts, counts in zip(both, lengths, strict=True):
        said = tuple(part[at] for part, at in zip(parts, product(*counts), strict=True))
        assert sets(labels, said, count) == expected
    assert len({frozenset(s) for s in expected}) < count


def test_pinning_a_product_pins_its_factors_with_the_reason() -> None:
    labels = Labels()
    whole = labels.fresh(6)
    heads, features = factored(labels, whole, 3, 2)
    labels.pin((whole[:2],), "the first head stays")
    assert sets(labels, (heads,), 3) == [set(), {int(heads[1])}, {int(heads[2])}]
    assert labels.resolve((features,)) == ()
    assert labels.reason(int(features[1])) == "the first head stays"
    assert labels.reason(int(whole[0])) == "the first head stays"
    assert labels.reason(int(whole[2])) is None  # its head may leave


def test_what_is_united_with_a_pinned_label_is_pinned_whichever_came_first() -> None:
    for pinned_first in (True, False):
        labels = Labels()
        a, b = labels.fresh(2), labels.fresh(2)
        if pinned_first:
            labels.pin((a[:1],), "a stays")
        labels.unify((a,), (b,))
        if not pinned_first:
            labels.pin((a[:1],), "a stays")
        assert sets(labels, (b,), 2) == [set(), {int(labels.find(b)[1])}]
        assert labels.reason(int(b[0])) is not None


def test_what_meets_a_position_without_labels_is_pinned_for_the_reason_given() -> None:
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(3)
    labels.unify((a,), (np.where(b == b[1], 0, b),), "it meets the input")
    assert sets(labels, (a,), 3) == [{int(a[0])}, set(), {int(a[2])}]
    assert labels.reason(int(a[1])) == "it meets the input"
    labels.unify((a,), (), "it meets nothing")
    assert labels.resolve((a,)) == ()
    assert labels.reason(int(a[0])) == "it meets nothing"


def test_a_label_that_is_one_with_itself_and_another_leaves_alone() -> None:
    """{a} = {a, b}: b leaves nowhere."""
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(3)
    labels.unify((a,), (a, b), "b is not in both")
    assert sets(labels, (a,), 3) == [{int(x)} for x in a]
    assert labels.resolve((b,)) == ()
    assert labels.reason(int(b[0])) == "b is not in both"


def test_a_set_names_nobody_twice() -> None:
    labels = Labels()
    a, b = labels.fresh(2), labels.fresh(2)
    labels.unify((a,), (b,))
    assert len(labels.resolve((a, b))) == 1


# Properties

LENGTH = 12
PRODUCTS = [(3, 4), (4, 3), (2, 6), (6, 2), (2, 2, 3), (2, 3, 2), (3, 2, 2)]
LAYOUTS = [
    *(at.tolist() for lengths in PRODUCTS for at in product(*lengths)), list(range(LENGTH)), [0] * LENGTH,
    [-1] * 6 + list(range(6)), list(range(6)) + [-1] * 6, [-1, *range(LENGTH - 1)],
]  # fmt: skip


def check(labels: Labels, rows: list[Any], united: list[tuple[Dim, Dim]], pinned: list[Dim]) -> None:
    """What was united is equal, what was pinned does not resolve, and a reason is there just where nothing does."""
    for a, b in united:
        assert sets(labels, a, LENGTH) == sets(labels, b, LENGTH)
    for dim in pinned:
        assert labels.resolve(dim) == ()
    for row in rows:
        for label, leaving in zip(row.tolist(), sets(labels, (row,), len(row)), strict=True):
            assert (labels.reason(label) is None) == bool(leaving)


rows = st.integers(0, 4)
natural = st.one_of(
    st.tuples(st.just("unify"), rows, rows),
    st.tuples(st.just("factor"), rows, st.sampled_from(PRODUCTS)),
    st.tuples(st.just("join"), rows, st.tuples(rows, rows)),
    st.tuples(st.just("pin"), rows, st.integers(0, LENGTH - 1)),
)


@given(st.lists(natural, min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_vectors_that_are_united_factored_and_pinned_agree_in_the_end(said: list[Any]) -> None:
    """`join`: one vector is the first half of a second, and then the second half of a third, as in a concatenation."""
    labels = Labels()
    pool = [labels.fresh(LENGTH) for _ in range(5)]
    united: list[tuple[Dim, Dim]] = []
    pinned: list[Dim] = []
    seen = list(pool)
    for what, row, other in said:
        if what == "pin":
            pinned.append((pool[row][: other + 1],))
            labels.pin(pinned[-1], "pinned")
            continue
        if what == "unify":
            a, b = (pool[row],), (pool[other],)
        elif what == "join":
            a, b = (pool[row],), (np.concatenate([pool[other[0]][:6], pool[other[1]][6:]]),)
        else:
            parts = [labels.fresh(n) for n in other]
            seen += parts
            a, b = (pool[row],), tuple(part[at] for part, at in zip(parts, product(*other), strict=True))
        united.append((a, b))
        labels.unify(a, b, "said so")
    check(labels, seen, united, pinned)


vectors = st.tuples(rows, st.sampled_from(LAYOUTS), st.integers(0, LENGTH - 1))
dims = st.lists(vectors, min_size=1, max_size=3)
anything = st.one_of(st.tuples(st.just("unify"), dims, dims), st.tuples(st.just("pin"), dims, st.just([])))


@given(st.lists(anything, min_size=1, max_size=6))
@settings(max_examples=400, deadline=None)
def test_whatever_is_said_in_whatever_order_holds_in_the_end(said: list[Any]) -> None:
    """Vectors in any layout, turned round, several at a time: a label may meet a set that it is in itself."""
    labels = Labels()
    pool = [labels.fresh(LENGTH) for _ in range(5)]

    def dim_of(drawn: list[tuple[int, list[int], int]]) -> Dim:
        return tuple(np.where(np.array(at) < 0, 0, pool[row][(np.array(at) + by) % LENGTH]) for row, at, by in drawn)

    united: list[tuple[Dim, Dim]] = []
    pinned: list[Dim] = []
    for what, first, second in said:
        if what == "unify":
            united.append((dim_of(first), dim_of(second)))
            labels.unify(*united[-1], "said so")
        else:
            pinned.append(dim_of(first))
            labels.pin(pinned[-1], "pinned")
    check(labels, pool, united, pinned)
