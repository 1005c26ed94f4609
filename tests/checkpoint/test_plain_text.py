"""A text file in a checkpoint's place is called what it is, with a way out; a pickle of letters is none."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from compressor.checkpoint.loading import load
from compressor.errors import CheckpointError
from compressor.files.plain_text import plain_text_in

TEXTS = {
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": ("git-lfs pointer", "git lfs pull"),
    "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>": ("a web page", "fetch it"),
    "<html lang='en'>": ("a web page", "fetch it"),
    "../../blobs/model-v1.pt": ("a link to `../../blobs/model-v1.pt`", "core.symlinks"),
    "model.pt": ("a link to `model.pt`", "core.symlinks"),
    '{"error": "not found"}': ("a text file that begins with `{", "fetch it again"),
    "Grüße, 你好\n" * 400: ("a text file that begins with `Grüße", "fetch it again"),
    "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": ("a web page", "fetch it"),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w", "w.pt2"])
def test_a_text_is_called_one(workdir: Path, text: str, name: str) -> None:
    (workdir / name).write_text(text, encoding="utf-8")
    what, hint = TEXTS[text]
    with pytest.raises(CheckpointError) as caught:
        load(name)
    assert what in str(caught.value)
    assert hint in str(caught.value.hint)
    assert "cut short" not in str(caught.value)


def test_a_character_cut_in_two_is_text(workdir: Path) -> None:
    (workdir / "w.pt").write_bytes(b"x" * 4095 + "é".encode())
    assert plain_text_in(workdir / "w.pt") is not None


def test_bytes_are_no_text(workdir: Path) -> None:
    torch.save({"w": torch.ones(2)}, workdir / "w.pt")
    torch.save({"w": torch.ones(2)}, workdir / "old.pt", _use_new_zipfile_serialization=False)
    (workdir / "letters.pt").write_bytes(pickle.dumps({"w": 1}, protocol=0))
    (workdir / "nul.pt").write_bytes(b"abc\0def")
    (workdir / "blank.pt").write_bytes(b"  \n")
    for name in ("w.pt", "old.pt", "letters.pt", "nul.pt", "blank.pt"):
        assert plain_text_in(workdir / name) is None
