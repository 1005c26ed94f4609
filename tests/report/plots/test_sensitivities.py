from __future__ import annotations

import pytest

from compressor.report.plots.sensitivities import picture
from tests.support.picture import Picture


def test_every_group_has_a_curve_on_a_logarithmic_axis() -> None:
    groups = [
        {"root": "conv1", "widths": [8, 6, 4, 2], "errors": [0.0, 0.001, 0.1, 3.0]},
        {"root": "layer1.0.conv2", "widths": [64, 32], "errors": [0.0, 0.01]},
    ]
    found = Picture(picture({"name": "net", "groups": groups}))
    assert {"conv1", "layer1.0.conv2", "8", "64", "1", "0.01", "0.0001", "all stay", "none"} <= set(found.texts)
    assert set(found.lines) == {"conv1", "layer1.0.conv2"}
    low, below, above, high = found.titled[:4]
    height = low.y - high.y  # from the floor, where no error is, to the ceiling, beyond which all are the same
    assert (low.title, below.title, high.title) == ("8 channels: 0", "6 channels: 0.001", "2 channels: 3")
    assert low.y - below.y == pytest.approx(height / 4, abs=0.2)
    assert low.y - above.y == pytest.approx(3 * height / 4, abs=0.2)
    assert low.x < below.x
    assert above.x - low.x == pytest.approx(2 * (below.x - low.x), abs=0.2)
    assert found.titled[5].y == pytest.approx(low.y - height / 2, abs=0.2)
