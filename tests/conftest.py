"""What the tests share: the sample models, and a network of ours that no data set made."""

from __future__ import annotations

from pathlib import Path

import pytest

import sample_models


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
