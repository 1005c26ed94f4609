"""The files that the contributors' pages show work when they are put where the pages say, and keep the contract."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.walkthroughs import blocks, walk
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.measuring import runtimes
from compressor.planning import criteria
from compressor.studies import papers
from compressor.studies.study import Scale, StudyResults, Verdict
from tests.measuring.runtimes.test_runtimes import Network, check_lent, check_outputs
from tests.planning.criteria.test_criteria import Residual, lively, scored
from tests.studies.test_studies import PARTS

PAGES = Path(__file__).parents[2] / "docs" / "contributing"
FILES = {block.file: block.text for block in blocks((PAGES / "plug-ins.md").read_text()) if block.file}


@pytest.fixture
def placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a file of the page among a package's plug-ins, and takes it away again."""
    added: list[str] = []

    def place(package: ModuleType, file: str) -> str:
        (tmp_path / file).write_text(FILES[file])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        added.append(f"{package.__name__}.{file.removesuffix('.py')}")
        return file.removesuffix(".py").replace("_", "-")

    yield place
    for name in added:
        package, _, leaf = name.rpartition(".")
        sys.modules.pop(name, None)
        vars(sys.modules[package]).pop(leaf, None)


def test_the_criterion_scores(placed: Any) -> None:
    name = placed(criteria, "filter_spread.py")
    assert name in criteria.names()
    assert criteria.load(name).help.startswith("Standard deviation")
    net = lively(Residual())
    from compressor.channels.groups import trace

    groups = {g.root: g for g in trace(net, (torch.zeros(2, 2, 4, 4),)).groups}
    before = {k: v.clone() for k, v in net.state_dict().items()}
    scores = scored(name, net, groups)
    for root, group in groups.items():
        assert scores[root].shape == (group.channels,)
        assert scores[root].dtype is torch.float64
        assert len(set(scores[root].tolist())) > 1
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_the_runtime_runs(placed: Any, tmp_path: Path) -> None:
    name = placed(runtimes, "torch_channels_last.py")
    assert name in [r.name for r in runtimes.usable()]
    network: nn.Module = Network()
    inputs = (torch.randn(2, 3, 8, 8),)
    check_outputs(name, network, tmp_path / "no.onnx", inputs)
    check_lent(name, network, tmp_path / "no.onnx", inputs)


def test_the_study_runs_and_decides(placed: Any) -> None:
    name = placed(papers, "small_norms.py")
    study = papers.load(name)
    text = study.__doc__ or ""
    assert all(part in text for part in PARTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randint(0, 256, (16, 1, 28, 28), dtype=torch.uint8)
    of_all = Images(images, torch.arange(16) % 10)
    workspace: Any = type("Workspace", (), {"data": Data(name="n", source="", train=of_all, tune=of_all, test=of_all)})
    cells = study.cells(Scale.SMOKE)
    assert {cell.study for cell in cells} == {name}
    rows = {cell: study.run(cell, workspace) for cell in cells}
    assert all(row["moved"] > 0 for row in rows.values())
    (claim,) = study.verdict(StudyResults(rows=rows))
    assert claim.verdict is Verdict.INCONCLUSIVE  # of one seed


def test_the_rule_is_followed(tmp_path: Path) -> None:
    _, wrong = walk(PAGES / "a-rule.md", tmp_path)
    assert wrong == []
