"""Exported programs as checkpoints: read as the network says it, and never a way to run code."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.checkpoint import load
from compressor.errors import CheckpointError, UntrustedPickle
from compressor.exported_file import read_exported
from compressor.pipeline import prune
from compressor.plan import ChannelBudget
from compressor.request import Request
from tests.topologies import INPUT, Residual, alive


def exported_to(path: Path, module: nn.Module, *, batch: int = 2, open_batch: bool = True) -> Path:
    inputs = (torch.randn(batch, *INPUT[1:], generator=torch.Generator().manual_seed(0)),)
    dynamic = ({0: torch.export.Dim.AUTO},) if open_batch else None
    torch.export.save(torch.export.export(module, inputs, dynamic_shapes=dynamic), path)
    return path


def test_a_program_says_what_the_network_says_on_any_batch(tmp_path: Path) -> None:
    module = alive(Residual())
    found = load(exported_to(tmp_path / "net.pt2", module))
    for batch in (1, 5):
        x = torch.randn(batch, *INPUT[1:])
        torch.testing.assert_close(found.module(x), module(x))
    assert found.architecture.ref == "program"
    assert [t.shape[0] for t in found.example_inputs] == [1]


def test_a_program_is_pruned_and_proved(tmp_path: Path) -> None:
    found = load(exported_to(tmp_path / "net.pt2", alive(Residual())))
    small = prune(found, Request(budget=ChannelBudget(ratio=0.5), align=1))
    assert small.proof.largest_relative_difference < 1e-10
    assert small.small_cost.params < 0.4 * small.dense_cost.params


def test_a_program_of_one_batch_size_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = exported_to(tmp_path / "net.pt2", alive(nn.Sequential(nn.Flatten(0), nn.Linear(864, 4))), open_batch=False)
    with pytest.raises(CheckpointError, match="batches of 2 alone") as caught:
        read_exported(path)
    assert "dynamic_shapes" in str(caught.value.hint)


def test_a_program_that_was_exported_in_training_comes_back_in_eval_mode(tmp_path: Path) -> None:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), nn.Linear(800, 4))
    module = alive(nn.Sequential(*layers)).train()
    found, _ = read_exported(exported_to(tmp_path / "net.pt2", module))
    x = torch.randn(3, *INPUT[1:])
    torch.testing.assert_close(found(x), module.eval()(x))


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


@pytest.mark.parametrize("where", ["data/sample_inputs/model.pt", "data/weights/weight_0", "data/constants/tensor_9"])
def test_a_pickle_that_could_run_code_is_never_read(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever in the archive it lies, and whatever the lists in it say of it."""
    path = exported_to(tmp_path / "net.pt2", alive(Residual()))
    changed = tmp_path / "changed.pt2"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as after:
        root = before.namelist()[0].partition("/")[0]
        for name in before.namelist():
            held = before.read(name)
            if name == f"{root}/{where}":
                continue
            if name.endswith("model_weights_config.json"):
                held = held.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            after.writestr(name, held)
        stream = io.BytesIO()
        torch.save({"inputs": _RunsCode()}, stream)
        after.writestr(f"{root}/{where}", stream.getvalue())
    with pytest.raises(UntrustedPickle, match="could run code"):
        read_exported(changed)
    assert "run" not in capsys.readouterr().out


def test_a_broken_archive_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/sample_inputs/model.pt", pickle.dumps(3))
    with pytest.raises(CheckpointError):
        read_exported(path)


def test_tied_weights_stay_one(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x.flatten(1)[:, :12])))

    module = alive(Tied())
    found, _ = read_exported(exported_to(tmp_path / "net.pt2", module))
    x = torch.randn(3, *INPUT[1:])
    torch.testing.assert_close(found(x), module(x))
