"""Numbers in words: three digits, never scientific."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.results.changes import SurgeryProof
from compressor.results.quality import Accuracy, Agreement, Score
from compressor.results.timing import Speedup
from compressor.results.training import EpochRecord
from compressor.words import (
    SPACE,
    counted,
    digits,
    finding,
    percent,
    proof_in_words,
    scaled,
    score_interval,
    scored,
    tuned,
)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0437, "0.0437"),
        (1.8421, "1.84"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.4, "1,234"),
        (0, "0"),
        (0.000110, "0.000110"),
    ],
)
def test_digits_are_three_and_never_scientific(value: float, said: str) -> None:
    assert digits(value) == said


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_digits_are_within_half_a_unit_of_the_last_one(value: float) -> None:
    assert float(digits(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


def test_percent_has_the_sign() -> None:
    assert percent(0.9218).split() == ["92.18", "%"]


@pytest.mark.parametrize(
    ("low", "ratio", "high", "text"),
    [
        (0.95, 0.98, 1.02, "no significant difference (0.95 to 1.02)"),
        (2.2, 2.31, 2.414, "2.31× (2.20 to 2.41)"),
        (1.004, 1.02, 1.04, "1.020× (1.004 to 1.040)"),
        (0.7, 0.8, 0.9, "0.80× (0.70 to 0.90), slower"),
        (0.999, 1.0, 1.001, "no significant difference (0.999 to 1.001)"),
    ],
)
def test_a_difference_that_was_not_found_is_told_in_words(low: float, ratio: float, high: float, text: str) -> None:
    assert finding(Speedup(ratio=ratio, low=low, high=high)) == text


def test_a_quality_is_two_whole_numbers_with_as_many_digits_as_they_tell_apart() -> None:
    many, few = Accuracy(correct=9312, total=10_000, split="test"), Agreement(agreeing=5, total=10, split="test")
    assert [counted(many), scored(many)] == [f"9,312{SPACE}/{SPACE}10,000", f"93.12{SPACE}%"]
    assert [counted(few), scored(few)] == [f"5{SPACE}/{SPACE}10", f"50.0{SPACE}%"]


def test_a_proof_is_one_line_with_its_precision_and_tolerance() -> None:
    proof = SurgeryProof(
        dtype="float64", narrowest="float32", tolerance=1e-10, largest_relative_difference=2.17e-16, moved=1.0
    )
    assert proof_in_words(proof).replace(SPACE, " ") == (
        "2.17 × 10⁻¹⁶ relative, in float64, of which the network computes a part in float32 (at most 1.00 × 10⁻¹⁰ is "
        "rounding)"
    )


@pytest.mark.parametrize(("value", "text"), [(950, "950"), (31_210_000, "31.2 M"), (1_130_000_000, "1.13 G")])
def test_large_numbers_have_a_prefix(value: int, text: str) -> None:
    assert scaled(value).replace(SPACE, " ") == text


@pytest.mark.parametrize(
    ("score", "written"),
    [
        (
            Score(total=600, metric="mIoU", score=0.9731, bounds=(0.96, 0.985)),
            ["600 samples", "97.3 %", "96.0 to 98.5 %"],
        ),
        (
            Score(total=1000, metric="PSNR", score=27.318, bounds=(27.0, 27.61), percent=False, unit="dB"),
            ["1,000 samples", "27.32 dB", "27.00 to 27.61 dB"],
        ),
        (
            Score(total=60, metric="MAE", score=0.5873, bounds=(0.4636, 0.7206), percent=False, higher_is_better=False),
            ["60 samples", "0.5873", "0.4636 to 0.7206"],
        ),
    ],
)
def test_scores_of_tasks_have_their_unit(score: Score, written: list[str]) -> None:
    assert [plain.replace(SPACE, " ") for plain in (counted(score), scored(score), score_interval(score))] == written


def test_an_epoch_says_what_was_read() -> None:
    counted_epoch = EpochRecord(epoch=0, rate=0.1, train_loss=1.0, tune_correct=1833, tune_total=2000)
    scored_epoch = EpochRecord(epoch=0, rate=0.1, train_loss=1.0, tune_total=60, tune_score=0.713, metric="mIoU")
    assert [tuned(counted_epoch), tuned(scored_epoch)] == [f"91.65{SPACE}%", "mIoU 0.713"]
