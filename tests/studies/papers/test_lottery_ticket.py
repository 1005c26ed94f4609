"""The study of lottery tickets: what each arm starts from, that it runs, and that its verdicts can go either way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.cli.study import data_of
from compressor.studies import papers as studies
from compressor.studies.papers import lottery_ticket as study
from compressor.studies.runner import Folder, in_order, results_to_json, run_study
from compressor.studies.study import Cell, Scale, StudyResults, Verdict

SOURCE = functools.partial(data_of, None, root=None, download=False)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResults, Folder]:
    """One seed at the smallest scale."""
    folder = tmp_path_factory.mktemp("study")
    results = run_study("lottery-ticket", Scale.SMOKE, SOURCE, folder, seeds=1)
    return results, Folder(folder, SOURCE())


def cell_of(results: StudyResults, arm: str, setting: str = study.LENET, level: int = 1) -> Cell:
    found = list(results.where(arm, setting=setting, round=level).rows)
    assert len(found) == 1
    return found[0]


def kept(folder: Folder, cell: Cell, part: str) -> dict[str, Tensor]:
    return study._part(folder.state_of(cell), part)


def test_everything_runs_and_the_page_has_every_claim(ran: tuple[StudyResults, Folder]) -> None:
    results, _ = ran
    found = results_to_json(
        "lottery-ticket", Scale.SMOKE, results, data=SOURCE(), command="compress study lottery-ticket"
    )
    assert len(found["claims"]) == 12
    assert all(claim["findings"] for claim in found["claims"])
    assert {claim["verdict"] for claim in found["claims"]} == {"inconclusive"}  # one seed has no interval
    assert all(curve["points"] for plot in found["plots"] for curve in plot["curves"])


def test_masks_of_a_chain_are_nested_with_exact_counts_and_no_weight_is_left_outside(
    ran: tuple[StudyResults, Folder],
) -> None:
    results, folder = ran
    left: dict[str, int] = {"1.weight": 784 * 300, "3.weight": 300 * 100, "5.weight": 1000}
    before: dict[str, Tensor] = {}
    for level in (1, 2):
        cell = cell_of(results, study.TICKET, level=level)
        mask, weights = kept(folder, cell, "kept"), kept(folder, cell, "trained")
        left = {n: k - int((0.1 if n == "5.weight" else 0.6) * k + 1e-9) for n, k in left.items()}
        assert {n: int(k.sum()) for n, k in mask.items()} == left
        assert all(not bool((k & ~before[n]).any()) for n, k in mask.items() if before)
        assert not any(bool(weights[n][~k].any()) for n, k in mask.items())
        assert results.rows[cell]["left"] == pytest.approx(100 * sum(left.values()) / 266_200)
        before = mask


def test_every_arm_starts_from_the_weights_and_the_mask_that_it_is_named_after(
    ran: tuple[StudyResults, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, folder = ran
    starts: dict[tuple[str, str], Any] = {}

    def caught(cell: Cell, *rest: Any) -> Mapping[str, Any]:
        starts[cell.arm, str(cell.values["setting"])] = (rest[2].module.state_dict(), rest[3])
        return {}

    monkeypatch.setattr(study, "_trained", caught)
    for cell in results.rows:
        study.run(cell, folder)
    early, _ = starts[study.DENSE, study.LENET]
    ticket, mask = starts[study.TICKET, study.LENET]  # of the last round
    for name, tensor in ticket.items():
        assert torch.equal(tensor, early[name] * mask.kept.get(name, torch.ones_like(tensor, dtype=torch.bool)))
    afresh, same_mask = starts[study.AFRESH, study.LENET]
    assert all(torch.equal(k, same_mask.kept[n]) for n, k in mask.kept.items())
    alive = mask.kept["1.weight"]
    assert not bool((afresh["1.weight"][alive] == early["1.weight"][alive]).any())
    moved, other_mask = starts[study.RANDOM, study.LENET]
    assert {n: int(k.sum()) for n, k in mask.kept.items()} == {n: int(k.sum()) for n, k in other_mask.kept.items()}
    assert not torch.equal(other_mask.kept["1.weight"], alive)
    assert torch.equal(moved["1.weight"], early["1.weight"] * other_mask.kept["1.weight"])
    once, once_mask = starts[study.ONE_SHOT, study.LENET]
    assert abs(int(once_mask.kept["1.weight"].sum()) - int(alive.sum())) <= 1
    assert torch.equal(once["1.weight"], early["1.weight"] * once_mask.kept["1.weight"])

    dense = cell_of(results, study.DENSE, study.HIGH, 0)
    late, late_mask = starts[study.LATE, study.HIGH]
    assert torch.equal(late["0.weight"], kept(folder, dense, "early")["0.weight"] * late_mask.kept["0.weight"])
    rated, rated_mask = starts[study.RATE, study.HIGH]
    assert torch.equal(rated["0.weight"], kept(folder, dense, "trained")["0.weight"] * rated_mask.kept["0.weight"])
    small, none = starts[study.SMALL_EARLY, study.HIGH]
    other, _ = starts[study.SMALL_AFRESH, study.HIGH]
    assert none is None
    assert small["0.weight"].shape == other["0.weight"].shape == (8, 1, 3, 3)
    first, _ = starts[study.DENSE, study.HIGH]
    filters = {tuple(f.flatten().tolist()) for f in first["0.weight"]}
    assert all(tuple(f.flatten().tolist()) in filters for f in small["0.weight"])
    assert not any(tuple(f.flatten().tolist()) in filters for f in other["0.weight"])


@pytest.mark.parametrize("scale", list(Scale))
def test_cells_are_named_once_and_controls_have_the_budget_of_their_tickets(scale: Scale) -> None:
    cells = study.cells(scale)
    assert len({cell.key for cell in cells}) == len(cells) == len(in_order(cells))
    assert all("/" not in cell.key and " " not in cell.key for cell in cells)
    for setting in (study.LENET, study.HIGH):
        mine = [c for c in cells if c.values["setting"] == setting]
        assert len({(c.values["epochs"], c.values["batch_size"], c.values["learning_rate"]) for c in mine}) == 1


def made_up(better: Callable[[str, str], float], sooner: Callable[[str], float]) -> StudyResults:
    """Results of the small scale where an arm's accuracy and its step follow from its name and setting."""
    plan, rows = study.plan_of(Scale.SMALL), {}
    for cell in study.cells(Scale.SMALL):
        setting, level = str(cell.values["setting"]), int(cell.values.get("round") or 0)
        jitter = 0.01 * (cell.seed % 3)
        accuracy = 80 + better(cell.arm, setting) + jitter
        left = 100 * (0.8 if setting == study.LENET else 0.6) ** level
        rows[cell] = {
            "left": left, "test": accuracy, "test_at_stop": accuracy, "stop": 500 + sooner(cell.arm) + jitter,
            "losses": [[0, 1.0]],
        }  # fmt: skip
    assert plan.seeds > 1
    return StudyResults(rows=rows)


def as_published(arm: str, setting: str) -> float:
    if arm in (study.SMALL_EARLY, study.SMALL_AFRESH):
        return 0.0
    if arm == study.TICKET:
        return 0.0 if setting == study.HIGH else 2.0
    return {study.DENSE: 2.0, study.LATE: 2.0, study.RATE: 2.0, study.ONE_SHOT: 1.0}.get(arm, 0.0)


def test_results_as_published_reproduce_every_claim() -> None:
    results = made_up(as_published, lambda arm: {study.TICKET: -100.0, study.AFRESH: 100.0}.get(arm, 0.0))
    assert [str(c.verdict) for c in study.verdict(results)] == ["reproduced"] * 12
    levels = [f.quantity for f in study.verdict(results)[0].findings]
    assert len(levels) == 3  # of the controls after 4, 7, 10 and 12 rounds, those with at most 21 %
    assert all("% left" in quantity for quantity in levels)


def test_results_the_other_way_round_contradict_every_claim() -> None:
    def reversed_(arm: str, setting: str) -> float:
        return 3.0 if arm == study.SMALL_EARLY else -as_published(arm, setting) - (2.0 if arm == study.RATE else 0.0)

    results = made_up(
        lambda arm, setting: -2.5 if (arm, setting) == (study.LATE, study.HIGH) else reversed_(arm, setting),
        lambda arm: {study.TICKET: 100.0, study.AFRESH: -100.0}.get(arm, 0.0),
    )
    found = {claim.text: claim.verdict for claim in study.verdict(results)}
    open_ = {text for text, verdict in found.items() if verdict is not Verdict.CONTRADICTED}
    assert open_ <= {"a ticket of 21 % of the weights is as good as the dense network, but for half a point"}


def test_a_ticket_that_is_one_look_later_is_no_later() -> None:
    results = made_up(as_published, lambda arm: 24.0 if arm == study.TICKET else 0.0)
    assert study.verdict(results)[1].verdict is Verdict.REPRODUCED
    later = made_up(as_published, lambda arm: 26.0 if arm == study.TICKET else 0.0)
    assert study.verdict(later)[1].verdict is Verdict.CONTRADICTED


def test_the_docstring_has_its_four_parts() -> None:
    assert studies.help_of("lottery-ticket").endswith(".")
    text = study.__doc__ or ""
    places = [text.index(f"**{part}:**") for part in ("Claim", "Command", "Expected", "Cost")]
    assert places == sorted(places)


def test_a_finished_study_runs_nothing_again(ran: tuple[StudyResults, Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    results, folder = ran
    monkeypatch.setattr(study, "run", lambda *_: pytest.fail("it ran again"))
    again = run_study("lottery-ticket", Scale.SMOKE, SOURCE, Path(folder.path), seeds=1)
    assert again.rows == results.rows
