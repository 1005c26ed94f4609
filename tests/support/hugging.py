"""Small Hugging Face folders with random weights, as `save_pretrained` writes them; without transformers, a skip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

SMALL_BERT = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip


def transformers() -> Any:
    """The library; the test is skipped where it is not installed."""
    return pytest.importorskip("transformers", reason="needs the extra `transformers`")


def bert_folder(folder: Path, head: str = "BertForSequenceClassification", **values: Any) -> Path:
    """A small BERT with random weights, saved by transformers."""
    library = transformers()
    library.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(library, head)(library.BertConfig(**{**SMALL_BERT, **values})).save_pretrained(folder)
    return folder


def edited(folder: Path, **values: Any) -> Path:
    """The folder, with other values in its config."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder
