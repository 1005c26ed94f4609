"""The built-in tasks: their losses and scores against torch's and torchmetrics' own, and which task a batch shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.functional import classification as metrics
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.functional.text import perplexity

from compressor.errors import TaskError
from compressor.tasks.classes import classification, multi_label, segmentation, token_classification
from compressor.tasks.detection import OVERLAPS, detection, mean_average_precision, rows_of
from compressor.tasks.finding import task_of_outputs, task_shown
from compressor.tasks.task import Task, mean_or_ratio, together
from compressor.tasks.values import language_modelling, regression, restoration


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, below: int, seed: int = 1) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def scored(task: Task, outputs: Tensor, target: Any, *, parts: int = 3) -> float:
    """The score of batches that were read one after the other."""
    pairs = zip(outputs.chunk(parts), target.chunk(parts), strict=True)
    return task.value(together([task.rows(out, true) for out, true in pairs]))


def with_void(target: Tensor) -> Tensor:
    """The target with a tenth that does not count."""
    return target.masked_fill(drawn(*target.shape, seed=9) > 1.3, -100)


CASES: dict[str, tuple[Callable[[], Task], Tensor, Tensor, Callable[[Tensor, Tensor], Tensor], Any]] = {
    "classification": (
        classification, drawn(50, 7), classes(50, below=7), functional.cross_entropy,
        lambda out, true: metrics.multiclass_accuracy(out, true, num_classes=7, average="micro"),
    ),
    "multi-label": (
        multi_label, drawn(50, 7), classes(50, 7, below=2).float(), functional.binary_cross_entropy_with_logits,
        lambda out, true: metrics.multilabel_f1_score(out.sigmoid(), true.long(), num_labels=7, average="micro"),
    ),
    "segmentation": (
        segmentation, drawn(12, 5, 8, 9), with_void(classes(12, 8, 9, below=5)), functional.cross_entropy,
        lambda out, true: metrics.multiclass_jaccard_index(out, true, num_classes=5, ignore_index=-100),
    ),
    "tokens": (
        token_classification, drawn(12, 9, 5), with_void(classes(12, 9, below=5)),
        lambda out, true: functional.cross_entropy(out.transpose(1, 2), true),
        lambda out, true: metrics.multiclass_accuracy(
            out.transpose(1, 2), true, num_classes=5, average="micro", ignore_index=-100
        ),
    ),
    "regression": (
        regression, drawn(50, 3), drawn(50, 3, seed=2), functional.mse_loss, functional.l1_loss,
    ),
    "restoration": (
        restoration, drawn(12, 3, 8, 8).sigmoid(), drawn(12, 3, 8, 8, seed=2).sigmoid(), functional.mse_loss,
        lambda out, true: peak_signal_noise_ratio(out, true, data_range=1.0, dim=(1, 2, 3)),
    ),
    "language": (
        language_modelling, drawn(12, 9, 11), with_void(classes(12, 9, below=11)),
        lambda out, true: functional.cross_entropy(out[:, :-1].transpose(1, 2), true[:, 1:]),
        lambda out, true: perplexity(out[:, :-1], true[:, 1:], ignore_index=-100),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_torchs_and_the_score_torchmetrics(name: str) -> None:
    make, outputs, target, loss, score = CASES[name]
    task = make()
    assert float(task.loss(outputs, target)) == pytest.approx(float(loss(outputs, target)), rel=1e-6)
    assert scored(task, outputs, target) == pytest.approx(float(score(outputs, target)), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_network_agrees_with_itself_wholly(name: str) -> None:
    make, outputs, *_ = CASES[name]
    task = make()
    if task.as_target is None:
        pytest.skip("the next token cannot be a target made of outputs")
    perfect = {"regression": 0.0, "restoration": 100.0}.get(task.name, 1.0)
    assert scored(task, outputs, task.as_target(outputs)) == pytest.approx(perfect)
    assert float(task.distance(outputs, outputs)) == pytest.approx(0.0, abs=1e-6)
    assert float(task.distance(outputs.roll(1, 0), outputs)) > 1e-3


def test_a_wrong_target_is_refused() -> None:
    with pytest.raises(TaskError, match="labels from 0 to 9 do not fit"):
        classification().score(drawn(10, 7), torch.arange(10))
    with pytest.raises(TaskError, match="has the class 9, the network 5 classes"):
        segmentation().loss(drawn(1, 5, 4, 4), torch.full((1, 4, 4), 9))
    with pytest.raises(TaskError, match=r"outputs of \[2, 3\] for targets of \[2, 4\]"):
        regression().loss(drawn(2, 3), drawn(2, 4))


def test_a_smaller_map_is_enlarged() -> None:
    small = drawn(2, 3, 4, 4)
    large = functional.interpolate(small, size=(8, 8), mode="bilinear", align_corners=False)
    target = classes(2, 8, 8, below=3)
    assert torch.equal(segmentation().loss(small, target), segmentation().loss(large, target))


class TestDetection:
    @staticmethod
    def boxes(*corners: tuple[float, float, float, float]) -> Tensor:
        return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)

    def said(self, boxes: Tensor, scores: list[float], labels: list[int]) -> dict[str, Tensor]:
        return {"boxes": boxes, "scores": torch.tensor(scores), "labels": torch.tensor(labels)}

    def test_all_found_and_nothing_else_is_one(self) -> None:
        boxes = self.boxes((0, 0, 4, 4), (5, 5, 9, 9))
        rows = [rows_of(self.said(boxes, [0.9, 0.8], [1, 2]), {"boxes": boxes, "labels": torch.tensor([1, 2])})]
        assert mean_average_precision(rows) == pytest.approx(1.0)

    def test_overlaps_decide_how_many_of_the_ten_thresholds_are_met(self) -> None:
        true = {"boxes": self.boxes((0, 0, 10, 10)), "labels": torch.tensor([0])}
        shifted = self.said(self.boxes((0, 0, 10, 7.2)), [0.9], [0])  # an overlap of 0.72: five thresholds
        assert mean_average_precision([rows_of(shifted, true)]) == pytest.approx(0.5)

    def test_a_box_that_is_found_twice_counts_once(self) -> None:
        box = self.boxes((0, 0, 10, 10))
        true = {"boxes": box, "labels": torch.tensor([0])}
        twice = self.said(torch.cat([box, box]), [0.9, 0.8], [0, 0])
        assert rows_of(twice, true)[:2, 2:].sum(0).tolist() == [1.0] * 10

    def test_the_precision_before_a_hit_counts(self) -> None:
        true = {"boxes": self.boxes((0, 0, 10, 10), (20, 20, 30, 30)), "labels": torch.tensor([0, 0])}
        # a miss, then both: the precisions at recalls 0.5 and 1 are 1/2 and 2/3, and the envelope is 2/3 everywhere
        said = self.said(self.boxes((50, 50, 60, 60), (0, 0, 10, 10), (20, 20, 30, 30)), [0.9, 0.8, 0.7], [0, 0, 0])
        assert mean_average_precision([rows_of(said, true)]) == pytest.approx(2 / 3)

    def test_another_class_is_no_hit_and_a_missing_class_counts_as_zero(self) -> None:
        box = self.boxes((0, 0, 10, 10))
        true = {"boxes": torch.cat([box, box]), "labels": torch.tensor([0, 1])}
        assert mean_average_precision([rows_of(self.said(box, [0.9], [0]), true)]) == pytest.approx(0.5)

    def test_images_without_boxes_are_fine(self) -> None:
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
        assert mean_average_precision([rows_of(self.said(torch.zeros(0, 4), [], []), nothing)]) == 0.0

    def test_against_cocos_own_evaluation(self) -> None:
        generator = torch.Generator().manual_seed(0)
        said, true = [], []
        for _ in range(30):
            corners = 80 * torch.rand(6, 2, generator=generator)
            boxes = torch.cat([corners, corners + 8 + 20 * torch.rand(6, 2, generator=generator)], dim=1)
            labels = torch.randint(0, 3, (6,), generator=generator)
            true.append({"boxes": boxes, "labels": labels})
            near = boxes + 2 * torch.randn(6, 4, generator=generator)
            moved = labels.where(torch.rand(6, generator=generator) > 0.2, (labels + 1) % 3)
            said.append({"boxes": near, "scores": torch.rand(6, generator=generator), "labels": moved})
        metric = MeanAveragePrecision(  # its own thresholds are COCO's in single precision
            backend="pycocotools", iou_thresholds=list(OVERLAPS), rec_thresholds=np.linspace(0, 1, 101).tolist()
        )
        metric.update(said, true)
        ours = mean_average_precision([rows_of(a, b) for a, b in zip(said, true, strict=True)])
        assert ours == pytest.approx(float(metric.compute()["map"]), abs=1e-6)

    def test_a_network_computes_its_own_loss(self) -> None:
        class Detector(nn.Module):
            def forward(self, images: Any, targets: Any = None) -> Any:
                assert isinstance(images, list)
                return {"boxes": targets[0]["boxes"].sum(), "classes": torch.tensor(2.0)}

        target = [{"boxes": self.boxes((1, 2, 3, 4)), "labels": torch.tensor([0])}]
        assert float(detection().batch_loss(Detector(), (torch.zeros(1, 3, 4, 4),), target)) == 12.0

    def test_a_network_without_a_loss_is_refused(self) -> None:
        with pytest.raises(TaskError, match="a detector's loss is its own"):
            detection().batch_loss(nn.Identity(), (torch.zeros(1, 3, 4, 4),), [])

    def test_places_become_boxes(self) -> None:
        places = torch.tensor([[5.0, 5, 4, 4, 0.9, 0.1], [5.1, 5, 4, 4, 0.8, 0.1], [20, 20, 4, 4, 0.2, 0.7]]).T[None]
        true = [{"boxes": self.boxes((3, 3, 7, 7), (18, 18, 22, 22)), "labels": torch.tensor([0, 1])}]
        assert detection().value(detection().rows(places, true)) == pytest.approx(1.0)  # one of the twins is suppressed


class TestShown:
    @pytest.mark.parametrize(
        ("outputs", "target", "name"),
        [
            (drawn(4, 7), classes(4, below=7), "classification"),
            ((drawn(4, 7), drawn(4, 3)), classes(4, below=7), "classification"),
            ({"logits": drawn(4, 7)}, classes(4, below=7), "classification"),
            (drawn(4, 7), classes(4, 7, below=2), "multi-label"),
            (drawn(4, 7), drawn(4, 7), "regression"),
            (drawn(4, 1), drawn(4), "regression"),
            (drawn(4), drawn(4), "regression"),
            ({"out": drawn(4, 5, 8, 8)}, classes(4, 8, 8, below=5), "segmentation"),
            (drawn(4, 3, 8, 8), drawn(4, 3, 8, 8), "restoration"),
            (drawn(4, 9, 5), classes(4, 9, below=5), "token-classification"),
            (drawn(4, 9, 5), [{"boxes": drawn(2, 4), "labels": classes(2, below=3)}], "detection"),
        ],
    )
    def test_by_outputs_and_targets(self, outputs: Any, target: Any, name: str) -> None:
        assert task_shown(outputs, target).name == name

    @pytest.mark.parametrize("target", [classes(4, 2, below=7), "text", [1, 2], drawn(4, 6)])
    def test_what_shows_none_says_how_to_name_one(self, target: Any) -> None:
        with pytest.raises(TaskError, match="show no known task") as refused:
            task_shown(drawn(4, 7), target)
        assert "--task" in str(refused.value.hint)

    def test_without_targets_classes_or_the_outputs_themselves_are_compared(self) -> None:
        assert task_of_outputs(drawn(4, 7)).name == "classification"
        following = task_of_outputs((drawn(4, 5, 8, 8), drawn(4, 3)))
        outputs = (drawn(4, 5, 8, 8), drawn(4, 3))
        assert following.value(following.rows(outputs, outputs)) == 1.0
        off = tuple(1.1 * part for part in outputs)
        assert following.value(following.rows(off, outputs)) == pytest.approx(0.9)


def test_rows_of_another_shape_need_a_value_of_their_own() -> None:
    assert mean_or_ratio(torch.tensor([1.0, 0.0])) == 0.5
    assert mean_or_ratio(torch.tensor([[1.0, 2.0], [2.0, 4.0]])) == 0.5
    with pytest.raises(TaskError, match="neither"):
        mean_or_ratio(torch.zeros(3, 3))


@pytest.mark.parametrize("outputs", [torch.zeros(2, 3), torch.zeros(2, 4, 9)])
def test_outputs_that_are_no_scores_of_the_next_token_are_refused(outputs: Tensor) -> None:
    with pytest.raises(TaskError, match="no scores of the next token"):
        language_modelling().loss(outputs, torch.zeros(2, 5, dtype=torch.int64))
