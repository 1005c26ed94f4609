"""The demo: command lines that exist, on the best path, and a last table that is what its steps measured."""

from __future__ import annotations

import shlex

from compressor.cli.demo import SMALL, TUNED, rows, steps
from compressor.results.artifact import Evaluation, Results
from compressor.results.latency import MeetingLatency
from compressor.results.quality import Accuracy
from compressor.results.timing import Bench, Speedup, TimedRow
from tests.contracts.test_readme import mistakes


def results(correct: int, *, median_ms: float) -> Results:
    """Of a dense network that is right nine times in ten, and a small one; masked ones are as slow as dense."""
    speedup = Speedup(ratio=1 / median_ms, low=0.9 / median_ms, high=1.1 / median_ms)
    same = Speedup(ratio=1.0, low=0.99, high=1.01)
    timed = {"dense": (1.0, None), "masked weights": (1.0, same), "masked channels": (1.0, same)}
    return Results(
        evaluations=tuple(
            Evaluation(model=model, quality=Accuracy(correct=right, total=2000))
            for model, right in (("small", correct), ("dense", 1800))
        ),
        latency=MeetingLatency(
            runtime="torch-eager",
            batch=1,
            threads=1,
            wanted=2.0,
            rows=(TimedRow(runtime="torch-eager", batch=1, candidate="small", median_ms=median_ms, speedup=speedup),),
        ),
        bench=Bench(
            rows=tuple(
                TimedRow(runtime="torch-eager", batch=1, candidate=name, median_ms=ms, speedup=ratio)
                for name, (ms, ratio) in {**timed, "small": (median_ms, speedup)}.items()
            )
        ),
    )


def test_its_steps_are_commands_on_the_best_path() -> None:
    words = [shlex.split(step) for step in steps(2)]
    assert [m for one in words for m in mistakes(one)] == []
    prune, retrain = words[1], next(one for one in words if one[0] == "retrain")
    assert words.index(prune) < words.index(retrain)
    assert prune[0] == "prune"
    assert prune[prune.index("--speedup") + 1] == "2"
    assert "--data" in prune  # repaired
    asked = [one for one in words if one[0] == "bench"]
    assert [one[1] for one in asked] == [TUNED]
    assert [one[1] for one in words if one[0] == "evaluate"] == [SMALL, TUNED]


def test_the_last_table_has_accuracy_next_to_speed() -> None:
    shown = {name: cells for name, *cells in rows(results(1500, median_ms=0.5), results(1700, median_ms=0.25))}
    text = {name: " ".join(cells).replace("\N{NO-BREAK SPACE}", " ") for name, cells in shown.items()}
    assert list(text) == [
        "dense", "masked weights", "masked channels", "small, repaired without labels", "small, then retrained",
    ]  # fmt: skip
    assert text["dense"].startswith("90.00 % (")
    assert "no significant difference" in text["masked channels"]
    assert text["small, repaired without labels"].startswith("75.00 % (")
    assert text["small, repaired without labels"].endswith("0.500 ms 2.00× (1.80 to 2.20)")
    assert text["small, then retrained"].startswith("85.00 % (")
    assert text["small, then retrained"].endswith("0.250 ms 4.00× (3.60 to 4.40)")
