"""Random networks through the front door: pruned and right by the oracle, or refused, and what was in each.

`python -m tests.support.surveyed --seed 0 --count 1000` prints a table of features by verdicts and every network that
is not right by seed and index; `--first INDEX --count 1 --shrink` makes one of them as small as it gets.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compressor.errors import CompressError
from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget
from tests.support.drawn import Drawn, Seeded, Spec, spec_by, without, without_second
from tests.support.oracle import distinct_, judged
from tests.support.reasons import internal_in
from tests.support.topologies import checkpoint_of

RATIO = 0.5
VERDICTS = ("right", "refused", "fixed", "wrong", "internal", "unjudged")
FIXED = "its dimension"  # what a network says that takes one size alone


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One network: its verdict and the reason for it, and what is said of the layers that were left alone.

    A `fixed` one takes no other batch size than the example's, and says so: that counts as a refusal.
    """

    spec: Spec
    verdict: str
    reason: str = ""
    kept_as: str = ""
    left_alone: tuple[str, ...] = ()


def judge(spec: Spec) -> Judged:
    """Prune the spec's network as a user would, and ask the oracle."""
    module = distinct_(Drawn(spec))
    checkpoint = dataclasses.replace(checkpoint_of(module), example_inputs=spec.inputs(1))
    request = Request(budget=ChannelBudget(ratio=RATIO), align=1, repair=Repair.NONE)
    try:
        pruned = prune(checkpoint, request)
    except CompressError as error:
        said = f"{error} ({error.hint})"
        words = internal_in(said)
        return Judged(
            spec=spec, verdict="internal" if words else "refused", reason=f"[{words}] {said}" if words else said
        )
    except Exception as error:
        # whatever comes through the front door is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return Judged(spec=spec, verdict="internal", reason=f"raised {type(error).__name__} at {where}: {error}"[:300])
    return _compared(spec, module, pruned)


def _compared(spec: Spec, module: torch.nn.Module, pruned: Pruned) -> Judged:
    small, alone = pruned.checkpoint.module, tuple(a.reason for a in pruned.traced.left_alone)
    told: dict[str, Any] = {"spec": spec, "kept_as": pruned.kept_as, "left_alone": alone}
    found = judged(module, small, spec.inputs, rounded=pruned.kept_as == "program")
    if found.unjudged is not None:
        return Judged(**told, verdict="unjudged", reason=found.unjudged)
    if found.why is not None and FIXED in found.why:
        return Judged(**told, verdict="fixed", reason=found.why)
    if not found.right:
        return Judged(**told, verdict="wrong", reason=str(found))
    inner = next(((words, text) for text in alone if (words := internal_in(text))), None)
    if inner is not None:
        return Judged(**told, verdict="internal", reason=f"[{inner[0]}] left alone: {inner[1]}")
    if not sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters()):
        return Judged(**told, verdict="wrong", reason="nothing left")
    return Judged(**told, verdict="right")


@dataclass
class Survey:
    """Verdicts on many networks, counted by what is in them."""

    judged: list[Judged] = field(default_factory=list)

    def count(self, verdict: str) -> int:
        """How many have it."""
        return sum(j.verdict == verdict for j in self.judged)

    def with_feature(self, feature: str) -> list[Judged]:
        """The networks that have it."""
        return [j for j in self.judged if feature in j.spec.features]

    @property
    def features(self) -> list[str]:
        """All that any has, the rarest last."""
        counts = Counter(f for j in self.judged for f in j.spec.features)
        return [name for name, _ in counts.most_common()]

    def table(self) -> str:
        """A row for each feature: how many networks have it, and their verdicts."""
        lines = [f"{'':20}{'networks':>10}" + "".join(f"{v:>10}" for v in VERDICTS) + f"{'program':>10}"]
        for name in ["all", *self.features]:
            mine = self.judged if name == "all" else self.with_feature(name)
            counts = Counter(j.verdict for j in mine)
            programs = sum(j.kept_as == "program" for j in mine)
            lines.append(f"{name:20}{len(mine):10}" + "".join(f"{counts[v]:10}" for v in VERDICTS) + f"{programs:10}")
        return "\n".join(lines)

    def reasons(self) -> str:
        """Why networks are not right, by how often."""
        counts = Counter((j.verdict, re.sub(r"\d+", "N", j.reason)[:160]) for j in self.judged if j.verdict != "right")
        return "\n".join(f"{n:5} {verdict}: {reason}" for (verdict, reason), n in counts.most_common())


def drawn(seed: int, index: int) -> Spec:
    """The spec of a seed and an index: always the same."""
    return spec_by(Seeded(f"{seed} {index}"))


def surveyed(count: int, *, seed: int = 0, first: int = 0, say: bool = False) -> Survey:
    """The verdicts on `count` networks.

    They are drawn by seeds and not by hypothesis, whose examples vary their predecessors: their features come in runs.
    """
    survey, start = Survey(), time.monotonic()
    for index in range(first, first + count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = judge(drawn(seed, index))
        survey.judged.append(found)
        if say and found.verdict != "right":
            print(f"{seed} {index} {found.verdict}: {found.reason}", file=sys.stderr, flush=True)
        if say and (index + 1) % 50 == 0:
            print(f"{index + 1} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return survey


def smallest(spec: Spec, verdict: str) -> Spec:
    """The spec with as few nodes and features as leave the verdict what it is."""
    while True:
        tried = [without(spec, i) for i in reversed(range(len(spec.nodes)))]
        tried += [dataclasses.replace(spec, output="tensor"), dataclasses.replace(spec, length=False)]
        tried += [without_second(spec)] if spec.second != "none" else []
        better = next((one for one in tried if one != spec and _still(one, verdict)), None)
        if better is None:
            return spec
        spec = better


def _still(spec: Spec, verdict: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Drawn(spec).eval()(*spec.inputs(2))  # some are no networks
            return judge(spec).verdict == verdict
    except Exception:  # one that is no network raises whatever torch raises
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Survey and print; exit status 1 where a network is wrong or a reason is an internal one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--shrink", action="store_true", help="make each network that is wrong as small as it gets")
    asked = parser.parse_args(arguments)
    survey = surveyed(asked.count, seed=asked.seed, first=asked.first, say=True)
    for one in survey.judged if asked.shrink else ():
        if one.verdict != "right":
            spec = smallest(one.spec, one.verdict)
            print(f"{one.verdict}: {judge(spec).reason}\n    {spec}")
    print(survey.table(), survey.reasons(), sep="\n\n")
    return int(survey.count("wrong") + survey.count("internal") > 0)


if __name__ == "__main__":
    sys.exit(main())
