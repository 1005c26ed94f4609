"""Early exits: what they say, when images leave, how they are trained, and the file in which leaving saves time."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.checkpoint.recipes import Recipe, Schedule, Step
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.splits import Data, SplitName
from compressor.errors import DataError, ExportError, GroupError, PlanError, RetrainError
from compressor.graph.outputs import outputs_and_layers
from compressor.measuring.image_stream import timed_on_images
from compressor.measuring.quality import evaluate_onnx
from compressor.measuring.runtimes._onnxruntime import profiled
from compressor.measuring.turns import speedup
from compressor.surgery.mending import as_program
from compressor.training.domains.features import layer_named
from compressor.training.exits.branches import Certainty, EarlyExits, certainty, macs_of_exits, train_exits, with_exits
from compressor.training.exits.onnx import export_exits
from compressor.training.exits.threshold import Answers, alike, answers, at_threshold, exit_taken, threshold_for
from tests.support.command_line import ARCH, done, refused

SEES = Preprocessing(mean=(0.5,), std=(0.5,), size=(8, 8), channels=1)
RECIPE = Recipe(budget=Step(epochs=2), schedule=Schedule(rate=0.05), batch_size=16, augment=(), seed=3)
EXAMPLE = (torch.zeros(1, 1, 8, 8),)


class Net(nn.Module):
    """Three convolutions; the input of the second goes around it, and around the exits behind the first and second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.3))
        self.act = nn.ReLU(inplace=True)
        self.third = nn.Conv2d(4, 8, 3)
        self.pair = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        y = self.act(self.act(self.second(first)) + first)
        tokens = self.third(y).flatten(2).transpose(1, 2)  # [batch, 36, 8]
        scores: Tensor = self.head(self.pair(tokens)[0].mean(1))
        return scores


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def halves(count: int, *, seed: int) -> Images:
    """Noise, with the upper (0) or the left half (1) a little brighter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = torch.randint(0, 160, (count, 1, 8, 8), generator=generator)
    images[labels == 0, :, :4] += 60
    images[labels == 1, :, :, :4] += 60
    return Images(images.to(torch.uint8), labels)


def images_of(count: int) -> Data:
    return Data(name="halves", source="", train=halves(count, seed=0), tune=halves(60, seed=1), test=halves(60, seed=2))


def checkpoint_of(module: nn.Module) -> Checkpoint:
    return Checkpoint(
        module=module, example_inputs=EXAMPLE, architecture=Architecture(ref="tests.training.exits.test_branches:net"),
        preprocessing=SEES, classes=("upright", "lying"), name="net", path="", sha256="",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> EarlyExits:
    found = train_exits(
        with_exits(net(), ("second", "first"), EXAMPLE), images_of(96), recipe=RECIPE, preprocessing=SEES
    )
    assert isinstance(found.module, EarlyExits)
    return found.module


@pytest.fixture(scope="module")
def decisive(trained: EarlyExits) -> EarlyExits:
    """The second branch surer than the first, so that images leave at each."""
    exits = copy.deepcopy(trained)
    with torch.no_grad():
        exits.branches[1].get_parameter("3.weight").mul_(4)
    return exits


@pytest.fixture(scope="module")
def files(decisive: EarlyExits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("exits")
    tune = images_of(8).split(SplitName.TUNE)
    found = answers(decisive, tune, split="tune", preprocessing=SEES)
    certain = torch.unique(found.certain)
    middles = ((certain[1:] + certain[:-1]) / 2).tolist()
    middle = next(m for m in middles if set(exit_taken(found.certain, m).tolist()) == {0, 1, 2})
    thresholds = {"first": 0.0, "middle": middle, "never": math.inf}
    made: dict[str, Any] = {"middle threshold": middle, "found": found}
    for name, threshold in thresholds.items():
        made[name] = folder / f"{name}.onnx"
        made["parity"] = export_exits(decisive, checkpoint_of(decisive.network), made[name], threshold=threshold)
    return made


def answered(right: list[list[int]], certain: list[list[float]]) -> Answers:
    return Answers(right=torch.tensor(right).bool(), certain=torch.tensor(certain), split="tune")


class TestCertainty:
    def test_it_is_what_is_worked_out_by_hand(self) -> None:
        scores = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -90.0, -90.0]])
        entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        assert certainty(scores).tolist() == pytest.approx([0, 1, 1 - entropy / math.log(4)], abs=1e-6)
        assert certainty(scores, Certainty.PROBABILITY).tolist() == pytest.approx([0.25, 1, 0.75], abs=1e-6)

    @given(st.lists(st.floats(-40, 40, width=32), min_size=2, max_size=6))
    def test_it_lies_between_nothing_and_one(self, scores: list[float]) -> None:
        for kind in Certainty:
            assert 0 <= float(certainty(torch.tensor([scores]), kind)) <= 1 + 1e-6


class TestWhatTheExitsSay:
    def test_the_network_says_what_it_said_and_a_branch_reads_its_layer(self) -> None:
        module, images = net(), torch.randn(3, 1, 8, 8)
        exits = with_exits(module, ("second", "first"), EXAMPLE)
        own, *early = exits(images)
        outputs, layers = outputs_and_layers(module, [images], ("first", "second"))
        # with gradients a kernel may take its sums in another order, by the processor
        assert torch.allclose(own, outputs[0], rtol=1e-6, atol=1e-7)
        assert exits.after == ("first", "second")  # as they run, not as they were named
        assert torch.allclose(early[0], exits.branches[0](layers["first"][0]), rtol=1e-6, atol=1e-7)
        with torch.no_grad():  # `second` gives what the next layer writes over: the branch must see it before
            second = exits.branches[1](module.second(layers["first"][0]))
        assert torch.allclose(early[1], second, rtol=1e-6, atol=1e-7)

    def test_the_branches_are_drawn_by_the_seed(self) -> None:
        first, again, other = (with_exits(net(), ("first",), EXAMPLE, seed=s) for s in (1, 1, 2))
        weights = [e.branches[0].get_parameter("3.weight") for e in (first, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_a_branch_reads_tokens_and_vectors_too(self) -> None:
        torch.manual_seed(0)
        encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        tokens = nn.Sequential(nn.Unflatten(1, (4, 8)), encoder, nn.Flatten(), nn.Linear(32, 3), nn.Linear(3, 3)).eval()
        exits = with_exits(tokens, ("0",), (torch.zeros(1, 32),))
        assert [tuple(s.shape) for s in exits(torch.randn(5, 32))] == [(5, 3), (5, 3)]
        vectors = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 400), nn.Linear(400, 3)).eval()
        exits = with_exits(vectors, ("0",), (torch.zeros(1, 8),))
        assert [tuple(s.shape) for s in exits(torch.randn(5, 8))] == [(5, 3), (5, 3)]

    def test_macs_are_counted_by_hand(self) -> None:
        exits = with_exits(net(), ("first", "second"), EXAMPLE)
        first, branch, second = 64 * 9 * 4, 4 * 64 * 2, 64 * 9 * 16
        *early, whole = macs_of_exits(exits, EXAMPLE)
        assert early == [first + branch, first + branch + second + branch]
        assert whole > early[-1] + 36 * 9 * 4 * 8

    def test_the_network_is_lent(self) -> None:
        module = net().train()
        before = copy.deepcopy(module)
        with_exits(module, ("first",), EXAMPLE)
        assert module.training
        assert not module.first._forward_hooks
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, before.state_dict()[name])


class TestTraining:
    def test_a_frozen_network_keeps_every_byte_and_its_statistics(self, trained: EarlyExits) -> None:
        for name, tensor in net().state_dict().items():
            assert torch.equal(trained.network.state_dict()[name], tensor), name
        fresh = with_exits(net(), ("first", "second"), EXAMPLE)
        assert not torch.equal(
            fresh.branches[0].get_parameter("3.weight"), trained.branches[0].get_parameter("3.weight")
        )
        assert all(p.requires_grad for p in trained.parameters())

    def test_the_branches_learn(self, trained: EarlyExits) -> None:
        data = images_of(8)
        right = answers(trained, data.split(SplitName.TEST), split="test", preprocessing=SEES).right
        assert float(right[:, 0].float().mean()) > 0.8

    def test_joint_training_moves_the_network_as_its_weights_say(self) -> None:
        exits = with_exits(net(), ("first",), EXAMPLE)
        moved = train_exits(exits, images_of(48), recipe=RECIPE, preprocessing=SEES, joint=True).module
        assert isinstance(moved, EarlyExits)
        assert not torch.equal(moved.network.head.weight, exits.network.head.weight)  # type: ignore[arg-type]  # tensors
        unheard = train_exits(
            exits, images_of(48), recipe=dataclasses.replace(RECIPE, weight_decay=0.0), preprocessing=SEES, joint=True,
            weights=(0.0, 1.0),
        ).module  # fmt: skip
        assert isinstance(unheard, EarlyExits)
        assert torch.equal(unheard.network.head.weight, exits.network.head.weight)  # type: ignore[arg-type]  # as above
        assert not torch.equal(
            unheard.network.get_parameter("first.0.weight"), exits.network.get_parameter("first.0.weight")
        )

    @pytest.mark.parametrize(("joint", "shares"), [(True, (0.5, 1.0, 2.5)), (False, (9.0, 1.0, 3.0))])
    def test_the_loss_is_the_mean_of_the_exits_by_their_weights(self, joint: bool, shares: tuple[float, ...]) -> None:
        """One batch of all images: what training says of its first loss is what the exits give by hand."""
        torch.manual_seed(0)
        rest = (nn.Conv2d(4, 32, 3, padding=1), nn.Flatten(), nn.Linear(32 * 64, 2))
        plain = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), *rest)
        exits = with_exits(plain, ("0", "1"), EXAMPLE)
        recipe = dataclasses.replace(
            RECIPE, budget=Step(epochs=1), schedule=Schedule(rate=1e-9), batch_size=32, label_smoothing=0.1
        )
        data = images_of(32)
        images = data.split(SplitName.TRAIN)
        assert isinstance(images, Images)
        found = train_exits(exits, data, recipe=recipe, preprocessing=SEES, joint=joint, weights=shares)
        working = copy.deepcopy(exits).train()  # the branches' norms see the batch
        with torch.no_grad():
            each = [
                float(nn.functional.cross_entropy(scores, images.labels, label_smoothing=0.1))
                for scores in working(SEES(images.images))
            ]
        heard = shares if joint else (0.0, *shares[1:])
        expected = sum(s * e for s, e in zip(heard, each, strict=True)) / sum(heard)
        assert found.history[0].train_loss == pytest.approx(expected, rel=1e-4)

    def test_the_exits_are_lent(self) -> None:
        exits = with_exits(net().requires_grad_(False), ("first",), EXAMPLE)
        before = copy.deepcopy(exits)
        found = train_exits(exits, images_of(48), recipe=RECIPE, preprocessing=SEES).module
        for name, tensor in exits.state_dict().items():
            assert torch.equal(tensor, before.state_dict()[name])
        for one in (exits, found):
            assert {n: p.requires_grad for n, p in one.named_parameters()} == {
                n: not n.startswith("network") for n, _ in before.named_parameters()
            }

    @pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (1.0, 0.0), (1.0, 1.0, 1.0)])
    def test_weights_that_fit_no_exit_are_refused(self, weights: tuple[float, ...]) -> None:
        exits = with_exits(net(), ("first",), EXAMPLE)
        with pytest.raises(RetrainError, match="do not fit a network with 1 branches"):
            train_exits(exits, images_of(8), recipe=RECIPE, preprocessing=SEES, weights=weights)

    def test_images_without_labels_are_refused(self, trained: EarlyExits) -> None:
        with pytest.raises(DataError, match="needs labels"):
            answers(trained, Images(torch.zeros(2, 1, 8, 8)), split="tune", preprocessing=SEES)


class TestRefused:
    @pytest.mark.parametrize(
        ("after", "said", "hint"),
        [
            ((), "no layer is named", "--after LAYER"),
            (("firts",), "no layer called `firts`", "did you mean `first`?"),
            (("zzz",), "no layer called `zzz`", "known layers: act, first"),
            (("pair",), "`pair` outputs a `tuple`, not a tensor", "a layer inside it"),
            (("act",), "`act` runs 2 times", "runs once"),
            (("unused",), "`unused` does not run", "name a layer that runs"),
            (("head",), "an exit after `head` saves nothing", "an earlier layer"),
        ],
    )
    def test_a_layer_that_is_no_place_for_an_exit(self, after: tuple[str, ...], said: str, hint: str) -> None:
        with pytest.raises(GroupError, match=said.replace("(", r"\(")) as caught:
            with_exits(net(), after, EXAMPLE)
        assert hint in str(caught.value.hint)

    def test_a_network_that_is_kept_as_its_program(self) -> None:
        program = as_program(net(), EXAMPLE)
        for place in (lambda: with_exits(program, ("first",), EXAMPLE), lambda: layer_named(program, "first")):
            with pytest.raises(GroupError, match="exported program, which has no layers") as caught:
                place()
            assert "--protect" in str(caught.value.hint)

    def test_a_network_that_is_no_classifier(self) -> None:
        with pytest.raises(GroupError, match="not class scores"):
            with_exits(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), ("0",), EXAMPLE)


class TestThreshold:
    FOUND = answered([[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]], [[0.9, 0.9], [0.4, 0.8], [0.6, 0.2], [0.1, 0.3]])
    MACS = (1, 4, 10)

    def test_nothing_sends_all_out_first_and_infinity_none(self) -> None:
        assert exit_taken(self.FOUND.certain, 0.0).tolist() == [0, 0, 0, 0]
        assert exit_taken(self.FOUND.certain, math.inf).tolist() == [2, 2, 2, 2]
        everyone = at_threshold(self.FOUND, 0.0, after=("a", "b"), macs=self.MACS)
        assert (everyone.accuracy.correct, everyone.mean_macs, everyone.shares) == (2, 1, (1, 0, 0))
        nobody = at_threshold(self.FOUND, math.inf, after=("a", "b"), macs=self.MACS)
        assert nobody.accuracy == nobody.full
        assert (nobody.mean_macs, nobody.to_json()["threshold"]) == (10, None)

    def test_who_leaves_where_is_worked_out_by_hand(self) -> None:
        found = at_threshold(self.FOUND, 0.5, after=("a", "b"), macs=self.MACS)
        assert [(e.after, e.leaving, e.correct, e.correct_of_all) for e in found.exits] == [
            ("a", 2, 2, 2), ("b", 1, 1, 2), (None, 1, 0, 3)
        ]  # fmt: skip
        assert found.accuracy.correct == found.full.correct == 3
        assert found.mean_macs == (2 * 1 + 4 + 10) / 4

    @pytest.mark.parametrize(("drop", "correct", "macs"), [(0, 3, 4), (24.9, 3, 4), (25, 2, 1)])
    def test_it_is_the_cheapest_within_the_drop(self, drop: float, correct: int, macs: float) -> None:
        threshold = threshold_for(self.FOUND, max_drop=drop, macs=self.MACS)
        found = at_threshold(self.FOUND, threshold, after=("a", "b"), macs=self.MACS)
        assert (found.accuracy.correct, found.mean_macs) == (correct, macs)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0, 10.0, 100.0]))
    def test_no_other_threshold_is_cheaper_within_the_drop(self, seed: int, drop: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        certain = (torch.rand(30, 2, generator=generator) * 20).round() / 20
        right = torch.rand(30, 3, generator=generator) < torch.tensor([0.5, 0.7, 0.9])
        found = Answers(right=right, certain=certain, split="tune")
        least = int(right[:, 2].sum()) - math.floor(30 * drop / 100)

        def cost(threshold: float) -> tuple[bool, float]:
            at = at_threshold(found, threshold, after=("a", "b"), macs=self.MACS)
            return at.accuracy.correct >= least and at.shares[2] < 1, at.mean_macs

        every = [cost(t / 80) for t in range(81)]
        allowed = [macs for fits, macs in every if fits]
        if not allowed:
            with pytest.raises(PlanError, match="no image can leave early"):
                threshold_for(found, max_drop=drop, macs=self.MACS)
            return
        chosen = threshold_for(found, max_drop=drop, macs=self.MACS)
        assert cost(chosen) == (True, min(allowed))
        assert chosen == 0 or float((certain - chosen).abs().min()) > 0.02  # halfway between two that were seen

    @pytest.mark.parametrize("drop", [-1.0, math.nan, math.inf])
    def test_a_drop_that_is_none_is_refused(self, drop: float) -> None:
        with pytest.raises(PlanError, match="a drop must be"):
            threshold_for(self.FOUND, max_drop=drop, macs=self.MACS)

    @given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 70))
    def test_images_for_the_clock_leave_as_all_do(self, exits: list[int], count: int) -> None:
        chosen = alike(torch.tensor(exits), count)
        assert len(set(chosen)) == len(chosen) == min(count, len(exits))
        for number in range(3):
            wanted = exits.count(number) * len(chosen) / len(exits)
            assert abs(sum(exits[i] == number for i in chosen) - wanted) < 1


class TestFile:
    def run(self, file: Path, images: Tensor) -> tuple[Tensor, list[int]]:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        every = [session.run(["output", "exit"], {name: image.numpy()[None]}) for image in images]
        return torch.from_numpy(np.concatenate([e[0] for e in every])), [int(e[1][0]) for e in every]

    def test_it_says_what_the_exit_says_that_the_image_takes(self, decisive: EarlyExits, files: dict[str, Any]) -> None:
        tune = images_of(8).split(SplitName.TUNE)
        assert isinstance(tune, Images)
        inputs = SEES(tune.images)
        with torch.no_grad():
            own, *early = decisive(inputs)
        every = torch.stack([*early, own], dim=1)  # [images, exits, classes]
        taken = exit_taken(files["found"].certain, files["middle threshold"])
        assert set(taken.tolist()) == {0, 1, 2}
        for name, exits in (("first", 0 * taken), ("middle", taken), ("never", 0 * taken + 2)):
            scores, left = self.run(files[name], inputs)
            assert left == exits.tolist(), name
            torch.testing.assert_close(scores, every[torch.arange(len(every)), exits], rtol=1e-4, atol=1e-5)

    def test_an_image_that_leaves_runs_nothing_behind_its_exit(self, files: dict[str, Any]) -> None:
        inputs = (torch.randn(1, 1, 8, 8),)
        kinds = {
            name: [
                n.kind
                for n in profiled(files[name], inputs, provider="CPUExecutionProvider", threads=1, warmup=0, calls=1)
            ]
            for name in ("first", "never")
        }
        convolutions = {name: sum("Conv" in kind for kind in found) for name, found in kinds.items()}
        assert convolutions == {"first": 1, "never": 3}
        assert "LSTM" in kinds["never"]
        assert "LSTM" not in kinds["first"]

    def test_the_weights_lie_with_the_layers_that_read_them(self, files: dict[str, Any]) -> None:
        import onnx

        graph = onnx.load(files["middle"]).graph
        while True:
            inside = {i.name: i for i in graph.initializer}
            for node in graph.node:
                if node.op_type in ("Conv", "Gemm", "LSTM"):
                    assert node.input[1] in inside, node.name
            behind = [a.g for n in graph.node if n.op_type == "If" for a in n.attribute if a.name == "else_branch"]
            if not behind:
                break
            (graph,) = behind

    def test_it_knows_how_it_sees_and_decides(self, files: dict[str, Any]) -> None:
        import onnx

        metadata = {p.key: p.value for p in onnx.load(files["middle"]).metadata_props}
        told = json.loads(metadata["exits"])
        assert told["after"] == ["first", "second"]
        assert float(told["threshold"]) == files["middle threshold"]
        tune = images_of(8).split(SplitName.TUNE)
        expected = at_threshold(
            files["found"], files["middle threshold"], after=("first", "second"), macs=(1, 2, 3)
        ).accuracy
        assert evaluate_onnx(files["middle"], tune, split="tune") == expected

    def test_a_file_that_says_something_else_never_appears(
        self, decisive: EarlyExits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("compressor.training.exits.onnx.outputs_of", lambda *_: [torch.ones(1, 2)] * 3)
        with pytest.raises(ExportError, match="differs from the network"):
            export_exits(decisive, checkpoint_of(decisive.network), tmp_path / "net.onnx", threshold=0.5)
        assert not list(tmp_path.iterdir())

    def test_a_pass_over_images_is_one_call(self, files: dict[str, Any]) -> None:
        ticks = iter(range(0, 10**9, 1000))
        found = timed_on_images(
            {"never": files["never"], "first": files["first"]}, [torch.randn(1, 1, 8, 8) for _ in range(3)],
            threads=1, blocks=8, seconds=1, clock=lambda: next(ticks),
        )  # fmt: skip
        assert {m.batch_size for m in found.values()} == {3}
        assert {len(m.samples_ns) for m in found.values()} == {8}


class TestCommand:
    def test_it_writes_a_file_and_says_who_leaves(self, inputs: Path) -> None:
        words = ("exits", "tiny.pt", *ARCH, "--after", "body.2", "--data", "data.npz", "--epochs", 2, "--blocks", 8)
        found = json.loads(done(*words, "--json", "--max-drop", 60, "--certainty", "probability").stdout)
        assert found == json.loads((inputs / "tiny.exits" / "results.json").read_text())
        test = found["splits"]["test"]
        assert sum(e["leaving"] for e in test["exits"]) == test["accuracy"]["total"] == found["data"]["sizes"]["test"]
        assert sum(e["share"] for e in test["exits"]) == pytest.approx(1)
        assert found["latency"]["speedup"]["low"] <= found["latency"]["speedup"]["high"]
        assert (
            evaluate_onnx(inputs / "tiny.exits" / "model.onnx", load_tiny(inputs), split="test").to_json()
            == test["accuracy"]
        )

    @pytest.mark.parametrize(
        ("words", "says", "hints"),
        [
            (("--after", "body.99"), "no layer called `body.99`", "did you mean"),
            (("--after", "body.2", "--certainty", "surety"), "no certainty called `surety`", "entropy"),
            (("--after", " "), "no layer is named", "--after LAYER"),
            (("--after", "body.2", "--out", "net.py"), "net.py is in the way", "--out DIR"),
        ],
    )
    def test_it_refuses(self, inputs: Path, words: tuple[str, ...], says: str, hints: str) -> None:
        del inputs
        refused("exits", "tiny.pt", *ARCH, "--data", "data.npz", *words, says=says, hints=hints)


def load_tiny(folder: Path) -> Any:
    from compressor.data.sources import load_data

    return load_data(str(folder / "data.npz")).split(SplitName.TEST)


@pytest.mark.slow
def test_leaving_early_is_faster_on_the_clock(samples: Path, tmp_path: Path) -> None:
    checkpoint = load(samples / "fashion_resnet20.pt")
    exits = with_exits(checkpoint.module, ("stages.0.0",), checkpoint.example_inputs)
    files = {}
    for name, threshold in (("never", math.inf), ("always", 0.0)):
        files[name] = tmp_path / f"{name}.onnx"
        export_exits(exits, checkpoint, files[name], threshold=threshold)
    found = timed_on_images(files, [torch.randn(1, 1, 28, 28)] * 8, threads=1, seconds=5)
    assert speedup(found["never"], found["always"]).low > 2  # 5.4 times with the machine idle
