"""The study of generalization and stability: that it runs, what its verdicts hang on, what its cells are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.study import data_of
from compressor.errors import StudyError
from compressor.studies.papers import stability
from compressor.studies.runner import Folder, run_study
from compressor.studies.study import Scale, StudyResults, Verdict


def test_it_runs_at_the_smoke_scale_and_judges(tmp_path: Path) -> None:
    data = data_of(None, root=None, download=False)
    results = run_study("stability", Scale.SMOKE, lambda: data, tmp_path, seeds=1)
    assert len(results) == len(stability.ARMS)
    assert not list(tmp_path.glob("*.events.json"))
    for cell, row in results:
        pruned = cell.values["effect"] in ("gone", "regrown")
        assert row["channels"] == (10 if pruned else 0)  # 1 of 4, and 9 of 10
        assert (row["stability"] is None) == (cell.arm == "unpruned")
        assert 0 <= row["accuracy"] <= 100
    events = {arm: next(iter(results.where(arm).rows.values()))["events"] for arm in results.arms()}
    assert (events["smallest-often"], events["largest-seldom"], events["largest-once"]) == (3, 2, 1)
    assert events["regrown"] == 4  # the last one is the cut
    assert len(stability.verdict(results)) == 5
    assert [len(plot.curves) for plot in stability.plots(results)] == [9, 3]


def made_up(accuracy: Callable[[str], float], stable: Mapping[str, float]) -> StudyResults:
    rows: dict[Any, dict[str, Any]] = {}
    for cell in stability.cells(Scale.SMALL):
        spread = 0.1 * (cell.seed % 3)
        rows[cell] = {
            "accuracy": accuracy(cell.arm) + spread, "events": 1,
            "stability": stable.get(cell.arm, 90.0) + spread if cell.arm != "unpruned" else None,
        }  # fmt: skip
    return StudyResults(rows=rows)


STABLE = {"smallest-often": 99.0, "smallest-seldom": 97.0, "random-seldom": 90.0, "largest-often": 85.0,
          "largest-seldom": 70.0}  # fmt: skip


def test_the_papers_order_is_reproduced_and_the_reverse_contradicted() -> None:
    def paper(arm: str) -> float:
        return {"unpruned": 83.0, "largest-once": 80.0}.get(arm, 93.0 - 0.09 * STABLE.get(arm, 70.0))

    def reverse(arm: str) -> float:
        return 0.0 if arm == "zeroing-50" else 100 - paper(arm)

    assert {c.verdict for c in stability.verdict(made_up(paper, STABLE))} == {Verdict.REPRODUCED}
    assert {c.verdict for c in stability.verdict(made_up(reverse, STABLE))} == {Verdict.CONTRADICTED}


@pytest.mark.parametrize(
    ("arm", "scale", "events"),
    [
        ("smallest-often", Scale.SMALL, 20),
        ("largest-seldom", Scale.SMALL, 4),
        ("largest-once", Scale.SMALL, 1),
        ("smallest-often", Scale.PAPER, 68),
        ("largest-seldom", Scale.PAPER, 7),
        ("largest-once", Scale.PAPER, 1),
    ],
)
def test_the_last_layer_has_as_many_events_as_the_study_says(arm: str, scale: Scale, events: int) -> None:
    cell = next(c for c in stability.cells(scale) if c.arm == arm)
    values: Mapping[str, Any] = cell.values
    start, end = (int(str(values[name]).split(",")[-1]) for name in ("starts", "ends"))
    assert len(range(start, end + 1, values["every"])) == events


def test_every_claim_has_ten_seeds() -> None:
    for scale in (Scale.SMALL, Scale.PAPER):
        assert len({c.seed for c in stability.cells(scale)}) == 10


def test_images_of_another_kind_are_refused_with_a_way_out(tmp_path: Path) -> None:
    data = data_of(None, root=None, download=False)
    cell = stability.cells(Scale.PAPER)[0]
    with pytest.raises(StudyError, match="reads 3 channels, and the images have 1"):
        Folder(tmp_path, data).run(cell)
