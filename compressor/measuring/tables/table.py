"""Latency tables: the time of each operator of a network at different widths, measured on one machine's runtime.

A table belongs to a target: hardware, runtime and its version, batch and threads. Each operator's key (its description
without widths) has samples: input width, output width and time, within whole networks at random widths
(`measuring.tables.measured`). Between the samples, a non-negative sum of products of the widths
(`planning.widths.features`) is fitted, by relative error. The sum over operators is not a call's time, because starting
each operator takes time too. So one factor for the starts and one for the rest are fitted to whole networks, which also
measure the error of predictions.

A table is a file: measured on the target, used anywhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.checkpoint import forms
from compressor.errors import ArtifactError
from compressor.files.json_files import read_json, write_json
from compressor.files.schema import check
from compressor.planning.widths import FEATURES, START, Layer, Numbers, Sizes, WidthCost, features

SCHEMA = 2
ENOUGH = 8  # samples of an operator: fewer determine six prices badly
RIDGE = 1e-3  # of a column's length
REGULAR = 8  # multiples that suit every runtime's layouts and vectors
TOLERATED = 0.1  # prices cover the cost of a width; alignment is only about leaving a runtime's fast layout

Sample = tuple[float, float, float]  # channels read, channels written, nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a network should be fast."""

    runtime: str
    batch: int
    threads: int
    hardware: str
    version: str

    def __str__(self) -> str:
        return f"{self.runtime}, batch {self.batch}, threads: {self.threads}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Two factors from operators' times to a network's time: one for their starts, one for the rest.

    A profiler makes starting an operator slower than it is. `networks` has predictions, each without the network
    itself, and measurements, in nanoseconds.
    """

    factor: float
    starts: float
    networks: tuple[tuple[float, float], ...] = ()

    @property
    def error(self) -> float:
        """The median of |predicted / measured − 1| over the networks."""
        return statistics.median(abs(p / m - 1) for p, m in self.networks) if self.networks else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """Samples by operator, the cost of alignments, and the factors of whole networks, by the network's signature.

    `alignments`: for widths that are multiples of it but not of twice it, the ratio of the networks' time to that of
    the same widths if they were aligned.
    """

    target: Target
    samples: Mapping[str, tuple[Sample, ...]]
    alignments: tuple[tuple[int, float], ...]
    wholes: Mapping[str, Whole]
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def align(self) -> int:
        """The least multiple whose widths cost no more than those of `REGULAR` ones, within `TOLERATED`."""
        regular = [excess for align, excess in self.alignments if align >= REGULAR]
        if not regular:
            return 1
        most = statistics.fmean(regular) * (1 + TOLERATED)
        return min((align for align, excess in self.alignments if excess <= most), default=REGULAR)

    def knows(self, keys: Sequence[str]) -> bool:
        """Return true if all these operators have enough samples."""
        return all(len(self.samples.get(key, ())) >= ENOUGH for key in keys)

    def describes(self, keys: Sequence[str], signature: str) -> bool:
        """Return true if the table predicts the network of these operators."""
        return self.knows(keys) and signature in self.wholes

    def with_samples(self, more: Mapping[str, Sequence[Sample]]) -> LatencyTable:
        """Return the table with more samples."""
        joined = {k: (*self.samples.get(k, ()), *more.get(k, ())) for k in {**self.samples, **more}}
        return LatencyTable(
            target=self.target,
            samples=joined,
            alignments=self.alignments,
            wholes=self.wholes,
            environment=self.environment,
        )

    def prices(self, keys: Sequence[str]) -> Numbers:
        """Return the prices of each operator's features: `[keys, FEATURES]`, nanoseconds."""
        fitted = {key: fit_prices(self.samples[key]) for key in dict.fromkeys(keys)}
        return np.stack([fitted[key] for key in keys]) if keys else np.zeros((0, FEATURES))

    def cost(self, sizes: Sizes, layers: Sequence[Layer], keys: Sequence[str], *, signature: str) -> WidthCost:
        """Return the predicted latency at any widths, in nanoseconds."""
        whole = self.wholes[signature]
        prices = self.prices(keys) * whole.factor
        prices[:, START] *= whole.starts / whole.factor if whole.factor else 0.0
        return WidthCost(sizes, layers, prices)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "schema": SCHEMA,
            "target": {
                "runtime": self.target.runtime,
                "batch": self.target.batch,
                "threads": self.target.threads,
                "hardware": self.target.hardware,
                "version": self.target.version,
            },
            "align": self.align,
            "alignments": [{"multiple": a, "excess": e} for a, e in self.alignments],
            "samples": {key: [list(s) for s in some] for key, some in self.samples.items()},
            "wholes": {
                name: {"factor": w.factor, "starts": w.starts, "networks": [list(n) for n in w.networks]}
                for name, w in self.wholes.items()
            },
            "environment": dict(self.environment),
        }


def table_from_json(plain: Mapping[str, Any], *, where: str = "it") -> LatencyTable:
    """Return the table that `to_json` wrote. Refused: anything else, or another version."""
    if plain.get("schema", SCHEMA) != SCHEMA:
        raise ArtifactError(
            f"this latency table is of schema {plain['schema']}, and this version reads {SCHEMA}",
            hint="measure it again: `compress measure-table MODEL`",
        )
    check(plain, forms.TABLE, where=f"{where} is no latency table", hint="`compress measure-table` writes one")
    try:
        return LatencyTable(
            target=Target(**plain["target"]),
            samples={
                key: tuple((float(r), float(w), float(t)) for r, w, t in some) for key, some in plain["samples"].items()
            },
            alignments=tuple((int(a["multiple"]), float(a["excess"])) for a in plain["alignments"]),
            wholes={
                name: Whole(
                    factor=float(w["factor"]),
                    starts=float(w["starts"]),
                    networks=tuple((float(p), float(m)) for p, m in w["networks"]),
                )
                for name, w in plain["wholes"].items()
            },
            environment=plain.get("environment", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"this is no latency table: {type(error).__name__}: {error}", hint="`compress measure-table` writes one"
        ) from error


def read_table(file: Path) -> LatencyTable:
    """Return the table in a file. Refused: a file without one."""
    return table_from_json(read_json(file), where=str(file))


def write_table(file: Path, table: LatencyTable) -> None:
    """Write the table, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, table.to_json())


def fit_prices(samples: Sequence[Sample]) -> Numbers:
    """Return the non-negative prices of the features with the least squared relative error: `[FEATURES]`."""
    reads, writes, times = (np.array(column, dtype=np.float64) for column in zip(*samples, strict=True))
    return nonnegative(features(reads, writes) / times[:, None], np.ones(len(samples)))


def nonnegative(matrix: Numbers, wanted: Numbers) -> Numbers:
    """Return the x ≥ 0 with the least |matrix x − wanted|² (Lawson and Hanson, by scipy); `[columns]`.

    Columns are scaled to length one. A small ridge shares the effect among nearly equal columns.
    """
    from scipy.optimize import nnls  # half a second to import, and only this function needs it

    scale = np.sqrt((matrix * matrix).sum(axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    ridged = np.vstack([matrix / scale, RIDGE * np.eye(matrix.shape[1])])
    x, _ = nnls(ridged, np.concatenate([wanted, np.zeros(matrix.shape[1])]))
    return np.asarray(x / scale)


def fit_whole(starts: Sequence[float], rest: Sequence[float], measured: Sequence[float]) -> Whole:
    """Fit two factors (operator starts, everything else) that map summed operator times to whole-network latency.

    `networks` are leave-one-out predictions, with the measurements.
    """
    columns, times = np.stack([np.array(rest), np.array(starts)], axis=1), np.array(measured)

    def fitted(keep: NDArray[np.bool_]) -> Numbers:
        return nonnegative(columns[keep] / times[keep][:, None], np.ones(int(keep.sum())))

    every = np.ones(len(times), dtype=bool)
    factor, begun = fitted(every)
    others = []
    for k in range(len(times)):
        keep = every.copy()
        keep[k] = len(times) < 3  # with two networks none can be left out
        others.append((float(columns[k] @ fitted(keep)), float(times[k])))
    return Whole(factor=float(factor), starts=float(begun), networks=tuple(others))
