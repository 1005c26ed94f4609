"""Coupling: which positions of which dimensions stand for the same channel, and so must leave together.

A *label* is a number; every position along a dimension of a tensor carries a set of them, and leaves when one of them
does. Labels that must leave together are united. Where a dimension is seen as a product, as channels are as heads times
features, a label is *factored*: it stands for one label of each factor from then on. A *pinned* label never leaves; a
position without labels never does either.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Dim = tuple[Ids, ...]  # along one dimension: vectors of labels, 0 where one says nothing of a position
Bools = NDArray[np.bool_]


class Labels:
    """All labels of one trace: what was united, what factored, what pinned and why."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, dtype=np.int64)
        self._pinned: Bools = np.ones(1, dtype=np.bool_)
        self._factors: dict[int, tuple[int, ...]] = {}  # root → one label of each factor
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Ids:
        """`count` new labels."""
        first = len(self._parent)
        new = np.arange(first, first + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, new])
        self._pinned = np.concatenate([self._pinned, np.zeros(count, dtype=np.bool_)])
        return new

    def find(self, ids: Ids) -> Ids:
        """The representative of each label's class."""
        at = self._parent[ids]
        while True:
            above = self._parent[at]
            if np.array_equal(above, at):
                break
            at = above
        self._parent[ids] = at
        return at

    def pin(self, dim: Dim, reason: str) -> None:
        """Nothing of these leaves."""
        for ids in self.resolve(dim):
            for root in np.unique(ids[ids > 0]).tolist():
                self._pinned[root] = True
                self._reasons.setdefault(root, reason)

    def reason(self, label: int) -> str | None:
        """Why a label's class is pinned; `None` where it is not."""
        root = int(self.find(np.array([label]))[0])
        if root in self._factors:
            parts = [self.reason(part) for part in self._factors[root]]
            return next((p for p in parts if p is not None), None) if all(parts) else None
        return self._reasons.get(root, "") if self._pinned[root] else None

    def resolve(self, dim: Dim) -> Dim:
        """The same in terms of representatives that are neither factored nor pinned; empty where nothing can leave."""
        vectors: list[Ids] = []
        for ids in dim:
            roots = self.find(ids)
            known, places = np.unique(roots, return_inverse=True)
            parts = [self._factors.get(r) for r in known.tolist()]
            if not any(parts):
                vectors.append(np.where(self._pinned[roots], 0, roots))
                continue
            whole = np.array([0 if p else r for p, r in zip(parts, known.tolist(), strict=True)], dtype=np.int64)
            columns = [
                np.array([p[k] if p and k < len(p) else 0 for p in parts], dtype=np.int64)
                for k in range(max(len(p) for p in parts if p))
            ]
            vectors += self.resolve(tuple(column[places] for column in (whole, *columns)))
        kept: list[Ids] = []
        for ids in vectors:
            for other in kept:
                ids = np.where(ids == other, 0, ids)  # a set names nobody twice
            if ids.any():
                kept.append(ids)
        return tuple(kept)

    def unify(self, a: Dim, b: Dim, reason: str = "") -> None:
        """Both say the same of every position: what leaves there by the one leaves by the other."""
        while True:
            a, b = self.resolve(a), self.resolve(b)
            if not a or not b:
                self.pin(a or b, reason)
                return
            sizes_a, sizes_b = _sizes(a), _sizes(b)
            bare = (sizes_a == 0) | (sizes_b == 0)
            if not bare.any():
                break
            self.pin(_at(a, bare), reason)
            self.pin(_at(b, bare), reason)
            a, b = _at(a, ~bare), _at(b, ~bare)
        single = (sizes_a == 1) & (sizes_b == 1)
        if single.all():
            self._unite(_only(a), _only(b))
            return
        if single.any():
            self._unite(_only(_at(a, single)), _only(_at(b, single)))
            self.unify(_at(a, ~single), _at(b, ~single), reason)
            return
        ones, others = (a, b) if (_sizes(a) == 1).any() else (b, a)
        one = _sizes(ones) == 1
        if one.any():
            self._factor(_only(_at(ones, one)), _at(others, one), reason)
            if not one.all():
                self.unify(_at(ones, ~one), _at(others, ~one), reason)
            return
        self._match(a, b, reason)

    def _unite(self, a: Ids, b: Ids) -> None:
        clashes: list[tuple[int, int]] = []
        while True:
            roots_a, roots_b = self.find(a), self.find(b)
            apart = roots_a != roots_b
            if not apart.any():
                break
            low, high = np.minimum(roots_a, roots_b)[apart], np.maximum(roots_a, roots_b)[apart]
            order = np.argsort(-low, kind="stable")
            self._parent[high[order]] = low[order]  # of several the lowest, which is written last
            losers = np.unique(high)
            for loser, winner in zip(losers.tolist(), self.find(losers).tolist(), strict=True):
                if self._pinned[loser]:
                    self._pinned[winner] = True
                    self._reasons.setdefault(winner, self._reasons.get(loser, ""))
                if loser in self._factors:
                    if winner in self._factors:
                        clashes.append((loser, winner))
                    else:
                        self._factors[winner] = self._factors[loser]
        for one, two in clashes:
            first, second = self._factors[one], self._factors[two]
            if len(first) == len(second):
                self._unite(np.array(first), np.array(second))
            else:
                self.pin((np.array([*first, *second]),), "it is divided in two ways")

    def _factor(self, ones: Ids, parts: Dim, reason: str) -> None:
        """Each label of `ones` `[n]` stands for its row of `parts` from now on."""
        roots = self.find(ones)
        within = np.zeros(len(roots), dtype=np.bool_)
        for ids in parts:
            within |= ids == roots
        if within.any():  # {a} = {a, b}: b never leaves
            self.pin(tuple(np.where(ids == roots, 0, ids)[within] for ids in parts), reason)
        chosen, places = np.unique(roots[~within], return_index=True)
        rows = [ids[~within] for ids in parts]
        for root, place in zip(chosen.tolist(), places.tolist(), strict=True):
            self._factors[root] = tuple(int(ids[place]) for ids in rows if ids[place])
        if len(chosen) < int((~within).sum()):
            repeated = np.ones(int((~within).sum()), dtype=np.bool_)
            repeated[places] = False
            self.unify((roots[~within][repeated],), tuple(ids[repeated] for ids in rows), reason)

    def _match(self, a: Dim, b: Dim, reason: str) -> None:
        """Sets of several labels each: vectors that repeat themselves in the same way are the same factor."""
        left, right = list(a), list(b)
        for same in (np.array_equal, _same_pattern):
            for ids in list(left):
                other = next((o for o in right if same(ids, o)), None)
                if other is not None:
                    both = (ids > 0) & (other > 0)
                    self._unite(ids[both], other[both])
                    left = [v for v in left if v is not ids]
                    right = [v for v in right if v is not other]
        if not left and not right:
            return
        if len(left) > 1 and len(right) > 1:
            self.pin((*left, *right), reason or "it is divided in two ways")
            return
        self.unify(tuple(left), tuple(right), reason)


def _sizes(dim: Dim) -> Ids:
    """How many labels each position carries."""
    total: Ids = np.sum([ids > 0 for ids in dim], axis=0, dtype=np.int64)
    return total


def _at(dim: Dim, positions: Bools) -> Dim:
    return tuple(ids[positions] for ids in dim)


def _only(dim: Dim) -> Ids:
    """The one label of each position."""
    total: Ids = np.sum(dim, axis=0, dtype=np.int64)
    return total


def _same_pattern(a: Ids, b: Ids) -> bool:
    return bool(np.array_equal(_pattern(a), _pattern(b)))


def _pattern(ids: Ids) -> Ids:
    """Each label replaced by where it first stands."""
    _, first, places = np.unique(ids, return_index=True, return_inverse=True)
    found: Ids = first[places]
    return found
