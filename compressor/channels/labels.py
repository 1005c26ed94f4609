"""Labels: which positions of which dimensions are the same channel, and so must be removed together.

A label is an integer id. Each index along a tensor dimension carries a set of labels; the index is removed as soon as
any of its labels is. Labels that must be removed together are united. Where a dimension is viewed as a product, as
channels are as heads times features, a label is *factored*: from then on it stands for one label of each factor. A
*pinned* label is never removed; neither is an index without labels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Dim = tuple[Ids, ...]  # along one dimension: vectors of labels, 0 where a vector has no label for a position
Bools = NDArray[np.bool_]
TURNS = 12  # attempts to make two sides agree, and the recursion depth of one attempt


class Labels:
    """All labels of one trace: which are united, factored or pinned, and why.

    It is a union-find: `_parent` leads to the representative (root) of a label's class.
    """

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, dtype=np.int64)
        self._pinned: Bools = np.ones(1, dtype=np.bool_)
        self._factors: dict[int, tuple[int, ...]] = {}  # root → one label of each factor
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Ids:
        """Return `count` new labels."""
        first = len(self._parent)
        new = np.arange(first, first + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, new])
        self._pinned = np.concatenate([self._pinned, np.zeros(count, dtype=np.bool_)])
        return new

    def marked(self, labels: Iterable[int]) -> Bools:
        """Return a mask over all labels: true for those in `labels`."""
        mask = np.zeros(len(self._parent), dtype=np.bool_)
        mask[list(labels)] = True
        return mask

    def find(self, ids: Ids) -> Ids:
        """Return the representative of each label's class."""
        at = self._parent[ids]
        while True:
            above = self._parent[at]
            if np.array_equal(above, at):
                break
            at = above
        self._parent[ids] = at
        return at

    def pin(self, dim: Dim, reason: str) -> None:
        """Pin all labels of a dimension: none of its positions is removed."""
        for ids in self.resolve(dim):
            for root in np.unique(ids[ids > 0]).tolist():
                self._pinned[root] = True
                self._reasons.setdefault(root, reason)

    def reason(self, label: int) -> str | None:
        """Return why a label's class is pinned; `None` where it is not."""
        root = int(self.find(np.array([label]))[0])
        if root in self._factors:
            parts = [self.reason(part) for part in self._factors[root]]
            return next((p for p in parts if p is not None), None) if all(parts) else None
        return self._reasons.get(root, "") if self._pinned[root] else None

    def resolve(self, dim: Dim) -> Dim:
        """Return the dimension in terms of representatives that are neither factored nor pinned.

        The result is empty where no position can be removed.
        """
        vectors: list[Ids] = []
        for ids in dim:
            roots = self.find(ids)
            unique, places = np.unique(roots, return_inverse=True)
            parts = [self._factors.get(r) for r in unique.tolist()]
            if not any(parts):
                vectors.append(np.where(self._pinned[roots], 0, roots))
                continue
            whole = np.array([0 if p else r for p, r in zip(parts, unique.tolist(), strict=True)], dtype=np.int64)
            columns = [
                np.array([p[k] if p and k < len(p) else 0 for p in parts], dtype=np.int64)
                for k in range(max(len(p) for p in parts if p))
            ]
            vectors += self.resolve(tuple(column[places] for column in (whole, *columns)))
        kept: list[Ids] = []
        for ids in vectors:
            for other in kept:
                ids = np.where(ids == other, 0, ids)  # a position's set holds each label once
            if ids.any():
                kept.append(ids)
        return tuple(kept)

    def unify(self, a: Dim, b: Dim, reason: str = "") -> None:
        """Make both dimensions equal: a position is removed from one exactly if it is removed from the other.

        Where no way to do so is found, both are pinned.
        """
        for _ in range(TURNS):
            self._unify(a, b, reason, TURNS)
            if self._agree(a, b):
                return
        self.pin(a, reason)
        self.pin(b, reason)

    def _agree(self, a: Dim, b: Dim) -> bool:
        """True if both dimensions have the same set of labels at every position."""
        a, b = self.resolve(a), self.resolve(b)
        if not a or not b:
            return not a and not b
        height = max(len(a), len(b))
        one, two = (np.sort(np.stack([*dim, *[np.zeros_like(dim[0])] * (height - len(dim))]), axis=0) for dim in (a, b))
        return bool(np.array_equal(one, two))

    def _unify(self, a: Dim, b: Dim, reason: str, depth: int) -> None:
        """One attempt to make two dimensions equal, by how many labels each position carries on either side.

        - none on one side: that side cannot shrink there, so the other side's labels are pinned;
        - one on both sides: the two labels are united;
        - one against several: the single label is factored into the several;
        - several on both sides: the vectors are matched (`_match`).

        Each step handles the positions of its kind and calls itself for the others; `depth` bounds the recursion.
        """
        while True:
            a, b = self.resolve(a), self.resolve(b)
            if not a or not b or not depth:
                self.pin(a, reason)
                self.pin(b, reason)
                return
            sizes_a, sizes_b = _sizes(a), _sizes(b)
            bare = (sizes_a == 0) | (sizes_b == 0)
            if not bare.any():
                break
            self.pin(_at(a, bare), reason)
            self.pin(_at(b, bare), reason)
            a, b = _at(a, ~bare), _at(b, ~bare)
        single = (sizes_a == 1) & (sizes_b == 1)
        if single.any():
            self._unite(_only(_at(a, single)), _only(_at(b, single)), reason, depth)
            if not single.all():
                self._unify(_at(a, ~single), _at(b, ~single), reason, depth - 1)
            return
        ones, others = (a, b) if (sizes_a == 1).any() else (b, a)
        one = _sizes(ones) == 1
        if one.any():
            self._factor(_only(_at(ones, one)), _at(others, one), reason, depth)
            if not one.all():
                self._unify(_at(ones, ~one), _at(others, ~one), reason, depth - 1)
            return
        self._match(a, b, reason, depth)

    def _unite(self, a: Ids, b: Ids, reason: str, depth: int) -> None:
        """Unite labels pairwise; the lower root wins, and takes over pins and factors.

        Two roots with factors of their own are united factor by factor afterwards.
        """
        clashes: list[tuple[int, int]] = []
        while True:
            roots_a, roots_b = self.find(a), self.find(b)
            apart = roots_a != roots_b
            if not apart.any():
                break
            low, high = np.minimum(roots_a, roots_b)[apart], np.maximum(roots_a, roots_b)[apart]
            order = np.argsort(-low, kind="stable")
            self._parent[high[order]] = low[order]  # the lowest of several wins: it is written last
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
            first, second = (tuple(np.array([part]) for part in self._factors[root]) for root in (one, two))
            self._unify(first, second, reason or "it is divided in two ways", depth - 1)

    def _factor(self, ones: Ids, parts: Dim, reason: str, depth: int) -> None:
        """Let each label of `ones` `[n]` stand for its row of `parts` from now on."""
        roots = self.find(ones)
        within = np.zeros(len(roots), dtype=np.bool_)
        for ids in parts:
            within |= ids == roots
        if within.any():  # {a} = {a, b}: b can never be removed
            self.pin(tuple(np.where(ids == roots, 0, ids)[within] for ids in parts), reason)
        roots, parts = roots[~within], _at(parts, ~within)
        chosen, places = np.unique(roots, return_index=True)
        if any(np.isin(ids, chosen).any() for ids in parts) and len(roots) > 1:  # one label is a part of another
            for i in range(len(roots)):
                self._unify((roots[i : i + 1],), tuple(ids[i : i + 1] for ids in parts), reason, depth - 1)
            return
        for root, place in zip(chosen.tolist(), places.tolist(), strict=True):
            self._factors[root] = tuple(int(ids[place]) for ids in parts if ids[place])
        repeated = np.ones(len(roots), dtype=np.bool_)
        repeated[places] = False
        if repeated.any():
            self._unify((roots[repeated],), _at(parts, repeated), reason, depth - 1)

    def _match(self, a: Dim, b: Dim, reason: str, depth: int) -> None:
        """Match dimensions with several labels per position: vectors with the same pattern of repetition are the same
        factor.
        """
        left, right = list(a), list(b)
        for same in (np.array_equal, _same_pattern):
            for ids in list(left):
                other = next((o for o in right if same(ids, o)), None)
                if other is not None:
                    self._unite(ids[ids > 0], other[other > 0], reason, depth)
                    left = [v for v in left if v is not ids]
                    right = [v for v in right if v is not other]
        if not left and not right:
            return
        if len(left) > 1 and len(right) > 1 and not self._refine(left, right, reason, depth):
            self.pin((*left, *right), reason or "it is divided in two ways")
        else:
            self._unify(tuple(left), tuple(right), reason, depth - 1)

    def _refine(self, left: list[Ids], right: list[Ids], reason: str, depth: int) -> bool:
        """Refine two factorisations into a common one, where each is finer at one end.

        Example: 12 channels are viewed as 3 x 4 on the left and as 6 x 2 on the right. The left labels are a (3 values,
        each for 4 consecutive positions) and b (4 values); the right ones are c (6 values, each for 2) and d (2
        values). c is finer than a: each a covers two c. So a new factor m with 2 values counts the c within an a, and
        12 = 3 x 2 x 2: c stands for {a, m}, and b for {m, d}. Returns false if no factor is finer in this regular way.
        """
        if len(left) != len(right) or len(left) > len("ab") or not all(ids.all() for ids in (*left, *right)):
            return False
        for coarse, fine in (left, left[::-1]):
            for finer, coarser in (right, right[::-1]):
                rank = _rank(finer, coarse)  # `coarse` and the middle factor together are `finer`
                if rank is None:
                    continue
                pair = rank * (int(coarser.max()) + 1) + coarser  # the middle factor and `coarser` together are `fine`
                if not _same_pattern(pair, fine):
                    continue
                middle = self.fresh(int(rank.max()) + 1)[rank]
                self._unify((finer,), (coarse, middle), reason, depth - 1)
                self._unify((fine,), (middle, coarser), reason, depth - 1)
                return True
        return False


def _rank(fine: Ids, coarse: Ids) -> Ids | None:
    """The number of each fine label among those within its coarse label.

    `None` where `fine` does not refine `coarse`, or not by the same number everywhere.
    """
    pairs = np.unique(np.stack([coarse, fine]), axis=1)
    if len(np.unique(pairs[1])) < pairs.shape[1]:
        return None  # a fine label lies in two coarse ones
    _, first, counts = np.unique(pairs[0], return_index=True, return_counts=True)
    if len(set(counts.tolist())) > 1 or counts[0] == 1:
        return None
    ranks: Ids = np.arange(pairs.shape[1], dtype=np.int64) - np.repeat(first, counts)
    where = {int(label): int(rank) for label, rank in zip(pairs[1], ranks, strict=True)}
    return np.array([where[int(label)] for label in fine], dtype=np.int64)


def _sizes(dim: Dim) -> Ids:
    """The number of labels at each position."""
    total: Ids = np.sum([ids > 0 for ids in dim], axis=0, dtype=np.int64)
    return total


def _at(dim: Dim, positions: Bools) -> Dim:
    """The dimension at the selected positions."""
    return tuple(ids[positions] for ids in dim)


def _only(dim: Dim) -> Ids:
    """The single label of each position."""
    total: Ids = np.sum(dim, axis=0, dtype=np.int64)
    return total


def _same_pattern(a: Ids, b: Ids) -> bool:
    """True if both vectors repeat their labels at the same positions."""
    return bool(np.array_equal(_pattern(a), _pattern(b)))


def _pattern(ids: Ids) -> Ids:
    """Each label replaced by its first position; -1 for no label."""
    _, first, places = np.unique(ids, return_index=True, return_inverse=True)
    pattern: Ids = np.where(ids > 0, first[places], -1)
    return pattern
