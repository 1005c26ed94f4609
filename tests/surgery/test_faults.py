"""Whose fault it is: what our own code raises is a bug and looks like one, and a reason is a statement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import trace
from compressor.channels.silenced import _Silence
from compressor.errors import InternalError, SurgeryError
from compressor.surgery.mending import _Mending
from compressor.surgery.proof import prove, reference_of
from compressor.surgery.proved import shrink_proved, unprovable
from tests.channels.test_tracing import EXAMPLE, half
from tests.support.topologies import FusedAttention, alive, head


def network() -> nn.Module:
    return alive(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), head(6)))


def broken(*_: Any, **__: Any) -> Any:
    raise KeyError("a bug")


def test_a_proof_that_stumbles_over_itself_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    traced = trace(module, EXAMPLE)
    monkeypatch.setattr(_Silence, "_silence", broken)
    with pytest.raises(InternalError, match="not with some channels silenced: 'a bug'"):
        unprovable(module, traced, half(traced.groups), EXAMPLE)


def test_a_program_that_cannot_be_mended_for_a_bug_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    module = alive(FusedAttention())
    traced = trace(module, EXAMPLE)
    monkeypatch.setattr(_Mending, "_sizes", broken)
    with pytest.raises(InternalError, match="a program cannot be mended: KeyError: 'a bug'"):
        shrink_proved(module, traced, half(traced.groups), EXAMPLE)


def test_a_small_network_that_does_not_run_is_refused_in_words() -> None:
    module = network()
    traced = trace(module, EXAMPLE)
    reference = reference_of(module, traced, half(traced.groups), EXAMPLE)
    with pytest.raises(SurgeryError) as refused:
        prove(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(8, 6, 3)), reference)
    assert str(refused.value) == "the small network does not run: its own code contains a width of the dense one"
    assert isinstance(refused.value.__cause__, RuntimeError)


def test_a_class_that_takes_no_smaller_tensors_is_refused_in_words() -> None:
    class Stubborn(nn.Conv2d):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "out_channels" and value != 8:
                raise ValueError("eight, always")
            super().__setattr__(name, value)

    module = alive(nn.Sequential(Stubborn(3, 8, 3), nn.ReLU(), head(8)))
    traced = trace(module, EXAMPLE)
    small, surgery, proof = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    assert surgery.program is not None  # its class is refused, and its program does
    assert proof.holds
    assert len(small.get_parameter("0.weight")) == 4


def test_a_dense_network_in_a_type_of_its_own_is_refused_in_words() -> None:
    class Inverted(nn.Module):
        """Inverts a matrix, which torch does not in half precision."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
            self.m = nn.Parameter(torch.eye(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x).mean((2, 3)))) @ torch.linalg.inv(self.m)

    module = alive(Inverted())
    traced = trace(module, EXAMPLE)
    with pytest.raises(SurgeryError, match="the dense network does not compute in float16") as refused:
        reference_of(module.half(), traced, half(traced.groups), EXAMPLE, dtype=torch.float16)
    assert refused.value.hint
