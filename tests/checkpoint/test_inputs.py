"""What a network reads: inputs by name, type and range, random inputs within it, and the one shape that fits."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.silenced import silenced_outputs
from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import load_artifact, open_artifact
from compressor.checkpoint.examples import with_examples_of
from compressor.checkpoint.fitting import fitting
from compressor.checkpoint.inputs import Examples, example_inputs
from compressor.checkpoint.loading import load
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import CheckpointError
from compressor.graph.input_spec import InputSpec, random_like, spec_from_json, spec_from_text, specs_of
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget
from tests.attacks.test_edited_artifacts import edit, make_old
from tests.support.topologies import checkpoint_of

NOWHERE = Architecture(ref="pickle")


def examples(module: nn.Module, *given: str) -> Examples:
    return example_inputs(module.eval(), inputs=given, stored=None, architecture=NOWHERE)


class Mixed(nn.Module):
    """An image and token numbers; the first layer is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.table, self.head = nn.Conv2d(3, 8, 3), nn.Embedding(50, 8), nn.Linear(16, 5)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        text = self.table(input_ids)
        if attention_mask is not None:
            text = text * attention_mask[:, :, None]
        found: Tensor = self.head(torch.cat([self.a(pixel_values).relu().mean((2, 3)), text.mean(1)], 1))
        return found


class Tokens(nn.Module):
    def __init__(self, padding: int | None = None, shift: int = 0) -> None:
        super().__init__()
        self.table, self.head, self.shift = nn.Embedding(50, 8, padding_idx=padding), nn.Linear(8, 4), shift

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.table((ids + self.shift).view(-1)).view(*ids.shape, -1).mean(1))
        return found


class Latent(nn.Module):
    """A generator: a vector, viewed as an image of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.ConvTranspose2d(32, 16, 4), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1))

    def forward(self, z: Tensor) -> Tensor:
        found: Tensor = self.net(z.view(-1, 32, 1, 1))
        return found


class Curve(nn.Module):
    """Diverges outside [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for q in torch.split(torch.tanh(8 * self.a(x)), 3, 1):
            x = x + q * (x * x - x)
            x = x + q * (x * x - x)
        return x


SPECS = {
    "1x12": InputSpec(shape=(1, 12)),
    "1×3×8×8": InputSpec(shape=(1, 3, 8, 8)),
    "ids=1x12": InputSpec(name="ids", shape=(1, 12)),
    "ids=1x12:int64<50": InputSpec(name="ids", shape=(1, 12), dtype=torch.int64, below=50),
    "x=1x3x8x8:float32<0.5": InputSpec(name="x", shape=(1, 3, 8, 8), dtype=torch.float32, below=0.5),
    "1x4:bool": InputSpec(shape=(1, 4), dtype=torch.bool),
    "1x4<7": InputSpec(shape=(1, 4), below=7),
}


@pytest.mark.parametrize("text", SPECS)
def test_an_input_is_written_with_name_type_and_range(text: str) -> None:
    spec = spec_from_text(text)
    assert spec == SPECS[text]
    assert spec_from_json(spec.to_json()) == spec
    assert spec_from_text(spec.shown) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("big", "is not a shape"), ("", "is not a shape"), ("1x", "is not a shape"), ("1x0x3", "is not a shape"),
        ("1x-3", "is not a shape"), ("1x²", "is not a shape"), ("ids=", "is not a shape"), ("1x1e3", "is not a shape"),
        ("a b=1x3", "is no name"), ("=1x3", "is no name"), ("1x3:int65", "no type `int65`"), ("1x3:", "no type ``"),
        ("1x3<nan", "no upper bound"), ("1x3<inf", "no upper bound"), ("1x3<0", "no upper bound"),
        ("1x3<-2", "no upper bound"), ("1x3<", "no upper bound"), ("1x3:int64<2.5", "no upper bound of int64"),
        ("1x3:bool<2", "no upper bound of bool"), ("1x1x99999999x99999999", "holds 1e+16 numbers"),
        ("1x3:uint8<300", "uint8 holds only numbers from 0 to 256"), ("1x3:int64<1e30", "int64 holds only numbers"),
        ("1x3<1e30", "too large"), ("1x3:float16<1e6", "float16 holds only numbers"), ("9" * 400, "is not a shape"),
        ("1x3<1e400", "no upper bound"),
    ],
)  # fmt: skip
def test_what_is_no_input_is_refused_with_a_hint(text: str, says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        spec_from_text(text)
    assert says in str(caught.value)
    assert caught.value.hint


def test_token_numbers_are_random_below_the_size_of_their_table() -> None:
    found = examples(Tokens(), "1x40")
    (ids,) = found.tensors
    assert ids.dtype is torch.int64
    assert len(ids.unique()) > 10
    assert found.specs == (InputSpec(name="ids", shape=(1, 40), dtype=torch.int64, low=0, below=50),)


@pytest.mark.parametrize("padding", [0, 49])
def test_token_numbers_are_no_padding(padding: int) -> None:
    (ids,) = examples(Tokens(padding), "1x400").tensors
    assert padding not in ids
    assert len(ids.unique()) > 45


def test_token_numbers_that_are_shifted_stay_within_the_table() -> None:
    found = examples(Tokens(shift=30), "1x40")
    assert found.specs[0].below == 12  # half of half of it


def test_inputs_of_several_types_are_found_by_running_the_network() -> None:
    image, ids, mask = examples(Mixed(), "1x3x8x8", "1x12", "1x12").tensors
    assert image.dtype is torch.float32
    assert ids.dtype is torch.int64
    assert 30 < int(ids.max()) < 50
    assert mask.dtype is torch.int64
    assert bool((mask == 1).all())


def test_named_inputs_come_in_the_order_of_the_forward() -> None:
    found = examples(Mixed(), "input_ids=1x12:int64<7", "pixel_values=1x3x8x8")
    assert [spec.name for spec in found.specs] == ["pixel_values", "input_ids"]
    assert int(found.tensors[1].max()) < 7
    assert [tuple(t.shape) for t in found.tensors] == [(1, 3, 8, 8), (1, 12)]
    free = examples(Mixed(), "input_ids=1x12", "1x3x8x8")
    assert [tuple(t.shape) for t in free.tensors] == [(1, 3, 8, 8), (1, 12)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("pixels=1x3x8x8", "input_ids=1x12"), "takes no input `pixels`"),
        (("input_ids=1x12",), "takes `pixel_values` before `input_ids`"),
        (("input_ids=1x12", "input_ids=1x12"), "set twice"),
        (("1x3x8x8", "1x3x8x8", "input_ids=1x12", "1x12"), "4 inputs are set"),
    ],
)
def test_names_that_do_not_fit_are_refused_with_those_that_do(given: tuple[str, ...], says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        examples(Mixed(), *given)
    assert says in str(caught.value)
    assert "`pixel_values`, `input_ids`" in f"{caught.value} {caught.value.hint}"


class Skipping(nn.Module):
    """An input that need not be set stands between two that are."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        out: Tensor = self.a(x if mask is None else x * mask)
        return out if scale is None else out * scale


def test_inputs_that_need_not_be_set_are_skipped() -> None:
    module = Skipping()
    x, scale = examples(module, "x=1x4", "scale=1x3").tensors
    assert torch.equal(module(x, scale), module.a(x) * scale)


def test_numbers_from_0_to_1_are_the_second_try() -> None:
    torch.manual_seed(0)
    module = Curve()
    module.a.weight.data.mul_(40)
    with torch.no_grad():
        assert not torch.isfinite(module(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))).all()
    (image,) = examples(module, "1x3x8x8").tensors
    assert 0 <= float(image.min()) < 0.1 < 0.9 < float(image.max()) < 1


def test_weights_that_are_broken_are_still_said_to_be() -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    module[0].weight.data.fill_(torch.inf)
    with pytest.raises(CheckpointError, match="not finite"):
        examples(module, "1x4")


def test_random_inputs_stay_where_the_examples_are() -> None:
    ids, mask = torch.tensor([[3, 9, 5]]), torch.ones(1, 3, dtype=torch.bool)
    image, bias = torch.rand(1, 3, 8, 8), torch.tensor([[0.0, -torch.inf, 0.0]])
    drawn = random_like([ids, mask, image, bias], batch=64, seed=1)
    assert drawn[0].shape == (64, 3)
    assert set(drawn[0].unique().tolist()) == set(range(3, 10))
    assert bool(drawn[1].all())
    assert 0 <= float(drawn[2].min()) < float(drawn[2].max()) <= 1
    assert len(drawn[2].unique()) > 1000
    assert set(drawn[3].unique().tolist()) == {0.0, -torch.inf}
    again = random_like([ids, mask, image, bias], batch=64, seed=2)
    assert not torch.equal(drawn[0], again[0])
    assert random_like([torch.tensor(3)])[0].shape == ()
    assert float(random_like([torch.zeros(1, 100)])[0].std()) > 0.5  # zeros say nothing of what the network reads


def test_a_generator_reads_a_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.process_time()
    assert fitting(Latent().eval()) == (1, 32)
    assert time.process_time() - started < 3
    monkeypatch.setattr("compressor.checkpoint.fitting._candidates", lambda _: [(1, 32, 28, 28)])
    with pytest.raises(CheckpointError):  # it would run, and answer 784 times
        fitting(Latent().eval())


def test_a_shape_is_found_without_computing() -> None:
    class Heavy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 512, 512, 3, padding=1) for i in range(6)))
            self.head = nn.Linear(512 * 512, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.net(x).mean(1).flatten(1))
            return found

    started = time.process_time()
    assert fitting(Heavy().eval()) == (1, 3, 512, 512)
    assert time.process_time() - started < 3


def test_a_network_that_needs_values_is_tried_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Valued(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 28 * 28, 3)

        def forward(self, x: Tensor) -> Tensor:
            float(x.sum())
            found: Tensor = self.head(self.a(x).flatten(1))
            return found

    assert fitting(Valued().eval()) == (1, 1, 28, 28)
    monkeypatch.setattr("compressor.checkpoint.fitting.SECONDS", -1.0)
    with pytest.raises(CheckpointError, match="cannot be determined"):
        fitting(Valued().eval())


def test_what_else_the_machine_does_decides_no_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits(nn.Module):
        """It waits for others longer than it may compute."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.5)
            found: Tensor = self.a(x).mean((2, 3))
            return found

    monkeypatch.setattr("compressor.checkpoint.fitting.SECONDS", 2.0)
    with pytest.raises(CheckpointError, match="images of several sizes"):
        fitting(Waits().eval())


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        (nn.Sequential(nn.Conv1d(2, 4, 3)), "--input 1x2xLENGTH"),
        (nn.Sequential(nn.Conv3d(2, 4, 3)), "--input 1x2xDEPTHxHEIGHTxWIDTH"),
        (Tokens(), "1x16:int64<50"),
        (nn.Sequential(nn.ReLU()), "several by name"),
    ],
)
def test_what_cannot_be_told_is_asked_for(module: nn.Module, hint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        fitting(module.eval())
    assert hint in str(caught.value.hint)


def without_specs(recipe: dict[str, Any]) -> None:
    del recipe["inputs"], recipe["types"]


def test_an_artifact_draws_its_inputs_as_they_were_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = examples(Mixed(), "input_ids=1x12<9", "pixel_values=1x3x8x8:float32<1")
    base = checkpoint_of(nn.Sequential(nn.Conv2d(3, 4, 3)))
    checkpoint = dataclasses.replace(base, example_inputs=found.tensors, input_specs=found.specs)
    folder = tmp_path / "x.compressed"
    checkpoint = dataclasses.replace(checkpoint, module=nn.Sequential(nn.Conv2d(3, 4, 3)))
    write_artifact(folder, checkpoint, source={"path": "x", "sha256": "0" * 64}, results=Results(), verify=False)
    again = load_artifact(folder)
    assert again.input_specs == found.specs
    for mine, other in zip(again.example_inputs, found.tensors, strict=True):
        assert mine.dtype is other.dtype
        assert torch.equal(mine, other)
    make_old(folder)
    edit(folder, without_specs)
    older = open_artifact(folder).checkpoint()
    assert [tuple(t.shape) for t in older.example_inputs] == [(1, 3, 8, 8), (1, 12)]
    assert older.example_inputs[1].dtype is torch.int64


def test_an_artifact_reads_other_inputs_by_the_names_that_it_knows(tmp_path: Path) -> None:
    base = checkpoint_of(nn.Sequential(nn.Conv2d(3, 4, 3)))
    known = dataclasses.replace(
        base, example_inputs=(torch.rand(1, 3, 8, 8),), input_specs=(InputSpec(name="pixels", shape=(1, 3, 8, 8)),)
    )
    folder = tmp_path / "x.compressed"
    write_artifact(folder, known, source={"path": "x", "sha256": "0" * 64}, results=Results(), verify=False)
    found = load(folder, inputs=("pixels=1x3x9x9:float32<1",))
    assert found.example_inputs[0].shape == (1, 3, 9, 9)
    assert float(found.example_inputs[0].min()) >= 0
    assert found.preprocessing.size == (9, 9)
    with pytest.raises(CheckpointError, match="no input `image`"):
        load(folder, inputs=("image=1x3x9x9",))
    with pytest.raises(CheckpointError, match="does not run on 1x2x9x9"):
        load(folder, inputs=("1x2x9x9",))


def test_a_program_in_a_file_keeps_its_images_and_gets_other_tokens(tmp_path: Path) -> None:
    image, ids = torch.rand(1, 3, 8, 8), torch.zeros(1, 12, dtype=torch.int64)
    torch.export.save(torch.export.export(Mixed().eval(), (image, ids)), tmp_path / "mixed.pt2")
    found = load(tmp_path / "mixed.pt2")
    assert torch.equal(found.example_inputs[0], image)
    assert len(found.example_inputs[1].unique()) > 5
    assert found.input_specs[1].below == 50


def test_what_an_example_looks_like_is_told_from_it() -> None:
    ids, image = specs_of([torch.tensor([[3, 9]]), torch.rand(1, 2)])
    assert (ids.dtype, ids.low, ids.below) == (torch.int64, 3, 10)
    assert (image.dtype, image.below) == (torch.float32, None)


def test_the_first_image_of_the_data_is_the_example_and_its_range_is_drawn_from() -> None:
    generator = torch.Generator().manual_seed(3)
    images = Images(0.2 + 0.3 * torch.rand(20, 3, 8, 8, generator=generator), torch.zeros(20, dtype=torch.int64))
    data = Data(name="some", source="", train=images, tune=None, test=None)
    base = dataclasses.replace(
        checkpoint_of(nn.Sequential(nn.Conv2d(3, 4, 3))),
        example_inputs=(torch.randn(1, 3, 8, 8),),
        preprocessing=Preprocessing(mean=(), std=(), size=(8, 8), channels=3),
    )
    found = with_examples_of(base, data)
    assert torch.equal(found.example_inputs[0], images.images[:1])
    (spec,) = found.input_specs
    assert 0.2 <= spec.low < 0.21 < 0.49 < spec.below <= 0.5 + 1e-6  # type: ignore[operator]  # numbers here
    other = dataclasses.replace(base, example_inputs=(torch.randn(1, 3, 9, 9),))
    assert with_examples_of(other, data) is other
    only_test = dataclasses.replace(data, train=None, test=images)
    assert with_examples_of(base, only_test) is base
    assert with_examples_of(base, None) is base


def test_a_proof_sees_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.extend(args[3])
        return silenced_outputs(*args, **kwargs)

    monkeypatch.setattr("compressor.surgery.proof.silenced_outputs", watched)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    images = Images(torch.rand(20, 3, 8, 8), torch.zeros(20, dtype=torch.int64))
    base = dataclasses.replace(
        checkpoint_of(module),
        example_inputs=(torch.randn(1, 3, 8, 8),),
        preprocessing=Preprocessing(mean=(), std=(), size=(8, 8), channels=3),
    )
    data = Data(name="some", source="", train=images, tune=None, test=None)
    proof = prune(base, Request(budget=ChannelBudget(ratio=0.5)), data=data).proof
    assert proof.inputs == "example and random"
    assert torch.equal(seen[0][:1].float(), images.images[:1])
    assert all(float(batch.min()) >= 0 and float(batch.max()) <= 1 for batch in seen)
