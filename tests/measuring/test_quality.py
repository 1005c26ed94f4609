from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED, Images
from compressor.errors import CheckpointError, CompressError, DataError, TaskError
from compressor.measuring.onnx_network import load_onnx
from compressor.measuring.quality import agreement, evaluate, evaluate_onnx
from compressor.results.quality import Accuracy, Agreement, Score
from compressor.tasks.classes import segmentation

PLAIN = Preprocessing(channels=1, size=(4, 4))


class Reads(nn.Module):
    """Scores that are right whenever the first pixel is the label; `classes` outputs."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes
        self.norm = nn.BatchNorm2d(1, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.norm(x)
        return nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long() % self.classes, self.classes).float()


def pictures(labels: Tensor, *, shown: Tensor | None = None) -> Images:
    pixels = (labels if shown is None else shown).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return Images(pixels.clone(), labels)


class TestAccuracy:
    @pytest.mark.parametrize(("correct", "total"), [(5, 10), (8, 10), (1, 700), (9377, 10_000), (699, 700)])
    def test_the_interval_holds_every_share_that_the_count_does_not_contradict(self, correct: int, total: int) -> None:
        """Wilson's definition: at each end the count lies 1.96 standard deviations of that share away."""
        z = NormalDist().inv_cdf(0.975)
        for end in Accuracy(correct=correct, total=total, split="test").interval:
            assert abs(correct / total - end) == pytest.approx(z * math.sqrt(end * (1 - end) / total), rel=1e-9)

    @pytest.mark.parametrize("total", [1, 10, 10_000])
    def test_none_and_all_have_an_interval_too(self, total: int) -> None:
        z = NormalDist().inv_cdf(0.975)
        low, high = Accuracy(correct=0, total=total, split="test").interval
        assert (low, high) == (0.0, pytest.approx(z**2 / (total + z**2)))
        low, high = Accuracy(correct=total, total=total, split="test").interval
        assert (low, high) == (pytest.approx(total / (total + z**2)), 1.0)

    @given(total=st.integers(1, 10**6), data=st.data())
    def test_the_share_lies_in_its_interval_and_that_in_zero_to_one(self, total: int, data: st.DataObject) -> None:
        correct = data.draw(st.integers(0, total))
        accuracy = Accuracy(correct=correct, total=total, split="test")
        low, high = accuracy.interval
        assert 0 <= low <= accuracy.share <= high <= 1

    @pytest.mark.parametrize(("correct", "total"), [(-1, 3), (4, 3), (0, 0)])
    def test_counts_that_are_no_accuracy_are_refused(self, correct: int, total: int) -> None:
        with pytest.raises(DataError):
            Accuracy(correct=correct, total=total, split="test")
        with pytest.raises(DataError):
            Agreement(agreeing=correct, total=total, relative_error=0.0, split="test")


class TestEvaluate:
    @pytest.mark.parametrize("total", [1, 255, 256, 257, 700])
    def test_every_image_counts_once_whatever_the_batches(self, total: int) -> None:
        accuracy = evaluate(Reads(), pictures(torch.arange(total) % 10), split="test", preprocessing=PLAIN)
        assert (accuracy.correct, accuracy.total, accuracy.split) == (total, total, "test")

    def test_wrong_answers_are_counted(self) -> None:
        labels = torch.arange(300) % 10
        shown = torch.where(torch.arange(300) < 30, (labels + 1) % 10, labels)
        accuracy = evaluate(Reads(), pictures(labels, shown=shown), split="tune", preprocessing=PLAIN)
        assert accuracy.correct == 270
        assert accuracy.to_json() == {
            "correct": 270, "total": 300, "split": "tune", "low": accuracy.interval[0], "high": accuracy.interval[1]
        }  # fmt: skip

    def test_the_module_comes_back_as_it_was(self) -> None:
        module = nn.Sequential(Reads(), nn.Dropout(0.5)).train()
        module[1].eval()
        modes = [m.training for m in module.modules()]
        evaluate(module, pictures(torch.arange(5)), split="test", preprocessing=PLAIN)
        assert [m.training for m in module.modules()] == modes
        assert int(module[0].norm.num_batches_tracked) == 0

    def test_it_comes_back_so_even_where_it_fails(self) -> None:
        module = Reads(classes=3).train()
        with pytest.raises(TaskError):
            evaluate(module, pictures(torch.tensor([5])), split="test", preprocessing=PLAIN)
        assert module.training

    @pytest.mark.parametrize(
        ("labels", "said"),
        [
            (torch.tensor([0, UNLABELLED]), "have no labels"),
            (torch.tensor([0, 12]), "labels from 0 to 12 do not fit"),
        ],
    )
    def test_labels_that_cannot_be_counted_are_refused(self, labels: Tensor, said: str) -> None:
        with pytest.raises(CompressError, match=said):
            evaluate(Reads(), pictures(labels, shown=torch.zeros(2)), split="test", preprocessing=PLAIN)

    def test_scores_that_are_not_finite_are_refused(self) -> None:
        class Broken(Reads):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * torch.nan

        with pytest.raises(CheckpointError, match="not finite"):
            evaluate(Broken(), pictures(torch.arange(3)), split="test", preprocessing=PLAIN)

    def test_images_of_a_size_that_the_network_cannot_take_say_so(self) -> None:
        module = nn.Sequential(nn.Flatten(), nn.Linear(9, 10))
        with pytest.raises(DataError, match=r"does not run on samples of \[1, 4, 4\]") as refused:
            evaluate(module, pictures(torch.arange(3)), split="test", preprocessing=PLAIN)
        assert "--input" in str(refused.value.hint)

    def test_an_output_that_is_no_scores_is_refused(self) -> None:
        with pytest.raises(TaskError, match="show no known task"):
            evaluate(nn.Identity(), pictures(torch.arange(3)), split="test", preprocessing=PLAIN)


class TestAgreement:
    def linear(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))

    def images(self) -> Images:
        return Images(torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0)))  # unlabelled

    def test_a_network_agrees_with_itself(self) -> None:
        found = agreement(self.linear(0), self.linear(0), self.images(), split="test", preprocessing=PLAIN)
        assert (found.agreeing, found.total, found.relative_error) == (300, 300, 0.0)

    def test_the_error_is_the_relative_norm_over_all_images(self) -> None:
        small, dense, images = self.linear(0), self.linear(1), self.images()
        found = agreement(small, dense, images, split="test", preprocessing=PLAIN)
        with torch.no_grad():
            ours, theirs = small(images.images), dense(images.images)
        assert found.relative_error == pytest.approx(float((ours - theirs).norm() / theirs.norm()), rel=1e-5)
        assert found.agreeing == int((ours.argmax(1) == theirs.argmax(1)).sum())
        assert found.to_json()["relative_error"] == found.relative_error

    def test_a_silent_dense_network_has_no_relative_error(self) -> None:
        silent = self.linear(0)
        nn.init.zeros_(silent[1].weight)
        nn.init.zeros_(silent[1].bias)
        found = agreement(self.linear(0), silent, self.images(), split="test", preprocessing=PLAIN)
        assert found.relative_error == float("inf")

    def test_networks_of_other_classes_cannot_agree(self) -> None:
        other = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
        with pytest.raises(DataError, match=r"outputs are .* 4\] and .* 5\]"):
            agreement(self.linear(0), other, self.images(), split="test", preprocessing=PLAIN)


def linear_onnx(
    file: Path,
    *,
    batch: int | str = "batch",
    metadata: dict[str, str] | None = None,
    size: Any = 4,
) -> nn.Module:
    """Write a flattened linear classifier of 1x4x4 images with 10 classes; the same as a module."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    arrays = {"w": module[1].weight.detach().numpy().T, "b": module[1].bias.detach().numpy()}
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata:
        helper.set_model_props(proto, metadata)
    file.write_bytes(proto.SerializeToString())
    return module


METADATA = {
    "name": "mine",
    "classes": json.dumps(list("abcdefghij")),
    "preprocessing": json.dumps({"mean": [0.4], "std": [0.2], "size": [4, 4], "channels": 1}),
}


class TestOnnx:
    def noise(self, count: int = 333) -> Images:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (count, 1, 6, 6), generator=generator).to(torch.uint8)
        return Images(images, torch.randint(0, 10, (count,), generator=generator))

    @pytest.mark.parametrize("batch", ["batch", 1, 7, 400])
    def test_it_says_what_the_network_says_at_any_batch_size(self, tmp_path: Path, batch: int | str) -> None:
        module = linear_onnx(tmp_path / "m.onnx", batch=batch, metadata=METADATA)
        own = Preprocessing(mean=(0.4,), std=(0.2,), size=(4, 4), channels=1)
        images = self.noise()
        assert evaluate_onnx(tmp_path / "m.onnx", images, split="test") == evaluate(
            module, images, split="test", preprocessing=own
        )
        network = load_onnx(tmp_path / "m.onnx")
        found = agreement(network, module, images, split="test", preprocessing=own)
        assert found.agreeing == 333
        assert found.relative_error < 1e-6

    def test_metadata_name_preprocessing_and_classes(self, tmp_path: Path) -> None:
        linear_onnx(tmp_path / "m.onnx", metadata=METADATA)
        network = load_onnx(tmp_path / "m.onnx", threads=1)
        assert network.name == "mine"
        assert network.classes == tuple("abcdefghij")
        assert network.preprocessing == Preprocessing(mean=(0.4,), std=(0.2,), size=(4, 4), channels=1)

    def test_another_tools_file_has_the_size_of_its_input(self, tmp_path: Path) -> None:
        linear_onnx(tmp_path / "m.onnx")
        network = load_onnx(tmp_path / "m.onnx")
        assert network.name == "m"
        assert network.classes is None
        assert network.preprocessing == Preprocessing(size=(4, 4), channels=1)

    def test_preprocessing_that_is_given_wins(self, tmp_path: Path) -> None:
        module = linear_onnx(tmp_path / "m.onnx", metadata=METADATA)
        given = Preprocessing(size=(4, 4))
        found = evaluate_onnx(tmp_path / "m.onnx", self.noise(), split="test", preprocessing=given)
        assert found == evaluate(module, self.noise(), split="test", preprocessing=given)

    @pytest.mark.parametrize("content", [b"", b"no onnx", b"\x08\x0a"])
    def test_a_broken_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match="onnxruntime cannot read"):
            load_onnx(tmp_path / "m.onnx")

    def test_a_missing_file_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="is not there"):
            load_onnx(tmp_path / "m.onnx")

    @pytest.mark.parametrize("metadata", [{"preprocessing": "{"}, {"preprocessing": "[1]"}, {"classes": "no json"}])
    def test_metadata_without_sense_are_refused(self, tmp_path: Path, metadata: dict[str, str]) -> None:
        linear_onnx(tmp_path / "m.onnx", metadata=metadata)
        with pytest.raises(CheckpointError, match="make no sense"):
            load_onnx(tmp_path / "m.onnx")

    def test_inputs_of_any_kind_are_read(self, tmp_path: Path) -> None:
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "z"], ["y"]), helper.make_node("Sub", ["x", "z"], ["w"])],
            "g",
            [helper.make_tensor_value_info(name, TensorProto.INT64, [2, 5]) for name in "xz"],
            [helper.make_tensor_value_info(name, TensorProto.INT64, [2, 5]) for name in "yw"],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        network = load_onnx(tmp_path / "m.onnx")
        assert network.preprocessing.takes == ("x", "z")
        x, z = torch.arange(15).view(3, 5), torch.ones(3, 5, dtype=torch.int64)  # one more than a batch
        both, less = network(x, z)
        assert torch.equal(both, x + 1)
        assert torch.equal(less, x - 1)

    def test_images_of_another_size_say_so(self, tmp_path: Path) -> None:
        linear_onnx(tmp_path / "m.onnx", metadata=METADATA)
        with pytest.raises(DataError, match="mine does not run on samples"):
            evaluate_onnx(tmp_path / "m.onnx", self.noise(), split="test", preprocessing=Preprocessing(size=(5, 5)))


class TestOtherTasks:
    """Networks that classify nothing: maps and numbers, with targets and without."""

    def maps(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Conv2d(1, 3, 1).eval()

    def pairs(self, count: int = 40) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(count, 1, 4, 4, generator=generator)
        return [(image, torch.randint(0, 3, (4, 4), generator=generator)) for image in images]

    def test_a_map_has_the_score_of_its_task_with_an_interval(self) -> None:
        pairs, network = self.pairs(), self.maps()
        found = evaluate(network, pairs, split="tune", preprocessing=PLAIN)
        assert isinstance(found, Score)
        with torch.no_grad():
            predicted = network(torch.stack([image for image, _ in pairs])).argmax(1)
        truth = torch.stack([mask for _, mask in pairs])
        overlaps = [
            float(((predicted == c) & (truth == c)).sum() / ((predicted == c) | (truth == c)).sum())
            for c in range(3)
            if bool(((predicted == c) | (truth == c)).any())
        ]
        assert found.value == pytest.approx(sum(overlaps) / len(overlaps))
        assert found.low < found.value < found.high
        assert (found.named, found.total, found.split, found.against_dense) == ("mIoU", 40, "tune", False)
        assert evaluate(network, pairs, split="tune", preprocessing=PLAIN) == found  # the same draws each time

    def test_more_samples_make_a_narrower_interval(self) -> None:
        widths = []
        for count in (20, 320):
            found = evaluate(self.maps(), self.pairs(count), split="tune", preprocessing=PLAIN)
            widths.append(found.high - found.low)
        assert widths[1] == pytest.approx(widths[0] / 4, rel=0.5)

    def test_without_targets_the_dense_networks_outputs_are_followed(self) -> None:
        images = [image for image, _ in self.pairs()]
        dense = self.maps()
        same = agreement(self.maps(), dense, images, split="test", preprocessing=PLAIN)
        other = agreement(self.maps(1), dense, images, split="test", preprocessing=PLAIN)
        assert isinstance(other, Score)
        assert other.against_dense
        assert same.value == 1.0
        with torch.no_grad():
            ours, theirs = self.maps(1)(torch.stack(images)), dense(torch.stack(images))
        relative = float((ours - theirs).norm() / theirs.norm())
        assert other.relative_error == pytest.approx(relative, rel=1e-5)
        assert other.value == pytest.approx(max(0.0, 1 - relative), abs=1e-6)

    def test_a_task_that_is_named_decides_for_both(self) -> None:
        images = [image for image, _ in self.pairs()]
        found = agreement(self.maps(1), self.maps(), images, split="test", preprocessing=PLAIN, task=segmentation())
        assert (found.named, found.against_dense) == ("mIoU", True)
