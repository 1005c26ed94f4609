"""What a checkpoint says beside its weights is read, left out or refused, whatever stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.checkpoint.loading import load
from compressor.errors import CheckpointError, CompressError
from tests.support.command_line import ARCH

KEYS = ("preprocessing", "training", "classes", "input", "architecture")
VALUES: list[Any] = [
    5, -1, "x", None, [], [1], [None], {}, ["a"], [1, 1, 10**9, 10**9], [1, 1, -3, 3], [[1, 1, 16, 16]], torch.zeros(2),
    {"mean": 5}, {"mean": ["a"], "std": [1]}, {"mean": [1], "std": [0]}, {"mean": [float("nan")], "std": [1]},
    {"budget": 1, "schedule": {}}, {"epochs": 3}, {1: 2},
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.usefixtures("inputs")
def test_any_value_is_read_or_refused_with_a_hint(key: str) -> None:
    state, raised = torch.load("tiny.pt", weights_only=True), []
    for value in VALUES:
        torch.save({"state_dict": state, key: value}, "x.pt")
        for shapes in ((), (ARCH[3],)):
            try:
                load("x.pt", arch=ARCH[1], inputs=shapes)
            except CompressError as error:
                raised += [] if error.hint else [f"no hint: {error}"]
            except Exception as error:  # what is looked for
                raised.append(f"{value}: {type(error).__name__}: {error}")
    assert raised == []


@pytest.mark.usefixtures("inputs")
def test_a_normalisation_that_cannot_be_read_is_refused_by_its_field() -> None:
    torch.save({"state_dict": torch.load("tiny.pt", weights_only=True), "preprocessing": {"mean": ["a"]}}, "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt, preprocessing: `mean\[0\]` is not a finite number"):
        load("x.pt", arch=ARCH[1], inputs=(ARCH[3],))


@pytest.mark.usefixtures("inputs")
def test_another_programs_training_is_left_out_and_one_shape_is_one_input() -> None:
    state = torch.load("tiny.pt", weights_only=True)
    torch.save({"state_dict": state, "training": {"epochs": 3}, "input": [1, 1, 16, 16]}, "x.pt")
    found = load(Path("x.pt"), arch=ARCH[1])
    assert found.training is None
    assert [list(t.shape) for t in found.example_inputs] == [[1, 1, 16, 16]]
