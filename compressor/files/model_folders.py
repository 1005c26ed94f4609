"""Tell the folders of an artifact and of a model apart, by what lies in them."""

from __future__ import annotations

from pathlib import Path

RECIPE = "recipe.json"  # in an artifact
CONFIG = "config.json"  # in a folder that transformers or timm wrote


def is_model_folder(path: Path) -> bool:
    """Return true for a folder that transformers or timm wrote: one with a config, and no artifact."""
    return (path / CONFIG).is_file() and not (path / RECIPE).is_file()


def is_artifact_folder(path: Path) -> bool:
    """Return true for any other folder: an artifact, or nothing that can be read."""
    return path.is_dir() and not is_model_folder(path)
