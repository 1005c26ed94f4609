"""Every operator of torch's core ATen set: `python -m benchmarks.operators` writes docs/operators.md.

Each stands between two layers of a small network (`benchmarks.operator_samples`), which is traced and shrunk by half
with proof: beside the channels (it acts position by position, or on other dimensions), and along them. What is written
is what was seen:

    followed   half of the channels left, and the proof held
    stays      the channels stayed, with the reason that a user reads
    no data    no tensor goes through: a size, say

Many operators are tried in one network, one branch for each; of a network that fails, the halves are tried.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.operator_samples import Sample, Stream, core, samples
from compressor.channels.groups import trace
from compressor.channels.rules.stated import stated_reason
from compressor.errors import GroupError, SurgeryError
from compressor.surgery.plan import ChannelBudget, Scores, plan_pruning
from compressor.surgery.proved import shrink_proved

FILE = Path(__file__).parent.parent / "docs" / "operators.md"
EXAMPLE = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)
WIDTH, TOGETHER = 8, 24
FOLLOWED, STAYS, NO_DATA = "followed", "stays", "no data"
BROKEN = "broken"  # neither proved nor refused for a reason that is written down: a fault of ours
KINDS = ("beside", "channels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of the channels, and why where they stayed."""

    verdict: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict


class Branch(nn.Module):
    """Two layers, an operator, and a layer that reads what it gives."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.a, self.b, self.sample = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(3, WIDTH, 1), (sample,)
        self.p, self.q, self.square = (nn.Parameter(torch.randn(n)) for n in ((WIDTH,), (WIDTH,), (WIDTH, WIDTH)))
        self.rows = nn.Parameter(torch.randn(5, WIDTH))
        with torch.no_grad():
            self.last = nn.Linear(self.made(*EXAMPLE).shape[1], 4)

    def made(self, x: Tensor) -> Tensor:
        """What the operator gives, with no more dimensions than two, whatever its type."""
        given = self.sample[0](Stream(self.a(x), self.b(x), self.p, self.q, self.square, self.rows))
        given = given.to(self.p.dtype)
        return given.flatten(2).mean(2) if given.ndim > 2 else given

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, 3, 6, 6]` to `[..., 4]`."""
        return self.last(self.made(x))


class Branches(nn.Module):
    """Many at once."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([*branches, nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(288, 4))])

    def forward(self, x: Tensor) -> list[Tensor]:
        """What each gives."""
        return [branch(x) for branch in self.branches]


def verdicts(names: Sequence[str] | None = None) -> dict[str, dict[str, Verdict]]:
    """By operator, and by how it stood: what became of the channels. `names` are those that are tried."""
    found: dict[str, dict[str, Verdict]] = {}
    tried: list[tuple[str, str, Sample]] = []
    for operator in core():
        name = str(operator).removeprefix("aten.")
        if names is not None and name not in names:
            continue
        here = samples(operator)
        found[name] = {} if here else {"beside": Verdict(verdict=NO_DATA)}
        tried += [(name, kind, sample) for kind, sample in here.items()]
    for start in range(0, len(tried), TOGETHER):
        for (name, kind, _), verdict in _seen(tried[start : start + TOGETHER]):
            found[name][kind] = verdict
    return found


def _seen(tried: Sequence[tuple[str, str, Sample]]) -> Iterator[tuple[tuple[str, str, Sample], Verdict]]:
    try:
        found = _traced([sample for _, _, sample in tried])
    except (GroupError, SurgeryError, RuntimeError) as error:
        if len(tried) > 1:
            middle = len(tried) // 2
            yield from _seen(tried[:middle])
            yield from _seen(tried[middle:])
            return
        operator: Any = next(op for op in core() if str(op).removeprefix("aten.") == tried[0][0])
        reason = stated_reason(operator)
        found = [Verdict(verdict=STAYS if reason else BROKEN, reason=reason or str(error).splitlines()[0])]
    yield from zip(tried, found, strict=True)


def _traced(tried: Sequence[Sample]) -> list[Verdict]:
    torch.manual_seed(0)
    module = Branches([Branch(sample) for sample in tried]).eval()
    traced = trace(module, EXAMPLE)
    by_root = {g.root: torch.randn(g.channels).double() for g in traced.groups}
    plan = plan_pruning(traced.groups, Scores(by_root=by_root, comparable=True), budget=ChannelBudget(ratio=0.5))
    small, _, proof = shrink_proved(module, traced, plan, EXAMPLE)
    assert proof.holds
    state = small.state_dict()
    reasons = {left.layer: left.reason for left in traced.left_alone}
    found = []
    for number in range(len(tried)):
        leaves = len(state[f"branches.{number}.a.weight"]) < WIDTH
        reason = "" if leaves else reasons[f"branches.{number}.a"]
        found.append(Verdict(verdict=FOLLOWED if leaves else STAYS, reason=reason))
    return found


def table(found: Mapping[str, Mapping[str, Verdict]]) -> str:
    """The page."""
    followed = sum(any(v.verdict == FOLLOWED for v in kinds.values()) for kinds in found.values())
    empty = sum(all(v.verdict == NO_DATA for v in kinds.values()) for kinds in found.values())
    lines = [
        "# Operators",
        "",
        "Written by `python -m benchmarks.operators`, and compared in the tests with what is seen: every operator of",
        "torch's core ATen set between two layers, beside the channels and along them.",
        "",
        f"torch {torch.__version__.partition('+')[0]}: {len(found)} operators, {followed} followed, {empty} without"
        f" data, {len(found) - followed - empty} at which the channels stay.",
        "",
        "| operator | beside the channels | along the channels |",
        "| --- | --- | --- |",
    ]
    for name, kinds in sorted(found.items()):
        lines.append(f"| `{name}` | {' | '.join(str(kinds.get(kind, '')) for kind in KINDS)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page, or with `--only` print what becomes of some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="operators, with their overloads, separated by commas")
    only = parser.parse_args().only
    found = verdicts(only.split(",") if only else None)
    if only:
        sys.stdout.write(table(found))
        return
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
