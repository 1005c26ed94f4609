from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from onnx.defs import onnx_opset_version
from torch import Tensor, nn

from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.preprocessing import Preprocessing
from compressor.errors import ExportError
from compressor.export import onnx as export
from compressor.export.onnx import export_onnx, lineage_sha256
from compressor.graph.outputs import outputs_of
from compressor.measuring.onnx_network import load_onnx
from tests.support.versions import COLLECTED_INPUTS_FIX_THE_BATCH


def checkpoint_of(
    module: nn.Module, *shapes: tuple[int, ...], inputs: tuple[Tensor, ...] = (), **fields: Any
) -> Checkpoint:
    examples = inputs or tuple(torch.randn(s) for s in shapes)
    architecture = Architecture(ref="tests:made")
    known = {"name": "made", "path": "made.pt", "sha256": "0", "classes": None, "architecture": architecture}
    known = {"preprocessing": Preprocessing(), **known, **fields}
    return Checkpoint(module=module, example_inputs=examples, **known)


def lively_(module: nn.Module) -> nn.Module:
    """Draw what initialises to a constant, so that no branch is dead and no norm the identity."""
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
        for parameter in module.parameters():
            if parameter.unique().numel() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


def small_cnn() -> nn.Module:
    return lively_(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )
    )  # fmt: skip


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return lively_(
        torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=7
        )
    )


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return lively_(torchvision.models.resnet18(num_classes=10))


class TestParity:
    @pytest.mark.parametrize(
        ("make", "shape"), [(resnet18, (1, 3, 64, 64)), (tiny_vit, (1, 3, 32, 32)), (small_cnn, (1, 3, 12, 12))]
    )
    def test_onnxruntime_says_what_torch_says(self, tmp_path: Path, make: Any, shape: tuple[int, ...]) -> None:
        module = make()
        parity = export_onnx(checkpoint_of(module, shape), tmp_path / "m.onnx")
        assert parity.largest_relative_difference <= 1e-4
        assert (parity.outputs, parity.batches, parity.batch_sizes, parity.dynamic_batch) == (1, 6, (1, 4), True)
        assert parity.bytes == (tmp_path / "m.onnx").stat().st_size
        session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
        inputs = torch.randn(7, *shape[1:])  # neither of the sizes that were compared
        answer = torch.as_tensor(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])
        assert torch.allclose(answer, outputs_of(module, [inputs])[0], atol=1e-4)

    def test_every_output_is_compared(self, tmp_path: Path) -> None:
        class Many(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Any:
                y = self.fc(x)
                return y, [y + 1, {"b": y * 2, "a": x}]

        assert export_onnx(checkpoint_of(Many(), (1, 4)), tmp_path / "m.onnx").outputs == 4

    def test_one_value_clamped_twice_by_tensors(self, tmp_path: Path) -> None:
        class Clamped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(6, 4) for _ in range(2))
                for name, bound in {"a": -0.5, "b": 0.3, "c": -0.2, "d": 0.6}.items():
                    self.register_buffer(name, torch.tensor(bound))

            def forward(self, x: Tensor) -> Any:
                y = 2 * x
                return self.layers[0](y.clamp(self.a, self.b)) + self.layers[1](y.clamp(self.c, self.d))

        parity = export_onnx(checkpoint_of(Clamped(), (3, 6)), tmp_path / "m.onnx")
        assert parity.largest_relative_difference < 1e-5

    def test_a_dicts_keys_name_the_outputs(self, tmp_path: Path) -> None:
        class Named(nn.Module):
            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"scores": x * 2, "aux": x + 1, "x": x - 1}

        parity = export_onnx(checkpoint_of(Named(), (1, 4)), tmp_path / "m.onnx")
        assert parity.outputs == 3
        session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
        assert [o.name for o in session.get_outputs()] == ["scores", "aux", "output_x"]  # `x` is the input
        assert [i.name for i in session.get_inputs()] == ["x"]

    @pytest.mark.parametrize("scale", [None, 0.3])
    @pytest.mark.parametrize("mask", [None, torch.bool, torch.float32, "causal"])
    def test_attention_over_more_than_batch_and_heads(
        self, tmp_path: Path, mask: torch.dtype | str | None, scale: float | None
    ) -> None:
        class Windowed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.qkv = nn.Linear(8, 24)
                drawn = torch.rand(1, 3, 1, 5, 5)
                self.register_buffer("mask", {torch.bool: drawn > 0.3, torch.float32: drawn}.get(mask))

            def forward(self, x: Tensor) -> Tensor:
                q, k, v = self.qkv(x).reshape(x.shape[0], 3, 5, 3, 2, 4).permute(3, 0, 1, 4, 2, 5)
                return nn.functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=self.mask, is_causal=mask == "causal", scale=scale
                )

        parity = export_onnx(checkpoint_of(Windowed().eval(), (1, 15, 8)), tmp_path / "a.onnx")
        assert parity.largest_relative_difference < 1e-5
        assert parity.batch_sizes == (1, 4)

    def test_several_inputs_in_any_signature(self, tmp_path: Path) -> None:
        class Sum(nn.Module):
            def forward(self, *parts: Tensor) -> Tensor:
                return parts[0] * 2 + parts[1].flatten(1).mean(1, keepdim=True)

        parity = export_onnx(checkpoint_of(Sum(), (1, 4), (1, 3, 5, 5)), tmp_path / "m.onnx")
        assert parity.dynamic_batch is not COLLECTED_INPUTS_FIX_THE_BATCH
        assert parity.largest_relative_difference <= 1e-4

    def test_integer_inputs(self, tmp_path: Path) -> None:
        module = nn.Sequential(nn.Embedding(10, 6), nn.Flatten(), nn.Linear(18, 4)).eval()
        parity = export_onnx(checkpoint_of(module, inputs=(torch.tensor([[1, 9, 4]]),)), tmp_path / "m.onnx")
        assert parity.largest_relative_difference <= 1e-4

    def test_a_network_that_asks_for_its_batch_by_len_keeps_it_open(self, tmp_path: Path) -> None:
        class ByLength(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv1d(3, 4, 3), nn.Linear(24, 5)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.head(self.conv(x).view(len(x), -1))
                return y

        parity = export_onnx(checkpoint_of(ByLength().eval(), (1, 3, 8)), tmp_path / "m.onnx")
        assert parity.dynamic_batch
        assert parity.largest_relative_difference <= 1e-4
        session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
        for batch in (1, 2, 5):
            scores = session.run(None, {session.get_inputs()[0].name: np.zeros((batch, 3, 8), np.float32)})[0]
            assert np.asarray(scores).shape == (batch, 5)

    def test_a_network_that_drops_a_batch_of_one_is_written_for_one(self, tmp_path: Path) -> None:
        class Squeezed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.head(self.conv(x).mean((2, 3)).squeeze())
                return y

        parity = export_onnx(checkpoint_of(Squeezed().eval(), (1, 3, 8, 8)), tmp_path / "m.onnx")
        assert not parity.dynamic_batch
        assert "[[1, 5]], the network [[5]]" in str(parity.note)
        session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
        assert [o.shape for o in session.get_outputs()] == [[5]]

    def test_a_batch_that_cannot_be_dynamic_is_fixed_and_said(self, tmp_path: Path) -> None:
        class Fixed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * 2 if x.shape[0] == 2 else x * 3

        parity = export_onnx(checkpoint_of(Fixed(), (1, 4)), tmp_path / "m.onnx")
        assert not parity.dynamic_batch
        assert parity.batch_sizes == (1,)
        assert "dynamic batch" in str(parity.note)
        shape = onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape
        assert shape.dim[0].dim_value == 1


class TestFile:
    def test_metadata_are_what_evaluate_reads(self, tmp_path: Path) -> None:
        preprocessing = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1), size=(12, 12), channels=3)
        lineage = ({"step": "prune", "requested": {"ratio": 0.5}}, {"step": "retrain", "how": "fine-tune"})
        known: dict[str, Any] = {"classes": ("a", "b", "ç", "d", "e"), "lineage": lineage, "name": "mine"}
        checkpoint = checkpoint_of(small_cnn(), (1, 3, 12, 12), preprocessing=preprocessing, **known)
        export_onnx(checkpoint, tmp_path / "m.onnx")
        network = load_onnx(tmp_path / "m.onnx")
        assert (network.name, network.preprocessing, network.classes) == ("mine", preprocessing, checkpoint.classes)
        assert network.batch_size is None
        metadata = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
        assert metadata["task"] == "image-classification"
        assert metadata["lineage_sha256"] == lineage_sha256(lineage) == lineage_sha256(json.loads(json.dumps(lineage)))

    def test_it_names_no_place_on_this_machine(self, tmp_path: Path) -> None:
        export_onnx(checkpoint_of(tiny_vit(), (1, 3, 32, 32)), tmp_path / "m.onnx")
        raw = (tmp_path / "m.onnx").read_bytes()
        for trace in (b"pkg.torch", b"site-packages", str(Path.cwd()).encode(), str(tmp_path).encode()):
            assert trace not in raw

    @pytest.mark.parametrize("opset", [18, 21])
    def test_the_opset_is_the_one_asked_for(self, tmp_path: Path, opset: int) -> None:
        parity = export_onnx(checkpoint_of(small_cnn(), (1, 3, 12, 12)), tmp_path / "m.onnx", opset=opset)
        assert parity.opset == opset == onnx.load(tmp_path / "m.onnx").opset_import[0].version

    @pytest.mark.parametrize("opset", [0, 17, onnx_opset_version() + 1])
    def test_an_opset_out_of_range_is_refused(self, tmp_path: Path, opset: int) -> None:
        with pytest.raises(ExportError, match=f"opset {opset} cannot be written, only 18 to") as refused:
            export_onnx(checkpoint_of(small_cnn(), (1, 3, 12, 12)), tmp_path / "m.onnx", opset=opset)
        assert "--opset" in str(refused.value.hint)

    def test_results_are_plain(self, tmp_path: Path) -> None:
        parity = export_onnx(checkpoint_of(small_cnn(), (1, 3, 12, 12)), tmp_path / "m.onnx")
        plain = json.loads(json.dumps(parity.to_json()))
        assert plain["dynamic_batch"] is True
        assert plain["batch_sizes"] == [1, 4]

    def test_it_is_written_without_a_word(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        export_onnx(checkpoint_of(small_cnn(), (1, 3, 12, 12)), tmp_path / "m.onnx")
        assert capfd.readouterr() == ("", "")


class TestLending:
    def test_the_module_and_the_process_are_as_before(self, tmp_path: Path) -> None:
        module = tiny_vit().train()
        module.conv_proj.eval().requires_grad_(False)
        modes = [m.training for m in module.modules()]
        state = {n: t.clone() for n, t in module.state_dict().items()}
        fastpath, level = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
        generator = torch.random.get_rng_state()
        export_onnx(checkpoint_of(module, inputs=(torch.zeros(1, 3, 32, 32),)), tmp_path / "m.onnx")
        assert [m.training for m in module.modules()] == modes
        assert not module.conv_proj.weight.requires_grad
        assert module.class_token.requires_grad
        assert all(torch.equal(t, state[n]) for n, t in module.state_dict().items())
        assert (torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable) == (fastpath, level)
        assert torch.equal(generator, torch.random.get_rng_state())

    def test_a_frozen_network_exports_too(self, tmp_path: Path) -> None:
        export_onnx(checkpoint_of(small_cnn().requires_grad_(False), (1, 3, 12, 12)), tmp_path / "m.onnx")


class TestRefusals:
    """Each leaves nothing behind but what was there before."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        (tmp_path / "m.onnx").write_text("before")
        return tmp_path / "m.onnx"

    def untouched(self, file: Path) -> bool:
        return file.read_text() == "before" and [p.name for p in file.parent.iterdir()] == ["m.onnx"]

    def test_a_file_that_says_something_else(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        honest = export.proto_of

        def lying(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                module[-1].bias[0] += 0.5
            proto = honest(module, *args, **kwargs)
            with torch.no_grad():
                module[-1].bias[0] -= 0.5
            return proto

        monkeypatch.setattr(export, "proto_of", lying)
        with pytest.raises(ExportError, match=r"differs from the network by .*, more than 0\.001"):
            export_onnx(checkpoint_of(small_cnn(), (1, 3, 12, 12)), file)
        assert self.untouched(file)

    def test_a_network_whose_outputs_are_not_finite(self, file: Path) -> None:
        module = small_cnn()
        nn.init.constant_(module[-1].weight, torch.nan)
        with pytest.raises(ExportError, match="differs from the network by inf"):
            export_onnx(checkpoint_of(module, (1, 3, 12, 12)), file)
        assert self.untouched(file)

    def test_a_network_that_cannot_be_traced(self, file: Path) -> None:
        class Wild(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * 2 if float(x.sum()) > 0 else x

        with pytest.raises(ExportError, match="the network cannot be exported: ") as refused:
            export_onnx(checkpoint_of(Wild(), (1, 4)), file)
        assert "\n" not in str(refused.value)
        assert self.untouched(file)

    def test_a_network_without_tensors_to_give(self, file: Path) -> None:
        class Mute(nn.Module):
            def forward(self, x: Tensor) -> tuple[None, int]:
                return None, x.ndim

        with pytest.raises(ExportError):
            export_onnx(checkpoint_of(Mute(), (1, 4)), file)
        assert self.untouched(file)

    def test_an_opset_that_comes_out_as_another(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        honest = export.proto_of
        monkeypatch.setattr(export, "proto_of", lambda *a, **k: honest(*a, **{**k, "opset": 20}))
        with pytest.raises(ExportError, match="cannot be written in opset 21, only in 20"):
            export_onnx(checkpoint_of(small_cnn(), (1, 3, 12, 12)), file, opset=21)
        assert self.untouched(file)

    def test_a_full_disk(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(self: Path, content: bytes) -> int:
            with self.open("wb") as stream:
                stream.write(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(ExportError, match="No space left on device"):
            export_onnx(checkpoint_of(small_cnn(), (1, 3, 12, 12)), file)
        monkeypatch.undo()
        assert self.untouched(file)

    def test_a_place_that_is_a_file(self, file: Path) -> None:
        with pytest.raises(ExportError, match="cannot write"):
            export_onnx(checkpoint_of(small_cnn(), (1, 3, 12, 12)), file / "below.onnx")
        assert self.untouched(file)

    def test_more_than_one_file_can_hold(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(export, "PROTOBUF_BYTES", 100)
        with pytest.raises(ExportError, match="do not fit into one ONNX file"):
            export_onnx(checkpoint_of(small_cnn(), (1, 3, 12, 12)), file)
        assert self.untouched(file)
