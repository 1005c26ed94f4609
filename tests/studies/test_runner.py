"""The study machinery on a study that is made up: order, resumption, results, verdicts, pages."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import compressor.studies.papers
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import StudyError
from compressor.files.json_files import write_json
from compressor.report.document import Code, Strong
from compressor.report.markdown import markdown
from compressor.report.page import page
from compressor.report.plots.studies import picture
from compressor.report.studies import document, spans
from compressor.studies.interval import Interval
from compressor.studies.runner import Progressed, in_order, results_to_json, run_study
from compressor.studies.study import Cell, Claim, Finding, Plot, Scale, StudyResults, Verdict, curve, scale_named
from tests.support.picture import Picture

RAN: list[str] = []


def data(images: int = 8) -> Data:
    held = Images(torch.zeros(images, 1, 4, 4), torch.arange(images) % 2)
    return Data(name="zeros", source="here", train=held, tune=held, test=held)


def cells(scale: Scale) -> list[Cell]:
    seeds = range(1 if scale is Scale.SMOKE else 3)
    dense = [Cell(study="made-up", arm="dense", seed=s) for s in seeds]
    return [
        Cell(study="made-up", arm="cut", seed=d.seed, values={"ratio": r}, needs=(d,))
        for d in dense
        for r in (0.3, 0.6)
    ]


def run(cell: Cell, workspace: Any) -> Mapping[str, Any]:
    RAN.append(cell.key)
    if cell.arm == "dense":
        workspace.keep({"weight": torch.full((2,), float(cell.seed))})
        return {"accuracy": 90.0 + cell.seed}
    held = workspace.state_of(cell.needs[0])["weight"]
    assert torch.equal(held, torch.full((2,), float(cell.seed)))
    workspace.state_file.write_text("half way")
    before = workspace.result_of(cell.needs[0])["accuracy"]
    return {"accuracy": before - 10 * float(cell.values["ratio"] or 0)}


def verdict(results: StudyResults) -> list[Claim]:
    from compressor.studies.interval import paired_difference

    cut = results.by_seed("accuracy", "cut", ratio=0.6)
    drop = paired_difference(results.by_seed("accuracy", "dense"), cut)
    return [
        Claim(text="cutting costs", findings=(Finding(quantity="drop at 0.6", interval=drop),), why="as <expected>")
    ]


def plots(results: StudyResults) -> list[Plot]:
    line = curve("cut", results.where("cut"), "accuracy", along="ratio")
    return [Plot(title="Accuracy", x="ratio", y="%", curves=(line,))]


@pytest.fixture(autouse=True)
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = types.SimpleNamespace(
        TITLE="Made up", __doc__="One.\n\nTwo.", cells=cells, run=run, verdict=verdict, plots=plots
    )
    monkeypatch.setattr(compressor.studies.papers, "load", lambda _: made)
    RAN.clear()
    return made


def test_what_is_needed_runs_first_and_every_cell_once(tmp_path: Path) -> None:
    seen: list[Progressed] = []
    results = run_study("made-up", Scale.SMALL, data, tmp_path, finished=seen.append)
    assert len(RAN) == len(set(RAN)) == len(results) == 9
    for cell in results.rows:
        assert all(RAN.index(needed.key) < RAN.index(cell.key) for needed in cell.needs)
    assert results.by_seed("accuracy", "cut", ratio=0.3) == {0: 87.0, 1: 88.0, 2: 89.0}
    assert [p.done for p in seen] == list(range(1, 10))
    assert not list(tmp_path.glob("*.state"))


def test_a_study_that_was_stopped_goes_on_and_runs_nothing_twice(tmp_path: Path, study: Any) -> None:
    def stops(cell: Cell, workspace: Any) -> Mapping[str, Any]:
        if len(RAN) == 4:
            raise KeyboardInterrupt
        return run(cell, workspace)

    study.run = stops
    with pytest.raises(KeyboardInterrupt):
        run_study("made-up", Scale.SMALL, data, tmp_path)
    first = list(RAN)
    RAN.clear()
    study.run = run
    results = run_study("made-up", Scale.SMALL, data, tmp_path)
    assert len(results) == 9
    assert not set(first) & set(RAN)
    RAN.clear()
    assert run_study("made-up", Scale.SMALL, data, tmp_path).rows == results.rows
    assert RAN == []


def test_a_smaller_scale_shares_the_cells_of_a_larger_one(tmp_path: Path) -> None:
    run_study("made-up", Scale.SMOKE, data, tmp_path)
    assert len(run_study("made-up", Scale.SMALL, data, tmp_path, seeds=1)) == 3
    assert len(RAN) == 3


def test_results_on_other_data_are_refused(tmp_path: Path) -> None:
    run_study("made-up", Scale.SMOKE, data, tmp_path)
    with pytest.raises(StudyError, match="a result on other data"):
        run_study("made-up", Scale.SMOKE, lambda: data(6), tmp_path)


def test_kept_weights_that_are_gone_are_an_error_with_a_way_out(tmp_path: Path) -> None:
    run_study("made-up", Scale.SMOKE, data, tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    next(tmp_path.glob("cut*.json")).unlink()
    with pytest.raises(StudyError, match="is missing, and other cells start from it") as caught:
        run_study("made-up", Scale.SMOKE, data, tmp_path)
    assert "delete" in str(caught.value.hint)


@pytest.mark.parametrize(
    "change",
    [
        {"arm": "b"},
        {"seed": 1},
        {"values": {"ratio": 0.5}},
        {"study": "t"},
        {"needs": (Cell(study="s", arm="d", seed=0),)},
    ],
)
def test_a_cell_is_named_by_all_that_decides_it(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"study": "s", "arm": "a", "seed": 0, "values": {"ratio": 0.4}}
    assert Cell(**base).key == Cell(**base).key
    assert Cell(**base).key != Cell(**(base | change)).key


def test_an_order_has_every_cell_once() -> None:
    a = Cell(study="s", arm="a", seed=0)
    b = Cell(study="s", arm="b", seed=0, needs=(a,))
    assert [c.arm for c in in_order([b, a, b])] == ["a", "b"]


def test_two_cells_of_one_seed_are_not_averaged_unawares() -> None:
    rows = {c: {"accuracy": 1.0} for c in cells(Scale.SMOKE)}
    with pytest.raises(ValueError, match="several cells"):
        StudyResults(rows=rows).by_seed("accuracy", "cut")


def interval(low: float, high: float) -> Interval:
    return Interval(estimate=(low + high) / 2, low=low, high=high, n=5, method="made up")


@pytest.mark.parametrize(
    ("low", "high", "bound", "below", "expected"),
    [
        (0.1, 0.5, 0.0, False, Verdict.REPRODUCED),
        (-0.1, 0.5, 0.0, False, Verdict.INCONCLUSIVE),
        (-0.5, -0.1, 0.0, False, Verdict.CONTRADICTED),
        (-0.5, -0.1, -1.0, False, Verdict.REPRODUCED),
        (-0.5, -0.1, 0.0, True, Verdict.REPRODUCED),
        (0.1, 0.5, 0.0, True, Verdict.CONTRADICTED),
    ],
)
def test_an_interval_decides(low: float, high: float, bound: float, below: bool, expected: Verdict) -> None:
    found = Finding(quantity="q", interval=interval(low, high), bound=bound, below=below)
    assert found.verdict is expected


def test_a_claim_needs_all_its_findings_and_one_against_it_is_enough() -> None:
    yes, no, open_ = (Finding(quantity="q", interval=i) for i in (interval(1, 2), interval(-2, -1), None))
    assert Claim(text="c", findings=(yes, yes)).verdict is Verdict.REPRODUCED
    assert Claim(text="c", findings=(yes, open_)).verdict is Verdict.INCONCLUSIVE
    assert Claim(text="c", findings=(yes, open_, no)).verdict is Verdict.CONTRADICTED
    assert Claim(text="c", findings=()).verdict is Verdict.INCONCLUSIVE


def test_why_is_said_where_the_opposite_came_out_and_nowhere_else() -> None:
    yes, no, open_ = (Finding(quantity="q", interval=i) for i in (interval(1, 2), interval(-2, -1), None))
    said = [Claim(text="c", findings=(finding,)).explained("as expected").why for finding in (yes, no, open_)]
    assert said == ["", "as expected", ""]


def test_the_page_says_every_verdict_and_shows_every_picture(tmp_path: Path) -> None:
    results = run_study("made-up", Scale.SMALL, data, tmp_path)
    found = results_to_json("made-up", Scale.SMALL, results, data=data(), command="compress study made-up")
    write_json(tmp_path / "results.json", found)
    found = json.loads((tmp_path / "results.json").read_text())
    html, words = page(document(found)), markdown(document(found))
    for text in (html, words):
        assert "reproduced" in text
        assert "cutting costs" in text
        assert "compress study made-up" in text
    assert "as &lt;expected&gt;" in html
    values = [v for c in found["plots"][0]["curves"] for p in c["points"] for v in p["values"]]
    alone = picture(found["plots"][0])
    assert len(Picture(alone).titled) == len(values) > 0
    assert alone.startswith("<svg xmlns")
    assert picture(found["plots"][0], alone=False) in html


def test_a_docstrings_marks_are_set_and_not_shown() -> None:
    found = spans("**Claim:** run `compress study`\nnow")
    assert found == (Strong(content="Claim:"), " run ", Code(content="compress study"), " now")


def test_scales_have_names() -> None:
    assert scale_named("small") is Scale.SMALL
    with pytest.raises(StudyError, match="no scale called `tiny`"):
        scale_named("tiny")
