"""An artifact's results.json, checked once, here: from plain values to findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from compressor.errors import ArtifactError
from compressor.report.findings import (
    Bench,
    Epoch,
    Evaluation,
    FactorizedLayer,
    Factorizing,
    Findings,
    Masking,
    Pair,
    Pruning,
    PruningEvent,
    Quantizing,
    Repairing,
    Retraining,
    Row,
    Share,
    Speedup,
    StoredTensor,
    WhileTraining,
    Width,
)
from compressor.report.reading import Entry

SCHEMA = 1
T = TypeVar("T")


def findings_from_results(results: Mapping[str, object]) -> Findings:
    """The findings in an artifact's results; refused where an entry is of the wrong kind, or the schema is newer."""
    top = Entry(results, place="results")
    schema = top.count("schema")
    if schema is not None and schema > SCHEMA:
        raise ArtifactError(
            f"the results are of schema {schema}, and this version reads up to {SCHEMA}",
            hint="update the package, or repeat the measurements with this version",
        )
    environment, bench = top.entry("environment"), top.entry("bench")
    pruning, masking, export = top.entry("prune"), top.entry("mask"), top.entry("export")
    repairing, latency, quantizing = top.entry("repair"), top.entry("latency"), top.entry("quantize")
    factorizing, during = top.entry("factorize"), top.entry("while_training")
    return Findings(
        name=top.text("name") or "unnamed network",
        command=top.text("command"),
        environment=environment.facts() if environment else (),
        pruning=_pruning(pruning) if pruning else None,
        masking=_masking(masking) if masking else None,
        factorizing=_factorizing(factorizing) if factorizing else None,
        repairing=_repairing(repairing) if repairing else None,
        while_training=_while_training(during) if during else None,
        retrainings=tuple(_retraining(entry) for entry in top.entries("retrain")),
        export=export.facts() if export else (),
        latency=latency.facts() if latency else None,
        bench=_bench(bench) if bench else None,
        quantizing=_quantizing(quantizing) if quantizing else None,
        evaluations=tuple(_evaluation(entry) for entry in top.entries("evaluate")),
        lineage=tuple(entry.facts() for entry in top.entries("lineage")),
        rest=top.rest(),
    )


def _pruning(entry: Entry) -> Pruning:
    requested, proof = entry.entry("requested"), entry.entry("proof")
    pairs, left_alone = _achieved(entry), _left_alone(entry)
    widths = tuple(_width(width) for width in entry.entries("widths"))
    entry.list("curves")  # `compress sensitivity` draws them
    caveats = entry.texts("caveats")
    return Pruning(
        caveats=caveats,
        requested=requested.facts() if requested else (),
        achieved=pairs,
        settings=entry.rest(),
        proof=proof.facts() if proof else (),
        widths=widths,
        left_alone=left_alone,
    )


def _achieved(entry: Entry) -> tuple[tuple[str, Pair], ...]:
    achieved = entry.entry("achieved")
    return tuple((key, _required(achieved.pair(key), key)) for key, _ in achieved.facts()) if achieved else ()


def _left_alone(entry: Entry) -> tuple[tuple[str, str], ...]:
    return tuple(
        (_required(left.text("layer"), "layer"), left.text("reason") or "no reason was recorded")
        for left in entry.entries("left_alone")
    )


def _factorizing(entry: Entry) -> Factorizing:
    requested, proof = entry.entry("requested"), entry.entry("proof")
    layers = tuple(
        FactorizedLayer(
            layer=_required(row.text("layer"), "layer"),
            kind=row.text("kind") or "",
            rank=_required(row.count("rank"), "rank"),
            full_rank=_required(row.count("full_rank"), "full_rank"),
            energy=_required(row.number("energy"), "energy"),
            macs=_required(row.pair("macs"), "macs"),
            params=_required(row.pair("params"), "params"),
        )
        for row in entry.entries("layers")
    )
    achieved, left_alone = _achieved(entry), _left_alone(entry)
    return Factorizing(
        requested=requested.facts() if requested else (),
        achieved=achieved,
        settings=entry.rest(),
        proof=proof.facts() if proof else (),
        layers=layers,
        left_alone=left_alone,
    )


def _repairing(entry: Entry) -> Repairing:
    layers = tuple(
        (
            _required(layer.text("layer"), "layer"),
            _required(layer.number("before"), "before"),
            _required(layer.number("after"), "after"),
        )
        for layer in entry.entries("layers")
    )
    rise = [value for value in entry.list("rise") if isinstance(value, (int, float))]
    return Repairing(
        how=entry.text("how") or "repair",
        rise=(float(rise[0]), float(rise[1])) if len(rise) == 2 else None,
        layers=layers,
        facts=entry.rest(),
    )


def _masking(entry: Entry) -> Masking:
    tensors = tuple(
        StoredTensor(
            name=_required(row.text("name"), "name"),
            encoding=row.text("encoding") or "",
            elements=_required(row.count("elements"), "elements"),
            kept=_required(row.count("kept"), "kept"),
            dense_bytes=_required(row.count("dense_bytes"), "dense_bytes"),
            stored_bytes=_required(row.count("stored_bytes"), "stored_bytes"),
        )
        for row in entry.entries("rows")
    )
    return Masking(statement=entry.text("statement"), tensors=tensors, facts=entry.rest())


def _width(entry: Entry) -> Width:
    return Width(
        layer=_required(entry.text("layer"), "layer"),
        kind=entry.text("kind") or "",
        inputs=entry.pair("in"),
        outputs=_required(entry.pair("out"), "out"),
        macs=entry.pair("macs"),
    )


def _retraining(entry: Entry) -> Retraining:
    history = tuple(
        Epoch(
            epoch=_required(epoch.count("epoch"), "epoch"),
            rate=epoch.number("rate"),
            train_loss=epoch.number("train_loss"),
            tune_correct=epoch.count("tune_correct"),
            tune_total=epoch.count("tune_total"),
        )
        for epoch in entry.entries("history")
    )
    return Retraining(how=entry.text("how") or "retraining", history=history, facts=entry.rest())


def _while_training(entry: Entry) -> WhileTraining:
    events = tuple(_event(event) for event in entry.entries("events"))
    stability = entry.number("mean_stability")
    return WhileTraining(training=_retraining(entry), events=events, stability=stability)


def _event(entry: Entry) -> PruningEvent:
    chosen = entry.entry("chosen")
    return PruningEvent(
        epoch=_required(entry.count("epoch"), "epoch"),
        channels=sum(len(chosen.list(root)) for root, _ in chosen.facts()) if chosen else 0,
        before=_required(entry.count("before"), "before"),
        after=_required(entry.count("after"), "after"),
        total=_required(entry.count("total"), "total"),
        instability=entry.number("instability"),
    )


def _bench(entry: Entry) -> Bench:
    environment, why = entry.entry("environment"), entry.entry("why")
    return Bench(
        rows=tuple(_row(row) for row in entry.entries("rows")),
        caveats=entry.texts("caveats"),
        threads=entry.count("threads"),
        blocks=entry.count("blocks"),
        environment=environment.facts() if environment else (),
        why=why.facts() if why else None,
        rest=entry.rest(),
    )


def _row(entry: Entry) -> Row:
    accuracy, speedup = entry.entry("accuracy"), entry.entry("speedup")
    return Row(
        runtime=_required(entry.text("runtime"), "runtime"),
        provider=entry.text("provider"),
        batch=_required(entry.count("batch"), "batch"),
        candidate=_required(entry.text("candidate"), "candidate"),
        median_ms=_required(entry.number("median_ms"), "median_ms"),
        p90_ms=entry.number("p90_ms"),
        p99_ms=entry.number("p99_ms"),
        throughput=entry.number("throughput"),
        peak_memory_bytes=entry.count("peak_memory_bytes"),
        file_bytes=entry.count("file_bytes"),
        params=entry.count("params"),
        macs=entry.count("macs"),
        accuracy=_share(accuracy) if accuracy else None,
        speedup=_speedup(speedup) if speedup else None,
        theoretical_speedup=entry.number("theoretical_speedup"),
        samples_ns=entry.rows("samples_ns"),
    )


def _speedup(entry: Entry) -> Speedup:
    return Speedup(
        ratio=_required(entry.number("ratio"), "ratio"),
        low=_required(entry.number("low"), "low"),
        high=_required(entry.number("high"), "high"),
    )


def _quantizing(entry: Entry) -> Quantizing:
    accuracy, agreement = entry.entry("accuracy"), entry.entry("agreement")
    pair = [accuracy.entry(kind) for kind in ("float", "int8")] if accuracy else []
    known = [_share(one) for one in pair if one is not None]
    rows = tuple(
        (
            _required(row.count("batch"), "batch"),
            _required(row.number("float_ms"), "float_ms"),
            _required(row.number("int8_ms"), "int8_ms"),
            _speedup(_required(row.entry("speedup"), "speedup")),
        )
        for row in entry.entries("speed")
    )
    sizes = [_required(entry.count(key), key) for key in ("float_bytes", "int8_bytes")]
    return Quantizing(
        bytes=(sizes[0], sizes[1]),
        rows=rows,
        agreement=_share(agreement) if agreement else None,
        accuracy=(known[0], known[1]) if len(known) == 2 else None,
        caveats=entry.texts("caveats"),
        facts=entry.rest(),
    )


def _evaluation(entry: Entry) -> Evaluation:
    return Evaluation(model=entry.text("model") or "small", data=entry.text("data"), share=_share(entry))


def _share(entry: Entry) -> Share:
    against_dense = entry.value("agreeing") is not None
    count = "agreeing" if against_dense else "correct"
    return Share(
        count=_required(entry.count(count), count),
        total=_required(entry.count("total"), "total"),
        split=entry.text("split"),
        low=entry.number("low"),
        high=entry.number("high"),
        against_dense=against_dense,
        relative_error=entry.number("relative_error"),
    )


def _required(value: T | None, key: str) -> T:
    if value is None:
        raise ArtifactError(f"an entry of the results lacks its `{key}`", hint="run the command that measures it again")
    return value
