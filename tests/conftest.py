"""What the tests share: the sample models, working folders, and a tiny network to run commands on."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import pytest
import torch

import sample_models
from compressor.checkpoint import artifact_writing
from compressor.environment import cores
from tests.support.command_line import ARCH, done, make_inputs
from tests.support.thorough import leave_out

MOST_WORKERS = 4  # each is a process with torch in it


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `pytest` runs the tests in, unless `-n` says otherwise."""
    del config
    return min(MOST_WORKERS, cores())


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses among them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What the default run leaves out."""
    leave_out(items, whole_run=config.args == config.getini("testpaths"))


def pytest_collection_finish() -> None:
    """What is imported and collected stays: the collector need not look at it again and again (a tenth of the time)."""
    gc.collect()
    gc.freeze()


if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores, and so do those that they start
    torch.set_num_threads(max(1, cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of the sample models."""
    return Path(sample_models.__file__).parent


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with no trust from other runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a tiny network was pruned once, for tests to copy."""
    folder = tmp_path_factory.mktemp("made")
    make_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COMPRESS_STATE_DIR", str(folder / "state"))
        done("prune", "tiny.pt", *ARCH, "--ratio", 0.5)
    return folder


@pytest.fixture
def pruned(made: Path, workdir: Path) -> Path:
    """The working folder with `tiny.compressed` in it."""
    shutil.copytree(made, workdir, dirs_exist_ok=True)
    return workdir


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fresh process reads the artifact back: it takes seconds, and is the artifact's own test."""
    monkeypatch.setattr(artifact_writing, "_read_back", lambda *_, **__: None)


@pytest.fixture
def inputs(workdir: Path) -> Path:
    """The working folder with a tiny network's weights, code and data in it."""
    make_inputs(workdir)
    return workdir
