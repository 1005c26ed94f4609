"""Exported programs as checkpoints: read as the network says it, and never a way to run code."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from compressor.checkpoint.loading import load
from compressor.checkpoint.pt2 import read_exported
from compressor.errors import CheckpointError, InputError, UntrustedPickle
from compressor.graph.lent import plain_attention
from compressor.graph.outputs import tensors_in
from compressor.graph.recorded import RecordedProgram
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget
from tests.support.topologies import INPUT, Residual, alive


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


class Held(nn.Module):
    """Tensors that are neither parameters nor persistent buffers, under `no_grad`, with a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.register_buffer("scale", torch.linspace(1, 2, 8), persistent=False)
        self.shift = torch.linspace(0, 1, 8)

    def forward(self, x: Tensor) -> dict[str, object]:
        with torch.no_grad():
            scale = self.scale * 2
        x = self.conv(x).relu().view(x.shape[0], 8, -1).mean(-1) * scale + self.shift
        return {"scores": self.fc(x), "sizes": (x.shape[0], None, 3), "rest": [x.sum(1)]}


class Gated(nn.Module):
    """A recurrent network on tokens, which gives several values."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(50, 16), nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        states, (last, _) = self.lstm(self.words(ids))
        one, other = states.chunk(2, -1)
        return self.fc(torch.cat([one, other], -1).mean(1)), last


class Masked(nn.Module):
    """Attention, with an input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return self.layers(x, src_key_padding_mask=mask)  # type: ignore[no-any-return]


class Resized(nn.Module):
    """Sizes computed from sizes, infinite numbers, steps in place."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.down(x))
        y = nn.functional.interpolate(y, size=(x.shape[2] // 2 * 2, x.shape[3]), mode="bilinear")
        y = torch.where(y > float("inf"), torch.full_like(y, float("-inf")), y)
        y[:, 0] = 0
        y += 1
        return self.up(y)


AUTO = torch.export.Dim.AUTO
OPEN = {0: AUTO, 2: AUTO, 3: AUTO}
Example = tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor], object]
EXPORTED: dict[str, Callable[[], Example]] = {
    "held": lambda: (Held(), (torch.randn(2, 3, 8, 8),), {}, ({0: AUTO, 2: AUTO},)),
    "gated": lambda: (Gated(), (torch.randint(0, 50, (2, 7)),), {}, ({0: AUTO},)),
    "masked": lambda: (Masked(), (torch.randn(2, 5, 16),), {"mask": torch.zeros(2, 5, dtype=torch.bool)},
                       {"x": {0: AUTO}, "mask": {0: AUTO}}),
    "resized": lambda: (Resized(), (torch.randn(2, 3, 16, 16),), {}, (OPEN,)),
    "half": lambda: (Residual().bfloat16(), (torch.randn(2, *INPUT[1:]).bfloat16(),), {}, ({0: AUTO},)),
}  # fmt: skip
for _name in ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"):
    EXPORTED[_name] = lambda name=_name: (  # type: ignore[misc]  # a default binds the name
        torchvision.models.get_model(name), (torch.randn(2, 3, 64, 64),), {}, ({0: AUTO},),
    )  # fmt: skip
for _name in ("densenet121", "vit_b_32", "swin_t", "convnext_tiny", "efficientnet_b0", "maxvit_t"):
    EXPORTED[_name] = lambda name=_name: (  # type: ignore[misc]  # as above
        torchvision.models.get_model(name), (torch.randn(2, 3, 224, 224),), {}, ({0: AUTO},),
    )  # fmt: skip
LARGE = {
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "resnet18",
    "densenet121",
    "vit_b_32",
    "swin_t",
    "convnext_tiny",
    "efficientnet_b0",
    "maxvit_t",
}


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch's, about a recurrent layer's own list
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.9's, about the file that it reads
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in EXPORTED])
def test_the_program_is_the_one_that_torch_reads(tmp_path: Path, name: str) -> None:
    module, inputs, named, dynamic = EXPORTED[name]()
    path = tmp_path / "net.pt2"
    with plain_attention():  # torch 2.9 does not export the fused kernel under a mask
        torch.export.save(torch.export.export(module.eval(), inputs, named, dynamic_shapes=dynamic), path)
    ours, examples = read_exported(path)
    theirs = torch.export.load(path).module()
    with torch.no_grad():
        expected = list(tensors_in(theirs(*inputs, **named)))
        given = list(tensors_in(ours(*inputs, *named.values())))
    assert len(expected) == len(given)
    assert all(torch.equal(a, b) for a, b in zip(expected, given, strict=True))
    assert [t[:1].shape for t in (*inputs, *named.values())] == [t.shape for t in examples]


def test_tensors_that_are_no_persistent_buffers_are_pruned_with_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(alive(Held()), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: AUTO},)), path)
    found = load(path)
    small = prune(found, Request(budget=ChannelBudget(ratio=0.5), align=1))
    assert small.proof.largest_relative_difference < 1e-10
    assert small.small_cost.params < 0.6 * small.dense_cost.params


def test_a_program_that_counts_its_calls_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.fc(x) * self.calls

    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Counts().eval(), (torch.randn(1, 8),)), path)
    module, _ = read_exported(path)
    assert float(module.calls) == 0
    module(torch.randn(1, 8))
    assert float(module.calls) == 1


def test_what_only_torch_reads_is_read_by_torch_where_the_user_trusts_it(tmp_path: Path) -> None:
    path = exported_to(tmp_path / "net.pt2", alive(Residual()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/executorch/x", b"")
    with pytest.raises(UntrustedPickle, match="executorch/x") as caught:
        read_exported(path)
    assert "--trust-pickle" in str(caught.value.hint)
    assert isinstance(read_exported(path, trust_pickle=True)[0], RecordedProgram)


def test_a_program_that_is_trusted_is_still_read_here_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.export, "load", never)
    module, _ = read_exported(exported_to(tmp_path / "net.pt2", alive(Residual())), trust_pickle=True)
    assert isinstance(module, RecordedProgram)


def test_what_stands_around_the_outputs_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(alive(Held()), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: AUTO},)), path)
    module, _ = read_exported(path)
    given = module(torch.randn(5, 3, 8, 8))
    assert list(given) == ["scores", "sizes", "rest"]
    assert given["sizes"] == (5, None, 3)
    assert isinstance(given["rest"], list)


def test_sizes_that_the_program_has_as_numbers_are_refused_by_name(tmp_path: Path) -> None:
    module, _ = read_exported(exported_to(tmp_path / "net.pt2", alive(Residual())))
    with pytest.raises(InputError, match="needs 12"):
        module(torch.randn(2, INPUT[1], INPUT[2] + 1, INPUT[3]))
