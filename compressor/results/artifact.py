"""An artifact's `results.json`: everything that was measured of it, one section for each command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from compressor.environment import environment
from compressor.errors import ArtifactError
from compressor.results.changes import Factorizing, Masking, Pruning, Repairing
from compressor.results.int8 import Quantizing
from compressor.results.latency import MeetingLatency
from compressor.results.parity import Parity
from compressor.results.quality import Quality
from compressor.results.records import Pair, Plain, Record
from compressor.results.timing import Bench
from compressor.results.training import LotterySearch, Retrained, WhileTraining

SCHEMA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Record):
    """One reading of a data split by one network; in the file the counts stand beside its name."""

    model: str = "small"
    data: str | None = None
    quality: Quality

    @classmethod
    def prepared(cls, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """The counts as one value."""
        own = {key: plain[key] for key in ("model", "data") if key in plain}
        return own | {"quality": {key: value for key, value in plain.items() if key not in own}}

    def finished(self, plain: dict[str, Any]) -> dict[str, Any]:
        """The counts beside the name."""
        return {key: value for key, value in plain.items() if key != "quality"} | self.quality.to_json()


@dataclass(frozen=True, slots=True, kw_only=True)
class Results(Record):
    """Everything that was measured of one artifact; a part that nobody has measured is `None` or empty.

    Schema 2 has a `TimedRow` for every file that was timed; files of schema 1 are read as such.
    """

    KEYS: ClassVar = {
        "pruning": "prune", "masking": "mask", "factorizing": "factorize", "repairing": "repair",
        "retrainings": "retrain", "quantizing": "quantize", "evaluations": "evaluate",
    }  # fmt: skip
    SPARE: ClassVar = frozenset(
        {
            "command", "environment", "pruning", "masking", "factorizing", "repairing", "latency", "while_training",
            "adapt", "lottery", "retrainings", "export", "bench", "quantizing", "evaluations",
        }
    )  # fmt: skip

    schema: int = SCHEMA
    name: str = "unnamed network"
    command: str | None = None
    environment: Plain = field(default_factory=dict)
    pruning: Pruning | None = None
    masking: Masking | None = None
    factorizing: Factorizing | None = None
    repairing: Repairing | None = None
    latency: MeetingLatency | None = None
    while_training: WhileTraining | None = None
    adapt: Plain | None = None
    lottery: LotterySearch | None = None
    retrainings: tuple[Retrained, ...] = ()
    export: Parity | None = None
    bench: Bench | None = None
    quantizing: Quantizing | None = None
    evaluations: tuple[Evaluation, ...] = ()
    lineage: tuple[Plain, ...] = ()

    @classmethod
    def prepared(cls, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values in the newest schema; refused where theirs is newer than that."""
        schema = plain.get("schema") or 1
        if isinstance(schema, int) and schema > SCHEMA:
            raise ArtifactError(
                f"the results are of schema {schema}, and this version reads up to {SCHEMA}",
                hint="update the package, or repeat the measurements with this version",
            )
        return {**plain, "schema": SCHEMA} if isinstance(schema, int) else plain

    @classmethod
    def of(cls, name: str, command: str, lineage: Sequence[Plain] = (), **sections: Any) -> Self:
        """The results of a new artifact, made here and now."""
        return cls(name=name, command=command, environment=environment(), lineage=tuple(lineage), **sections)

    def without_measurements(self) -> Self:
        """Without what was measured of the weights: it would be untrue once they have changed."""
        return replace(self, export=None, bench=None, quantizing=None, evaluations=())

    def achieved(self, quantity: str) -> Pair | None:
        """The dense and the small network's channels, params, macs or bytes."""
        change = self.pruning or self.factorizing
        pair: Pair | None = getattr(change.achieved, quantity) if change else None
        return pair
