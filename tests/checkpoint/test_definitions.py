"""What a network depends on in its file decides whether an edit matters; an edited file is trusted when it is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.code.definitions import digest_of
from compressor.checkpoint.loading import load
from compressor.errors import ArchitectureError
from compressor.results.artifact import Results

CODE = '''
"""A network and its training."""
import torch
from torch import nn

WIDTH = 2
EPOCHS = 3
table = {}


def layer():
    return nn.Linear(3, WIDTH)


class Base(nn.Module):
    def forward(self, x):
        return self.a(x)


class Net(Base):
    def __init__(self):
        super().__init__()
        self.a = layer()


def train():
    return EPOCHS


if __name__ == "__main__":
    print(train(), Net())
'''
BESIDE = [
    ("EPOCHS = 3", "EPOCHS = 4"), ("return EPOCHS", "return 2 * EPOCHS"), ("A network and", "One network and"),
    ("print(train(), Net())", "print(Net())"), ("table = {}", "table = {}\nother = 4  # a comment"),
    ("import torch\n", ""),
]  # fmt: skip
INSIDE = [
    ("WIDTH = 2", "WIDTH = 1 + 1"), ("return self.a(x)", "return -self.a(x)"), ("nn.Linear(3,", "nn.Bilinear(3, 3,"),
    ("self.a = layer()", "self.a = layer().eval()"), ("table = {}", "table = {}\nNet.forward = torch.relu"),
    ("table = {}", "from torch import *"), ("from torch import nn", "import torch.nn as nn"),
    ("EPOCHS = 3", "EPOCHS = 3\nif EPOCHS:\n    WIDTH = 2"),
]  # fmt: skip


def edited(edit: tuple[str, str]) -> str:
    assert edit[0] in CODE
    return CODE.replace(*edit)


@pytest.mark.parametrize("edit", BESIDE)
def test_edits_of_the_rest_do_not_count(workdir: Path, edit: tuple[str, str]) -> None:
    (workdir / "a.py").write_text(CODE)
    (workdir / "b.py").write_text(edited(edit))
    assert digest_of(workdir / "a.py", "Net") == digest_of(workdir / "b.py", "Net")


@pytest.mark.parametrize("edit", INSIDE)
def test_edits_of_the_network_count(workdir: Path, edit: tuple[str, str]) -> None:
    (workdir / "a.py").write_text(CODE)
    (workdir / "b.py").write_text(edited(edit))
    assert digest_of(workdir / "a.py", "Net") != digest_of(workdir / "b.py", "Net")


@pytest.mark.parametrize("text", ["def f(:", "other = 3", "def Net(): return globals()['x']", "\0", ""])
def test_what_cannot_be_said_is_not_said(workdir: Path, text: str) -> None:
    (workdir / "a.py").write_text(text)
    assert digest_of(workdir / "a.py", "Net") is None


@pytest.mark.parametrize("edit", [BESIDE[0], INSIDE[1]])
def test_an_artifact_is_read_after_an_edit_beside_its_network_once_the_file_is_named_again(
    workdir: Path, edit: tuple[str, str]
) -> None:
    (workdir / "net.py").write_text(CODE)
    torch.save(torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2)}).state_dict(), "w.pt")
    dense = load("w.pt", arch="net.py:Net")
    write_artifact(workdir / "a", dense, source=dense.source, results=Results(), verify=False)
    (workdir / "net.py").write_text(edited(edit))
    with pytest.raises(ArchitectureError, match="is not the file") as caught:
        load("a")
    assert "name it again" in str(caught.value.hint)
    if edit in INSIDE:
        with pytest.raises(ArchitectureError, match="is not the file"):
            load("a", arch="net.py:Net")
    else:
        assert load("a", arch="net.py:Net").example_inputs[0].shape == (1, 3)
        load("a")
