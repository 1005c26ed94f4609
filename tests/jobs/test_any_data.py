"""Networks for pictures with masks, for texts and for sounds: pruned, trained and judged on folders and files."""

from __future__ import annotations

import json
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.cli.main import app
from tests.support.hugging import bert_folder

WORDS = ("[PAD]", "[UNK]", "good", "bad", "film", "food")
NETS = """
import torch
from torch import nn


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.grow, self.up = nn.Upsample(scale_factor=2), nn.Conv2d(24, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        flat = self.down(x)
        return self.head(torch.relu(self.up(torch.cat([flat, self.grow(self.deep(flat))], dim=1))))


class Listener(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv1d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv1d(8, 16, 5, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 2),
        )
"""


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def judged(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    readings: dict[str, Any] = {one["model"]: one for one in json.loads(result.stdout)}
    return readings


def weights(folder: Path, name: str, *options: str) -> tuple[Checkpoint, list[str]]:
    """A network of `NETS` with random weights, and how a command names it."""
    (folder / "nets.py").write_text(NETS)
    space: dict[str, Any] = {"__name__": "nets"}
    exec(NETS, space)
    torch.manual_seed(0)
    module: nn.Module = space[name]()
    torch.save(module.state_dict(), folder / f"{name}.pt")
    arch = f"{folder / 'nets.py'}:{name}"
    shape = options[1]
    checkpoint = load(folder / f"{name}.pt", arch=arch, inputs=(shape,))
    return checkpoint, [str(folder / f"{name}.pt"), "--arch", arch, *options]


def test_pictures_with_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chance = np.random.default_rng(0)
    for number in range(20):
        mask = np.zeros((16, 16), np.uint8)
        mask[chance.integers(2, 14) :] = 1 + number % 2
        for name, content in (("images", mask[..., None] * chance.integers(60, 90, 3)), ("masks", mask)):
            (tmp_path / "pairs" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content.astype(np.uint8)).save(tmp_path / "pairs" / name / f"{number}.png")
    _, named = weights(tmp_path, "Segmenter", "--input", "1x3x16x16")
    said = run("prune", *named, "--macs", "0.5", "--data", "pairs")
    assert "repair: least-squares on 16 images of pairs" in said
    said = run("retrain", "Segmenter.compressed", "--epochs", "1", "--augment", "flip", "--data", "pairs")
    assert "tune mIoU" in said
    assert judged("Segmenter.fine-tune.compressed", "--data", "pairs").keys() == {"small", "dense"}
    run("report", "Segmenter.fine-tune.compressed")
    assert "mIoU" in (tmp_path / "Segmenter.fine-tune.compressed" / "report.md").read_text()


@pytest.mark.slow
def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = bert_folder(tmp_path / "bert", id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    library: Any = pytest.importorskip("tokenizers", reason="needs the extra `transformers`")
    tokeniser = library.Tokenizer(
        library.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokeniser.pre_tokenizer = library.pre_tokenizers.Whitespace()
    tokeniser.save(str(folder / "tokenizer.json"))
    rows = [
        f"{word} {thing} {'very ' * number},{word}" for number in range(5) for word in WORDS[2:4] for thing in WORDS
    ]
    Path("texts.csv").write_text("\n".join(("text,label", *rows)))
    run("prune", "bert", "--ratio", "0.25", "--data", "texts.csv")
    said = run("retrain", "bert.compressed", "--epochs", "1", "--optimiser", "adamw", "--data", "texts.csv")
    assert "tune" in said
    before = judged("bert.fine-tune.compressed", "--data", "texts.csv", "--split", "all")
    assert before["small"]["total"] == before["dense"]["total"] == len(rows)


def test_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        place = tmp_path / "sounds" / ("low", "high")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        with wave.open(str(place / f"{number}.wav"), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            wanted = 2000 * np.sin(np.arange(50 + 5 * number) * (0.1 + 0.4 * (number % 2)))
            sound.writeframes(struct.pack(f"<{len(wanted)}h", *wanted.astype(int)))
    _, named = weights(tmp_path, "Listener", "--input", "1x1x80")
    said = run("prune", *named, "--ratio", "0.5", "--data", "sounds")
    assert "repair: least-squares on 16 images of sounds" in said
    assert "tune" in run("retrain", "Listener.compressed", "--epochs", "1", "--data", "sounds")
