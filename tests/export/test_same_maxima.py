"""A network that unpools beside a file that chose other maxima: an error of the file only where they are none."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from compressor.export.onnx import proto_of
from compressor.export.parity import TOLERANCE, largest_difference
from compressor.export.same_maxima import outputs_with, with_positions
from compressor.graph.outputs import outputs_of, relative_difference
from tests.support.topologies import alive

INPUT = (2, 3, 8, 8)
EXAMPLE = torch.randn(INPUT, generator=torch.Generator().manual_seed(1))


class Level(nn.Module):
    """Maxima that differ by `slope` alone from place to place: without it all are the same, and the first is taken."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.slope: Tensor
        self.register_buffer("slope", slope * torch.arange(64.0).view(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x.mean((2, 3), keepdim=True)).expand(-1, -1, 8, 8) + self.slope
        found: Tensor = self.b(self.unpool(*self.pool(y)))
        return found


def levels(slope: float) -> tuple[nn.Module, nn.Module]:
    """Two that have the same weights, and another slope."""
    flat, steep = alive(Level(0.0)), alive(Level(slope))
    steep.load_state_dict({**flat.state_dict(), "slope": steep.state_dict()["slope"]})
    return flat, steep


def written(module: nn.Module, folder: Path) -> Path:
    onnx.save(proto_of(module, [EXAMPLE], opset=None, dynamic=True), file := folder / "net.onnx")
    return file


def test_other_maxima_that_are_as_large_are_no_difference(tmp_path: Path) -> None:
    flat, steep = levels(1e-8)
    assert relative_difference(outputs_of(steep, [EXAMPLE])[0], outputs_of(flat, [EXAMPLE])[0]) > 0.1
    worst, outputs, same_maxima = largest_difference(flat, [EXAMPLE], written(steep, tmp_path), (1, 3))
    assert worst < 1e-4
    assert outputs == 1
    assert same_maxima


def test_a_file_that_takes_what_is_no_maximum_stays_wrong(tmp_path: Path) -> None:
    flat, steep = levels(0.05)
    worst, _, same_maxima = largest_difference(steep, [EXAMPLE], written(flat, tmp_path), (1,))
    assert worst > 10 * TOLERANCE
    assert not same_maxima


def test_a_file_with_other_weights_stays_wrong(tmp_path: Path) -> None:
    flat, steep = levels(1e-8)
    with torch.no_grad():
        steep.b.weight.mul_(1.1)  # type: ignore[union-attr, operator]  # a layer's
    worst, _, _ = largest_difference(flat, [EXAMPLE], written(steep, tmp_path), (1,))
    assert worst > 10 * TOLERANCE


@pytest.mark.parametrize("count", [0, 2])
def test_more_or_fewer_maxima_than_it_keeps_are_none_of_its_own(count: int) -> None:
    module = alive(Level(0.05))
    _, places = module.pool(torch.randn(2, 4, 8, 8))  # type: ignore[operator]  # a layer
    assert outputs_with(module, [EXAMPLE], [places] * count) is None


def test_positions_of_another_shape_are_none_of_its_own() -> None:
    assert outputs_with(alive(Level(0.05)), [EXAMPLE], [torch.zeros(2, 4, 2, 2, dtype=torch.int64)]) is None


def test_its_own_positions_change_nothing() -> None:
    module = alive(Level(0.05))
    seen: list[Tensor] = []
    module.pool.register_forward_hook(lambda _, __, found: seen.append(found[1]))  # type: ignore[union-attr, operator]
    expected = outputs_of(module, [EXAMPLE])
    found = outputs_with(module, [EXAMPLE], seen[:1])
    assert found is not None
    assert torch.equal(found[0], expected[0])


def test_a_graph_without_positions_keeps_its_outputs() -> None:
    proto = proto_of(alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))), [EXAMPLE], opset=None, dynamic=True)
    before = [o.name for o in proto.graph.output]
    assert with_positions(proto) == 0
    assert [o.name for o in proto.graph.output] == before
