"""What `compress factorize` does, for library users too: plain values in, an artifact and its results out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.checkpoint.artifact_writing import check_free, write_artifact
from compressor.checkpoint.artifacts import SUFFIX
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.errors import PlanError, only_one
from compressor.files.names import file_name_from
from compressor.planning.ranks import EnergyBudget, RankBudget
from compressor.progress import Say, quiet
from compressor.pruning.low_rank import LowRank, factorize
from compressor.results.artifact import Results
from compressor.surgery.factors import Kind, kind_named
from compressor.surgery.plan import CostBudget, Countable
from compressor.surgery.rounding import AUTO_ALIGN


def low_rank_from(
    *,
    macs: float | None = None,
    params: float | None = None,
    energy: float | None = None,
    rank: int | None = None,
    how: str = "spatial",
    protect: Sequence[str] = (),
    align: int = AUTO_ALIGN,
) -> LowRank:
    """Return the request for a command line's plain values. Refused: not exactly one budget, unknown kinds.

    `how` may name several kinds, with commas. Without a budget `separable` has rank 1, the block of MobileNets.
    """
    kinds = tuple(kind_named(name.strip()) for name in how.split(","))
    if kinds == (Kind.SEPARABLE,) and macs is None and params is None and energy is None and rank is None:
        rank = 1
    name, value = only_one(
        {"--macs": macs, "--params": params, "--energy": energy, "--rank": rank},
        kind="budget",
        refusal=PlanError,
        hint="set one: `--macs 0.5`, `--params 0.5`, `--energy 0.9` or `--rank 8`",
    )
    budget: CostBudget | EnergyBudget | RankBudget
    if name == "--rank":
        budget = RankBudget(rank=int(value))
    elif name == "--energy":
        budget = EnergyBudget(keeps=value)
    else:
        budget = CostBudget(counted=Countable(name.removeprefix("--")), stays=value)
    return LowRank(budget=budget, how=kinds, protect=tuple(protect), align=align)


def default_folder(checkpoint: Checkpoint) -> Path:
    """Return the artifact's default folder: `NAME.factors.compressed` in the working folder."""
    return Path(f"{file_name_from(checkpoint.name)}.factors{SUFFIX}")


def factorize_to(
    folder: Path | None,
    checkpoint: Checkpoint,
    request: LowRank,
    *,
    command: str = "",
    force: bool = False,
    trust_pickle: bool = False,
    say: Say = quiet,
) -> Results:
    """Factorise, and write the artifact to `folder` unless that is `None`; return the results in the artifact.

    Refused: what `factorize` refuses, a folder with other content, an artifact that a fresh process reads back
    differently.
    """
    if folder is not None:
        check_free(folder, force=force)
    factorized = factorize(checkpoint, request, say=say)
    small = factorized.checkpoint
    results = Results.of(checkpoint.name, command, small.lineage, factorizing=factorized.result)
    if folder is not None:
        say("writing, and reading it back in a fresh process")
        source = checkpoint.source
        artifact = write_artifact(folder, small, source=source, results=results, force=force, trust_pickle=trust_pickle)
        results = artifact.results()
    return results
