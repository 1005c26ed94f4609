"""How far architectures get: all the way, or to the stage whose failure the row names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor.checkpoint.architectures import Architecture, architecture_from_user
from compressor.errors import ArchitectureError
from compressor.jobs.coverage import Coverage, Stage, coverage_of, listed
from tests.support.command_line import NET, done, refused

SHAPE = "1x1x16x16"
NO_ONNX = """
from torch import nn
import torch


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return torch.digamma(2 + self.two(self.one(x)).abs())
"""


DEAD = """
from torch import nn


class Dead(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.two(0 * self.one(x))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "odd.py").write_text(NO_ONNX)
    (tmp_path / "dead.py").write_text(DEAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_an_ordinary_network_gets_all_the_way() -> None:
    row = coverage_of(architecture_from_user("net.py:Net"), (SHAPE,))
    assert row.why is None
    assert row.reached is Stage.RELOAD
    assert row.through
    assert row.proof is not None
    assert row.proof <= 1e-10
    assert row.again_proof is not None
    assert row.again_proof <= 1e-10
    assert row.parity is not None
    assert row.parity <= 1e-3
    assert row.without_gradient == 0
    assert row.left is not None
    assert 0.25 <= row.left < 0.4
    assert row.deep
    json.dumps(row.to_json())


@pytest.mark.usefixtures("folder")
def test_the_row_says_what_stopped_it() -> None:
    row = coverage_of(architecture_from_user("odd.py:Odd"), (SHAPE,))
    assert row.reached is Stage.AGAIN
    assert not row.through
    assert "cannot be exported" in (row.why or "")


@pytest.mark.usefixtures("folder")
def test_a_proof_that_has_seen_nothing_does_not_count() -> None:
    row = coverage_of(architecture_from_user("dead.py:Dead"), (SHAPE,))
    assert row.reached is Stage.PLAN
    assert row.moved == 0
    assert "has seen nothing" in (row.why or "")


def test_a_network_that_cannot_be_built_is_a_row_as_well() -> None:
    row = coverage_of(Architecture(ref="torchvision:resnet1"))
    assert row.reached is None
    assert "no `resnet1`" in (row.why or "")


@pytest.mark.usefixtures("folder")
def test_it_stops_where_it_is_asked_to() -> None:
    row = coverage_of(architecture_from_user("odd.py:Odd"), (SHAPE,), until=Stage.BACKWARD)
    assert row.through
    assert row.parity is None


@pytest.mark.parametrize(("attention", "left", "deep"), [(False, 40, True), (False, 41, False), (True, 55, True)])
def test_deep_is_a_share_of_the_parameters(attention: bool, left: int, deep: bool) -> None:
    row = Coverage(architecture="a:b", until=Stage.PRUNE, attention=attention, params=(100, left))
    assert row.deep is deep


def test_a_list_has_a_reference_a_line_with_shapes_behind(folder: Path) -> None:
    (folder / "names.txt").write_text(f"# ours\nnet.py:Net {SHAPE}  # small\n\ntorchvision:resnet18\n")
    (first, shapes), (second, none) = listed(folder / "names.txt")
    assert first.ref.endswith("net.py:Net")
    assert shapes == (SHAPE,)
    assert second.ref == "torchvision:resnet18"
    assert none == ()


@pytest.mark.parametrize("text", ["", "# nothing\n", None])
def test_a_list_of_nothing_is_refused(folder: Path, text: str | None) -> None:
    if text is not None:
        (folder / "names.txt").write_text(text)
    with pytest.raises(ArchitectureError):
        listed(folder / "names.txt")


def test_the_command_makes_a_table_and_json(folder: Path) -> None:
    (folder / "names.txt").write_text(f"net.py:Net {SHAPE}\ntorchvision:resnet1\n")
    said = done("inspect", "names.txt", "--report-coverage").stdout
    assert "reload" in said
    assert "1 of 2 all the way" in said
    rows = json.loads(done("inspect", "names.txt", "--report-coverage", "--json").stdout)["architectures"]
    assert [row["reached"] for row in rows] == ["reload", None]
    refused("inspect", "nowhere.txt", "--report-coverage", says="list of architectures", hints="one a line"[4:])


def test_planning_can_be_all_that_is_asked() -> None:
    row = coverage_of(architecture_from_user("torchvision:squeezenet1_1"), ("1x3x64x64",), until=Stage.PLAN)
    assert row.through
    assert row.plan_s is not None
    assert row.prune_s is None
