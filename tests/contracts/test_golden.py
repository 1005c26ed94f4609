"""Plans that are committed are made again: which channels leave, and what stays (`benchmarks/golden.json`)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import golden
from benchmarks.surgery import RATIOS, SAMPLES, TORCHVISION
from compressor.data.sources import load_data

CELLS: dict[str, Any] = json.loads(golden.FILE.read_text())["cells"]


def same(name: str, made: dict[str, Any]) -> bool:
    return golden.differences(CELLS, {name: made}, same_kernels=False) == []


@pytest.mark.parametrize("short", SAMPLES)
def test_a_sample_model_loses_the_committed_channels(short: str) -> None:
    name = f"sample:{short}"
    assert same(f"{name} l1-norm 0.5", golden.surgery_cell(name, 0.5))
    assert same(f"{name} --macs 0.5", golden.command_cell(name, {"macs": 0.5}, None))


def test_a_moved_channel_is_seen() -> None:
    name = "sample:resnet20 l1-norm 0.5"
    made = json.loads(json.dumps(CELLS[name]))
    made["removed"][0]["conv1"] = golden.indices((0, 1, 2))
    assert golden.differences(CELLS, {name: made}, same_kernels=False) == [f"{name}: removed"]


@pytest.mark.slow
@pytest.mark.parametrize("asked", golden.ASKED, ids=lambda a: next(iter(a)))
@pytest.mark.parametrize("short", SAMPLES)
def test_with_data_it_loses_the_committed_channels(short: str, asked: dict[str, float]) -> None:
    name = f"sample:{short}"
    words = " ".join(f"--{option} {value}" for option, value in asked.items())
    assert same(f"{name} {words} --data sample", golden.command_cell(name, asked, load_data(str(golden.SAMPLE))))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", TORCHVISION)
def test_a_network_of_torchvision_loses_the_committed_channels(name: str, ratio: float) -> None:
    assert same(f"{name} l1-norm {ratio}", golden.surgery_cell(name, ratio))
