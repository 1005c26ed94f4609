"""Detectors: what they choose from is traced, shrunk with proof and compared in ONNX; what they choose is theirs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn

from compressor.channels.groups import trace
from compressor.errors import GroupError, SurgeryError
from compressor.export.onnx import export_onnx
from compressor.graph.choices import choices_of, choosing
from compressor.graph.detector_heads import WithHeads, head_layers
from compressor.graph.exported_program import exported
from compressor.surgery.plan import PruningPlan
from compressor.surgery.proved import shrink_proved
from compressor.surgery.surgery import Surgery
from tests.channels.test_tracing import half, reasons
from tests.export.test_onnx import checkpoint_of
from tests.support.topologies import alive

# torch's draft exporter leaves the file of its log open
LEFT_OPEN = "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
pytestmark = pytest.mark.filterwarnings(LEFT_OPEN)
shrinking = sys.modules["compressor.surgery.shrinking"]  # `compressor.surgery.shrinking` is the function
EXAMPLE = (torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(3)),)


class TinyDetector(nn.Module):
    """Two stages: boxes by the best scores of a head, suppressed; what is pooled in them goes to a second head."""

    def __init__(self, *, decides: bool = True, bar: float = -1e6) -> None:
        super().__init__()
        self.decides, self.bar = decides, bar
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1))
        self.scores, self.boxes = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 4, 1)
        self.inner, self.classes = nn.Linear(16 * 4, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        features = torch.relu(self.body(x))
        scores = self.scores(features).flatten()
        corners = self.boxes(features).permute(0, 2, 3, 1).reshape(-1, 4)
        scores, order = scores.topk(min(20, len(scores)))
        low = corners[order].sigmoid() * 12
        boxes = torch.cat([low[:, :2], low[:, :2] + low[:, 2:] + 1], dim=1)
        kept = torchvision.ops.nms(boxes, scores, 0.5)
        kept = kept[scores[kept] > self.bar]
        pooled = torchvision.ops.roi_align(features, [boxes[kept]], output_size=2, spatial_scale=0.25)
        found = self.classes(torch.relu(self.inner(pooled.flatten(1)))).softmax(dim=1)
        if self.decides and float(found.sum()) > 1e6:  # what the exporter cannot know
            found = found.flip(0)
        best = found.amax(dim=1) > 0.34
        return [{"boxes": boxes[kept][best], "scores": found[best]}]


class Branching(nn.Module):
    """Which of two layers runs is decided by the values."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        head = self.one if float(features.mean()) > 1e6 else self.other
        found: Tensor = head(features)
        return found


class Pasting(nn.Module):
    """What else detectors do: prepare in their first pass, write into levels, cut by computed numbers, make anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scores = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 2, 1)
        self.inner, self.classes = nn.Conv2d(12, 10, 1), nn.Conv2d(10, 3, 1)
        self.scale: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = float(x.new_tensor([24.0]) / 12)
        features = self.body(x).relu()
        scores = self.scores(features).flatten(2)
        corner = scores[0].argmax(dim=1) % 10
        cut = features[:, :, corner[0] : corner[0] + 2]
        level = (scores[0].amax(dim=1) >= scores.amax()).long()  # one of the two
        levels = features.new_zeros(2, features.shape[1], 2, 12)
        for number in range(2):
            there = torch.where(level == number)[0]
            levels[there] = torch.cat([cut, cut])[there]
        anchors = torch.as_tensor([0.1, 0.7], dtype=x.dtype)  # float32 where the graph was written
        picked = self.classes(self.inner(levels).relu()) * anchors.view(2, 1, 1, 1) * self.scale
        low = max(corner[0], 0)  # a tensor or a number
        found: Tensor = picked[corner[1] * 0, :, :, low : low + 2]  # an index that was computed
        canvas = found.new_zeros(3, 2, 12)
        canvas[:, :, low : low + 2] = found[:, :, low - low : low + 2 - low]  # pasted, as masks are
        return canvas


def pasting() -> nn.Module:
    module = Pasting()
    alive(module)
    return module.eval()


def detector(*, decides: bool = True, bar: float = -1e6) -> TinyDetector:
    module = TinyDetector(decides=decides, bar=bar)
    alive(module)
    return module.eval()


@pytest.mark.parametrize("decides", [True, False])
def test_a_detector_loses_half_of_its_channels_with_proof_and_keeps_its_heads(decides: bool) -> None:
    module = detector(decides=decides)
    traced = trace(module, EXAMPLE)
    assert traced.ground.exported.choices
    assert {g.root: g.channels for g in traced.groups} == {"body.0": 12, "body.3": 16, "inner": 10}
    assert set(reasons(traced)) == {"boxes", "classes"}  # and `scores` has but one channel
    small, _, proof = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    assert proof.dtype is torch.float64
    assert proof.largest_relative_difference <= 1e-10
    assert proof.inputs == "example"
    assert proof.outputs == 5  # both outputs and one call of each head, behind the first choice too
    with torch.no_grad():
        (found,) = small(*EXAMPLE)
    assert len(found["boxes"]) == len(found["scores"]) > 0


def test_the_proof_looks_at_the_head_behind_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    module = detector()
    traced = trace(module, EXAMPLE)
    original = shrinking.operate

    def wrong(dense: nn.Module, surgery: Surgery) -> nn.Module:
        small = original(dense, surgery)
        with torch.no_grad():
            small.get_parameter("classes.bias")[0] += 0.5
        return small

    monkeypatch.setattr(shrinking, "operate", wrong)
    with pytest.raises(SurgeryError, match="differs"):
        shrink_proved(module, traced, half(traced.groups), EXAMPLE)


def test_heads_are_what_nothing_but_a_choice_reads() -> None:
    assert head_layers(detector(), EXAMPLE) == {"scores": 1, "boxes": 1}


def test_a_network_that_makes_no_choice_has_no_head_layers() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 22 * 22, 2))
    assert head_layers(module, EXAMPLE) == {}


def test_a_model_with_heads_says_the_same_and_then_its_head_tensors() -> None:
    module = detector()
    boxes, scores, *heads = WithHeads(module, {"scores": 1, "boxes": 1})(*EXAMPLE)
    (said,) = module(*EXAMPLE)
    assert torch.equal(boxes, said["boxes"])
    assert torch.equal(scores, said["scores"])
    features = torch.relu(module.body(*EXAMPLE))
    assert torch.equal(heads[0], module.scores(features))
    assert torch.equal(heads[1], module.boxes(features))
    assert not module.scores._forward_hooks


def test_the_onnx_file_of_a_detector_gives_its_detections(tmp_path: Path) -> None:
    module = detector()
    parity = export_onnx(checkpoint_of(module, inputs=EXAMPLE), tmp_path / "d.onnx")
    assert parity.outputs == 2
    assert not parity.dynamic_batch
    assert "scores, boxes" in (parity.note or "")
    assert parity.largest_relative_difference < 1e-5
    assert [o.name for o in onnx.load(tmp_path / "d.onnx").graph.output] == ["boxes", "scores"]
    session = onnxruntime.InferenceSession(str(tmp_path / "d.onnx"), providers=["CPUExecutionProvider"])
    boxes, _ = session.run(None, {"x": EXAMPLE[0].numpy()})
    torch.testing.assert_close(torch.from_numpy(boxes), module(*EXAMPLE)[0]["boxes"], rtol=1e-4, atol=1e-4)


def test_a_network_that_runs_other_layers_for_other_inputs_is_refused() -> None:
    with pytest.raises(GroupError, match="which layers run may depend on the data"):
        trace(Branching(), EXAMPLE)


def test_a_layer_that_did_not_run_before_a_late_decision_is_named() -> None:
    class Exiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.more = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            features = self.body(x)
            first: Tensor = self.one(features)
            if float(first.mean()) < 1e6:  # sure enough
                return first
            second: Tensor = self.more(features)
            return second

    with pytest.raises(GroupError, match="`more` did not on this input"):
        trace(Exiting(), EXAMPLE)


def test_layers_that_nothing_reaches_on_the_example_stay_whole() -> None:
    traced = trace(detector(bar=1e6), EXAMPLE)
    assert {g.root for g in traced.groups} == {"body.0"}
    assert reasons(traced)["inner"] == "nothing reaches it on the example input"


def test_slices_levels_and_anchors_that_hang_on_values_are_proved() -> None:
    module = pasting()
    traced = trace(module, EXAMPLE)
    assert {g.root: g.channels for g in traced.groups} == {"body": 12, "inner": 10}
    _, _, proof = shrink_proved(pasting(), traced, half(traced.groups), EXAMPLE)
    assert proof.dtype is torch.float32  # 0.1 is another number in float64, and anchors are made in float32
    assert proof.largest_relative_difference < 1e-5
    assert proof.moved > 0.01


def test_an_index_that_was_computed_is_a_choice() -> None:
    assert any(choice.call == "__getitem__" and choice.value[0] == 0 for choice in choices_of(pasting(), EXAMPLE))


def test_what_is_written_into_positions_meets_what_was_there() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)[:, :8]
            base = self.a(x).repeat(3, 1)
            base[torch.arange(len(x))] = self.b(x)
            found: Tensor = self.c(base.relu())
            return found

    module = alive(Written())
    traced = trace(module, EXAMPLE)
    assert [{m.layer for m in g.members} for g in traced.groups] == [{"a", "b", "c"}]
    _, _, proof = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    assert proof.holds


def test_no_exporter_starts_where_shapes_depend_on_values(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[str] = []
    export = torch.export.export

    def noted(*args: Any, **options: Any) -> Any:
        try:
            found = export(*args, **options)
        except Exception as error:
            ends.append(type(error).__name__)
            raise
        ends.append("written")
        return found

    monkeypatch.setattr(torch.export, "export", noted)
    assert exported(detector(), EXAMPLE).choices
    assert ends == ["written"]  # once: with the choices made beforehand


def test_what_a_network_prepares_by_values_in_its_first_pass_is_no_choice() -> None:
    class Prepares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
            self.table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                marks = torch.arange(6.0)
                self.table = marks[marks > 1]
            return self.b(torch.relu(self.a(x))).mean((2, 3)) * self.table

    graph = exported(Prepares(), EXAMPLE)
    assert not graph.choices
    assert graph.open


def test_what_is_written_behind_a_mask_is_no_choice() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            y[y > 0.5] = 0
            found: Tensor = self.b(torch.where(y > 0.2, y, -y))
            return found

    found = exported(alive(Masked()), EXAMPLE)
    assert not found.choices
    assert found.open


def test_a_network_that_takes_another_way_than_the_one_that_was_noted_is_told() -> None:
    module = detector()
    choices = choices_of(module, EXAMPLE)
    with choosing(choices[1:]), pytest.raises(IndexError, match="where `nms` was called"):
        module(*EXAMPLE)


def test_nothing_said_by_the_exporter_reaches_the_user(capfd: pytest.CaptureFixture[str]) -> None:
    trace(detector(), EXAMPLE)
    assert capfd.readouterr() == ("", "")


def test_a_plan_that_removes_nothing_of_a_detector_is_proved_by_all_its_layers() -> None:
    module = detector()
    traced = trace(module, EXAMPLE)
    _, _, proof = shrink_proved(module, traced, PruningPlan(removed={"inner": (0,)}), EXAMPLE)
    assert proof.outputs == 7  # both convolutions of the body stay whole, too
