"""A network that is stored as a program takes the sizes that it was exported for, and refuses others by name."""

from __future__ import annotations

import builtins
import copy
import json
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import CompressError, InputError, SurgeryError
from compressor.export.onnx import export_onnx
from compressor.graph.recorded import program_from
from compressor.graph.sizes import UnreadableError, check_inputs, expression_from, takes_of, text_of, value_of
from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.request import Request
from compressor.surgery.mending import as_program
from compressor.surgery.plan import ChannelBudget
from tests.support.topologies import alive, checkpoint_of

PLAIN = builtins.len
HALF = Request(budget=ChannelBudget(ratio=0.5), align=1)


class Table(nn.Module):
    """A table of positions for one size of image alone, and heads in the views."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.out = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
        self.table, self.qkv = nn.Parameter(torch.zeros(1, 9, 16)), nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2) + self.table
        q, k, v = self.qkv(y).view(y.shape[0], 9, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind()
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(y.shape[0], 9, 16)
        return self.out(y.mean(1))


class Counted(nn.Module):
    """Code that asks for the number of images, by `len` or as a number that fixes it."""

    def __init__(self, count: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.stem, self.fc, self.count = nn.Conv2d(3, 32, 3), nn.Linear(32, 5), count

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        images = self.count(y)
        y = y.view(images, 4, 8, *y.shape[2:]).transpose(1, 2).reshape(images, 32, *y.shape[2:])
        return self.fc(y.mean((2, 3)))


def by_length(x: Tensor) -> int:
    return len(x)


def as_a_number(x: Tensor) -> int:
    return int(x.shape[0])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
        first, second = torch.relu(self.a(x)).split([2, 6], 1)
        y = torch.cat([second, first], 1) + self.b(other)
        return self.c(y if mask is None else y * mask)


def pruned(module: nn.Module, shape: tuple[int, ...]) -> Pruned:
    found = prune(checkpoint_of(alive(module), shape), HALF)
    assert found.kept_as == "program"
    return found


# What is fixed is refused by name


def test_another_size_is_refused_by_name(workdir: Any) -> None:
    found = pruned(Table(), (1, 3, 12, 12))
    assert found.takes == "x: any x 3 x 12 x 12"
    assert found.result.to_json()["takes"] == found.takes
    small = found.checkpoint.module
    for module in (small, copy.deepcopy(small).double().float(), program_from(small.recorded, small.state_dict())):
        assert module(torch.zeros(2, 3, 12, 12)).shape == (2, 5)
        with pytest.raises(InputError, match=r"`x` is 1 x 3 x 12 x 16: its dimension 3 is 16, .* needs 12") as refusal:
            module(torch.zeros(1, 3, 12, 16))
        assert "--input" in str(refusal.value.hint)
        with pytest.raises(InputError, match="`x` has 3 dimensions"):
            module(torch.zeros(3, 12, 12))
    recorded = json.loads(json.dumps(found.checkpoint.surgery.to_json()))["program"]
    assert recorded["takes"]["inputs"] == [{"name": "x", "shape": [None, 3, 12, 12]}]
    export_onnx(found.checkpoint, workdir / "net.onnx")
    session = onnxruntime.InferenceSession(workdir / "net.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(None, {"input_0": torch.zeros(1, 3, 12, 16).numpy()})


def test_a_number_of_images_that_the_code_fixed_is_refused_by_name() -> None:
    found = pruned(Counted(as_a_number), (1, 3, 12, 12))
    with pytest.raises(InputError, match=r"dimension 0 is 4, .* needs 1"):
        found.checkpoint.module(torch.zeros(4, 3, 12, 12))


def test_a_number_of_images_that_the_code_asks_for_by_its_length_stays_open() -> None:
    dense = alive(Counted(by_length))
    found = prune(checkpoint_of(dense, (1, 3, 12, 12)), HALF)
    assert found.kept_as == "program"
    images = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    together = found.checkpoint.module(images)
    for number in range(5):
        torch.testing.assert_close(together[number : number + 1], found.checkpoint.module(images[number : number + 1]))
    assert builtins.len is PLAIN


def test_a_note_that_numbers_can_be_counted_in_32_bits_is_no_limit_of_the_network() -> None:
    net, x = nn.Conv2d(3, 4, 3).eval(), torch.zeros(2, 3, 9, 9)
    auto = torch.export.Dim.AUTO
    program = torch.export.export(net, (x,), dynamic_shapes=({2: auto, 3: auto},))
    (name,) = program.graph_signature.user_inputs
    limit = 2**31 - 1
    program._guards_code = [f"3 * L['{name}'].size()[2] <= {limit}", f"L['{name}'].size()[3] <= {limit - 1}"]
    assert takes_of(program)["unread"] == 0
    assert [c for c in takes_of(program)["holds"] if limit in c] == []
    assert [c for c in takes_of(program)["holds"] if limit - 1 in c] != []


def test_inputs_come_by_name_and_others_are_refused() -> None:
    module, (x, other) = alive(TwoInputs()), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    program = as_program(module, (x, other))
    expected = module(x, other)
    for answer in (program(x, other), program(x, other=other), program(other=other, x=x), program(x, other, mask=None),
                   program(x, other, None)):  # fmt: skip
        torch.testing.assert_close(answer, expected)
    with pytest.raises(InputError, match="no input `mask`"):
        program(x, other, mask=torch.ones(8))
    with pytest.raises(InputError, match="takes 2 inputs"):
        program(x)
    with pytest.raises(InputError, match="takes 2 inputs"):
        program(x, other, torch.ones(8))
    with pytest.raises(InputError, match="`other`"):
        program(x, other[:, :3])


# Conditions


def test_a_guard_is_read_and_evaluated() -> None:
    texts = {
        "L['x'].size()[2] > 20": (["gt", ["size", 0, 2], 20], "(x.shape[2] > 20)"),
        "(L['x'].size()[2] % 7) != 0": (["ne", ["mod", ["size", 0, 2], 7], 0], "((x.shape[2] % 7) != 0)"),
        "2 <= L['y'].size()[0] <= 9": (["and", ["le", 2, ["size", 1, 0]], ["le", ["size", 1, 0], 9]], None),
        "(1 + (((-1) + L['x'].size()[3]) // 2)) != 1": (
            ["ne", ["add", 1, ["floordiv", ["add", -1, ["size", 0, 3]], 2]], 1], None,
        ),
        "torch.sym_max(1, L['x'].size()[0]**2) == 4": (
            ["eq", ["max", 1, ["mul", ["size", 0, 0], ["size", 0, 0]]], 4], "(max(1, (x.shape[0] * x.shape[0])) == 4)",
        ),
    }  # fmt: skip
    for text, (expected, shown) in texts.items():
        expression = expression_from(text, ["x", "y"])
        assert expression == expected
        assert shown in (None, text_of(expression, ["x", "y"]))
        assert value_of(expression, [(2, 3, 22, 8), (4,)]) is True
    assert value_of(expression_from("L['x'].size()[2] > 20", ["x"]), [(2, 3, 20, 8)]) is False


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true')", "L['z'].size()[0] > 1", "x.size()[0] > 1", "L['x'].size()[i] > 1", "1.5 > 1",
     "f(3)", "L['x'].size()[0] / 2 > 1", "2 ** 1000 > 1", "(", "lambda: 1"],
)  # fmt: skip
def test_a_guard_of_another_form_is_not_read(text: str) -> None:
    with pytest.raises(UnreadableError):
        expression_from(text, ["x"])


def record(shape: Any = (None, 3), holds: Any = ()) -> dict[str, Any]:
    step = {"name": "y", "call": "aten.neg.default", "args": [{"node": "x"}], "kwargs": {}}
    return {
        "nodes": [{"name": "x", "input": True}, step], "outputs": ["y"], "constants": {}, "trainable": [], "tied": {},
        "takes": {"inputs": [{"name": "x", "shape": shape and list(shape)}], "holds": list(holds)},
        "returns": {"output": 0},
    }  # fmt: skip


def test_a_condition_is_checked_and_named() -> None:
    program = program_from(record(holds=[["gt", ["size", 0, 0], 2]]), {})
    assert program(torch.ones(3, 3)).shape == (3, 3)
    with pytest.raises(InputError, match=r"`x` of 2 x 3: it requires \(x.shape\[0\] > 2\)"):
        program(torch.ones(2, 3))


NONE_OF_OURS = [
    record(shape=("3",)), record(shape=(-1,)), record(shape=(True,)), record(holds=["1 > 2"]),
    record(holds=[["gt", 1]]), record(holds=[["system", 1]]), record(holds=[["gt", ["size", 1, 0], 2]]),
    record(holds=[["gt", ["size", 0, 9], 2]]), record(holds=[["mod", ["size", 0, 0], 0]]), record(holds=[True]),
    {**record(), "takes": {"inputs": []}}, {**record(), "takes": {"inputs": [], "holds": []}},
    {**record(), "takes": {"inputs": [{"name": "a b"}], "holds": []}},
]  # fmt: skip


@pytest.mark.parametrize("takes", NONE_OF_OURS)
def test_a_record_of_no_kind_is_refused(takes: dict[str, Any]) -> None:
    with pytest.raises(CompressError):
        program_from(takes, {})(torch.ones(3, 3))


def test_a_record_of_before_there_was_one_still_runs() -> None:
    old = {key: value for key, value in record().items() if key not in ("takes", "returns")}
    assert program_from(old, {})(torch.ones(2, 5)).shape == (2, 5)


def test_sizes_that_are_not_known_are_not_checked() -> None:
    check_inputs({"inputs": [{"name": "x", "shape": None}], "holds": []}, [torch.ones(2)])
    with pytest.raises(SurgeryError):
        value_of(["size", 0, 3], [(1, 2)])
