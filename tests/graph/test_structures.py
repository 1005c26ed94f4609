"""What a network returns keeps its structure where the network is kept as a program."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import load_artifact
from compressor.errors import CompressError, SurgeryError
from compressor.export.onnx import export_onnx
from compressor.graph.outputs import outputs_of, tensors_in
from compressor.graph.recorded import RecordedProgram, program_from
from compressor.graph.structures import Fields, restored, structure_of
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget
from tests.support.topologies import alive, checkpoint_of

INPUT = (1, 3, 12, 12)
HALF = Request(budget=ChannelBudget(ratio=0.5), align=1)


class Shuffling(nn.Module):
    """A channel shuffle, which the class cannot hold narrower, before two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 32, 3), nn.Linear(32, 5)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x).relu()
        y = y.view(y.shape[0], 4, 8, *y.shape[2:]).transpose(1, 2).reshape(y.shape[0], 32, *y.shape[2:])
        return self.fc(y.mean((2, 3))), y.mean((1, 2, 3))


class Named(Shuffling):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits, mean = self.heads(x)
        return {"logits": logits, "aux": mean}


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None
    aux: tuple[Tensor, ...] = ()


class Classy(Shuffling):
    def forward(self, x: Tensor) -> Answer:
        logits, mean = self.heads(x)
        return Answer(logits=logits, aux=(mean, mean + 1))


class Both(NamedTuple):
    logits: Tensor
    images: int


class Nested(Shuffling):
    def forward(self, x: Tensor) -> Any:
        logits, mean = self.heads(x)
        return [Both(logits, x.shape[0]), OrderedDict(scale=0.5, none=None, deep={1: (mean,), "name": "mean"}), ()]


class Listed(Shuffling):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.heads(x)[0]]


def pruned(module: nn.Module) -> Any:
    """The module's checkpoint without half of its channels, kept as a program."""
    found = prune(checkpoint_of(alive(module)), HALF)
    assert found.kept_as == "program"
    return found.checkpoint


def images(count: int) -> Tensor:
    return torch.randn(count, *INPUT[1:], generator=torch.Generator().manual_seed(count))


def shaped(value: Any) -> Any:
    """The structure alone: of a tensor its shape, of fields their names."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {k: shaped(v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ("named", *((k, shaped(v)) for k, v in zip(value._fields, value, strict=True)))
    if isinstance(value, (list, tuple)):
        return type(value)(shaped(v) for v in value)
    return value


@pytest.mark.parametrize("kind", [Named, Nested, Listed])
def test_a_program_returns_what_the_network_returns(kind: type[nn.Module]) -> None:
    module = kind()
    small = pruned(module).module
    assert isinstance(small, RecordedProgram)
    for count in (1, 3):
        assert shaped(small(images(count))) == shaped(module(images(count)))


def test_a_dataclass_comes_back_as_its_fields() -> None:
    small = pruned(Classy()).module
    answer = small(images(3))
    assert isinstance(answer, Fields)
    assert list(answer) == ["logits", "loss", "aux"]
    assert answer.logits is answer["logits"]
    assert answer.loss is None
    assert shaped(answer.aux) == ((3,), (3,))
    torch.testing.assert_close(answer.aux[1], answer.aux[0] + 1)
    with pytest.raises(AttributeError, match="scores"):
        _ = answer.scores


def test_an_artifact_keeps_the_structure_and_prunes_again(workdir: Any) -> None:
    checkpoint = pruned(Classy())
    write_artifact(
        workdir / "net.compressed", checkpoint, source={"path": "net.pt", "sha256": "0" * 64}, results=Results()
    )  # read back in a fresh process
    again = load_artifact(workdir / "net.compressed").module
    assert shaped(again(images(2))) == shaped(checkpoint.module(images(2)))
    assert type(again(images(2))) is type(checkpoint.module(images(2)))
    twice = prune(checkpoint, HALF).checkpoint.module
    assert shaped(twice(images(2))) == shaped(checkpoint.module(images(2)))


def test_the_onnx_file_names_its_outputs_by_the_fields(workdir: Any) -> None:
    import onnxruntime

    export_onnx(pruned(Named()), workdir / "net.onnx")
    session = onnxruntime.InferenceSession(workdir / "net.onnx", providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["logits", "aux"]


def test_the_network_is_left_as_it_was() -> None:
    module = Classy()
    pruned(module)
    assert isinstance(module(images(2)), Answer)
    assert not module._forward_hooks


@pytest.mark.parametrize(
    "value",
    [(), [], {}, None, 3, True, "x", 0.5, float("inf"), torch.zeros(2), [torch.zeros(1), {"a": (torch.ones(1), None)}],
     Both(torch.zeros(1), 3), {1: {True: 2, None: [3]}}, Fields(a=torch.ones(1), b=Fields(c=2))],
)  # fmt: skip
def test_a_structure_survives_json(value: Any) -> None:
    plain, leaves = structure_of(value)
    again = restored(json.loads(json.dumps(plain, allow_nan=False)), leaves)
    assert shaped(again) == shaped(value)
    assert type(again).__name__ in (type(value).__name__, "Output")
    assert [id(t) for t in tensors_in(again)] == [id(t) for t in tensors_in(value)]


def test_what_cannot_be_written_down_is_refused() -> None:
    with pytest.raises(SurgeryError, match="set"):
        structure_of({"a": {1, 2}})


def nested(depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {"value": 1}
    for _ in range(depth):
        plain = {"list": [plain]}
    return plain


@pytest.mark.parametrize(
    "plain",
    [nested(5000), {"output": 7}, {"output": -1}, {"output": "0"}, {"class": "os.system"}, [],
     {"named": [["a b", {"value": 1}]]}, {"named": [["def", {"value": 1}]]}, {"named": [["__class__", {"value": 1}]]},
     {"dict": [[[1], {"value": 1}]]}, {"tuple": 3}, {"dict": 3}, {"number": "x"}, {"fields": [["a"]]}],
)  # fmt: skip
def test_a_structure_of_no_kind_is_refused(plain: Any) -> None:
    step = {"name": "y", "call": "aten.neg.default", "args": [{"node": "x"}], "kwargs": {}}
    recorded = {"nodes": [{"name": "x", "input": True}, step], "outputs": ["y"], "constants": {}, "trainable": [],
                "tied": {}, "returns": plain}  # fmt: skip
    with pytest.raises(CompressError):
        program_from(recorded, {})


def test_tensors_of_a_dataclass_are_outputs() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Answer:
            return Answer(logits=x, aux=(x + 1,))

    assert [float(t) for t in outputs_of(Plain(), [torch.zeros(())])] == [0, 1]
