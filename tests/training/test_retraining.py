from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import How, Optimiser, Recipe, Schedule, Shape, Start, Step, recipe_from_json
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import RetrainError, RuntimeUnavailable
from compressor.graph.outputs import class_scores
from compressor.planning.costs import Cost, count
from compressor.surgery.masks import magnitude
from compressor.surgery.surgery import Surgery, operate
from compressor.training import ways as arms
from compressor.training.loop import Progress
from compressor.training.retraining import Wishes, recipe_for, retrain, starting_module, tensorboard

DENSE = Recipe(
    budget=Step(epochs=12),
    schedule=Schedule(rate=0.2, warmup=0.15),
    batch_size=32,
    label_smoothing=0.05,
    weight_decay=2e-4,
)
SHORT = Recipe(budget=Step(epochs=2), schedule=Schedule(rate=0.05), batch_size=16, augment=())


def cost(macs: int) -> Cost:
    return Cost(params=1, macs=macs, bytes=4)


def recipe(
    how: How, wishes: Wishes | None = None, *, dense: Recipe | None = DENSE, macs: tuple[int, int] = (400, 100)
) -> Recipe:
    return recipe_for(how, dense_recipe=dense, dense_cost=cost(macs[0]), small_cost=cost(macs[1]), wishes=wishes)


def dense_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2),
    ).eval()  # fmt: skip


KEPT = torch.tensor([0, 2, 3, 7])
SURGERY = Surgery(
    slices={
        "0.weight": {0: KEPT},
        **{f"1.{name}": {0: KEPT} for name in ("weight", "bias", "running_mean", "running_var")},
        "5.weight": {1: (KEPT.unsqueeze(1) * 4 + torch.arange(4)).flatten()},
    },
    attributes={"0": {"out_channels": 4}, "1": {"num_features": 4}, "5": {"in_features": 16}},
)


def small_checkpoint(**fields: Any) -> Checkpoint:
    known: dict[str, Any] = {
        "module": operate(dense_network(), SURGERY).eval(),
        "example_inputs": (torch.randn(1, 1, 8, 8),),
        "architecture": Architecture(ref="tests:dense_network"),
        "preprocessing": Preprocessing(mean=(0.5,), std=(0.5,), size=(8, 8), channels=1),
        "lineage": ({"step": "prune"},),
        "training": DENSE,
        "surgery": SURGERY,
        "classes": None,
        "name": "small",
        "path": "small.pt",
        "sha256": "0",
    }
    return Checkpoint(**{**known, **fields})


def stripes() -> Data:
    """Bright upper (0) or lower (1) halves."""
    labels = torch.arange(48) % 2
    images = torch.full((48, 1, 8, 8), 20, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 4 * int(label) : 4 * int(label) + 4] = 200
    whole = Images(images, labels)
    parts = [whole.subset(torch.arange(*ends)) for ends in ((0, 32), (32, 40), (40, 48))]
    return Data(name="stripes", source="made", train=parts[0], tune=parts[1], test=parts[2])


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


class TestRecipes:
    def test_fine_tuning_is_short_gentle_and_says_so(self) -> None:
        made = recipe(How.FINE_TUNE)
        assert (made.budget.epochs, made.start, made.how) == (arms.FINE_TUNE_EPOCHS, Start.TRAINED, How.FINE_TUNE)
        assert made.schedule.rate == pytest.approx(arms.FINE_TUNE_SHARE_OF_PEAK * 0.2)
        assert made.schedule.shape is Shape.COSINE
        assert "of the dense network's peak 0.2" in " ".join(made.notes)
        assert (made.batch_size, made.label_smoothing, made.weight_decay) == (32, 0.05, 2e-4)  # the dense network's

    def test_fine_tuning_needs_no_dense_recipe(self) -> None:
        made = recipe(How.FINE_TUNE, dense=None)
        assert made.schedule.rate == pytest.approx(arms.FINE_TUNE_SHARE_OF_PEAK * 0.1)
        assert "of a usual peak 0.1" in " ".join(made.notes)

    def test_another_optimiser_has_another_usual_peak(self) -> None:
        made = recipe(How.FINE_TUNE, Wishes(optimiser=Optimiser.ADAMW))
        assert made.schedule.rate == pytest.approx(arms.FINE_TUNE_SHARE_OF_PEAK * 1e-3)

    def test_scratch_e_is_the_dense_recipe_from_fresh_weights(self) -> None:
        made = recipe(How.SCRATCH_E)
        assert dataclasses.replace(made, start=DENSE.start, how=None, notes=()) == DENSE
        assert made.start is Start.FRESH
        assert "12 epochs, as the dense network had" in made.notes

    @pytest.mark.parametrize(
        ("macs", "cap", "epochs", "said"),
        [
            ((400, 100), None, 48, "floor(12 x 4.000) = 48 epochs"),
            ((190, 100), None, 22, "floor(12 x 1.900) = 22 epochs"),
            ((400, 100), 2.0, 24, "capped at 2 x 12 = 24 epochs"),
            ((400, 100), 1.5, 18, "capped at 1.5 x 12 = 18 epochs"),
            ((190, 100), 2.0, 22, "the cap of 2 is not reached"),
            ((100, 100), None, 12, "no cap on the epochs"),
        ],
    )
    def test_scratch_b_takes_the_dense_networks_macs(
        self, macs: tuple[int, int], cap: float | None, epochs: int, said: str
    ) -> None:
        made = recipe(How.SCRATCH_B, Wishes(cap=cap), macs=macs)
        assert made.budget.epochs == epochs
        assert any(said in note for note in made.notes)
        assert made.schedule == DENSE.schedule  # its shares of the longer run

    @given(dense=st.integers(1, 10**12), small=st.integers(1, 10**12), epochs=st.integers(1, 200))
    def test_scratch_b_never_takes_more_macs_than_the_dense_training(self, dense: int, small: int, epochs: int) -> None:
        small = min(dense, small)
        made = recipe(How.SCRATCH_B, Wishes(dense_epochs=epochs), macs=(dense, small)).budget.epochs
        assert made * small <= epochs * dense < (made + 1) * small

    @pytest.mark.parametrize("how", [How.REWIND_LR, How.REWIND_WEIGHTS])
    @pytest.mark.parametrize(("asked", "epochs"), [(None, 11), (3, 3), (12, 12)])
    def test_rewinding_repeats_the_end_of_the_dense_schedule(self, how: How, asked: int | None, epochs: int) -> None:
        made = recipe(how, Wishes(epochs=asked))
        assert made.budget.epochs == epochs
        for iteration in range(5 * epochs):  # 5 an epoch
            progress = iteration / (5 * epochs)
            then = (5 * (12 - epochs) + iteration) / 60
            assert made.schedule.at(progress) == pytest.approx(DENSE.schedule.at(then), abs=1e-9)
        assert any(f"from epoch {12 - epochs} of 12 on" in note for note in made.notes)

    @pytest.mark.parametrize("how", [How.SCRATCH_E, How.SCRATCH_B, How.REWIND_LR, How.REWIND_WEIGHTS])
    def test_an_unknown_dense_training_must_be_told(self, how: How) -> None:
        with pytest.raises(RetrainError, match="does not record it") as refused:
            recipe(how, dense=None)
        assert "--dense-epochs" in str(refused.value.hint)
        made = recipe(how, Wishes(dense_epochs=8, rate=0.05), dense=None)
        assert made.schedule.rate == 0.05
        assert any("usual values" in note for note in made.notes)

    def test_what_is_told_goes_before_what_is_recorded_and_is_noted(self) -> None:
        made = recipe(How.SCRATCH_E, Wishes(dense_epochs=4))
        assert made.budget.epochs == 4
        assert any("4 epochs, not the recorded 12" in note for note in made.notes)

    @pytest.mark.parametrize("how", [How.SCRATCH_E, How.SCRATCH_B])
    def test_a_scratch_arm_has_no_length_of_its_own(self, how: How) -> None:
        with pytest.raises(RetrainError, match="follows from the dense network"):
            recipe(how, Wishes(epochs=3))

    def test_more_than_the_dense_run_cannot_be_repeated(self) -> None:
        with pytest.raises(RetrainError, match="its last 13 cannot be repeated"):
            recipe(How.REWIND_LR, Wishes(epochs=13))

    @pytest.mark.parametrize("fields", [{"cap": 0.5}, {"epochs": 0}, {"epochs": -1}, {"dense_epochs": 0}])
    def test_wishes_without_sense_are_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(RetrainError):
            Wishes(**fields)

    @pytest.mark.parametrize("how", list(How))
    def test_every_wish_is_granted_and_every_recipe_is_plain(self, how: How) -> None:
        wishes = Wishes(
            rate=0.01, shape=Shape.STEP, warmup=0.0, batch_size=7, label_smoothing=0.2, augment=("flip",),
            optimiser=Optimiser.ADAMW, seed=3,
        )  # fmt: skip
        made = recipe(how, wishes)
        assert (made.schedule.rate, made.schedule.shape, made.schedule.warmup) == (0.01, Shape.STEP, 0.0)
        assert (made.batch_size, made.label_smoothing, made.augment) == (7, 0.2, ("flip",))
        assert (made.optimiser, made.seed) == (Optimiser.ADAMW, 3)
        assert recipe_from_json(json.loads(json.dumps(made.to_json()))) == made


class TestStart:
    @pytest.mark.parametrize("how", [How.FINE_TUNE, How.REWIND_LR])
    def test_surviving_weights_are_the_checkpoints_own(self, how: How) -> None:
        checkpoint = small_checkpoint()
        module = starting_module(checkpoint, how)
        assert module is not checkpoint.module
        assert same(state_of(module), state_of(checkpoint.module))

    @pytest.mark.parametrize("how", [How.SCRATCH_E, How.SCRATCH_B])
    def test_fresh_weights_are_small_dense_and_drawn_by_the_seed(self, how: How) -> None:
        checkpoint = small_checkpoint()
        with torch.no_grad():
            for tensor in checkpoint.module.state_dict().values():
                tensor.fill_(7)
        before, generator = state_of(checkpoint.module), torch.random.get_rng_state()
        fresh = [state_of(starting_module(checkpoint, how, seed=seed)) for seed in (0, 0, 1)]
        assert same(fresh[0], fresh[1])
        assert not same(fresh[0], fresh[2])
        assert {n: t.shape for n, t in fresh[0].items()} == {n: t.shape for n, t in before.items()}
        for name, tensor in fresh[0].items():
            assert not bool((tensor == 7).any()), name
        for name in ("0.weight", "5.weight"):
            assert bool(fresh[0][name].all())  # no zeros: never masked
        assert fresh[0]["1.running_var"].eq(1).all()
        assert int(fresh[0]["1.num_batches_tracked"]) == 0
        assert same(before, state_of(checkpoint.module))
        assert torch.equal(generator, torch.random.get_rng_state())

    def test_the_scale_of_fresh_weights_is_the_small_networks(self) -> None:
        """Masked, they would have the large one's: its fan-in is four times as much."""
        torch.manual_seed(0)
        small = nn.Sequential(nn.Flatten(), nn.Linear(64, 400), nn.Linear(400, 10))
        module = starting_module(small_checkpoint(module=small), How.SCRATCH_E)
        bound = 1 / math.sqrt(400)
        assert float(module[2].weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)

    def test_attention_is_drawn_afresh_as_its_constructor_does(self) -> None:
        module = nn.MultiheadAttention(8, 2)
        nn.init.constant_(module.out_proj.bias, 3.0)
        nn.init.constant_(module.in_proj_weight, 3.0)
        fresh = starting_module(small_checkpoint(module=module), How.SCRATCH_E)
        assert not fresh.out_proj.bias.any()
        assert float(fresh.in_proj_weight.detach().std()) > 0

    def test_parameters_without_an_initialisation_are_named(self) -> None:
        vit = torchvision.models.VisionTransformer(
            image_size=8, patch_size=4, num_layers=1, num_heads=1, hidden_dim=4, mlp_dim=4, num_classes=2
        )
        with pytest.raises(RetrainError, match="no fresh weights for `VisionTransformer`, `encoder`"):
            starting_module(small_checkpoint(module=vit), How.SCRATCH_E)

    def test_early_weights_are_cut_as_the_network_was(self) -> None:
        early = dense_network()
        with torch.no_grad():
            for index, tensor in enumerate(early.parameters()):
                tensor.add_(index + torch.arange(tensor.numel()).view(tensor.shape) / 100)
        module = starting_module(small_checkpoint(), How.REWIND_WEIGHTS, early_state=early.state_dict())
        assert torch.equal(module[0].weight, early[0].weight[KEPT])
        assert torch.equal(module[1].bias, early[1].bias[KEPT])
        assert torch.equal(module[5].weight.view(2, 4, 4), early[5].weight.view(2, 8, 4)[:, KEPT])

    def test_early_weights_of_a_network_that_was_not_cut_are_taken_whole(self) -> None:
        checkpoint = small_checkpoint(module=dense_network(), surgery=None)
        early = {n: t + 1 for n, t in dense_network().state_dict().items()}
        assert same(state_of(starting_module(checkpoint, How.REWIND_WEIGHTS, early_state=early)), early)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda s: dict(list(s.items())[:2]),
            lambda s: {**s, "more": s["5.bias"]},
            lambda s: {n: t[:1] if t.ndim else t for n, t in s.items()},
        ],
    )
    def test_early_weights_of_another_network_are_refused(self, spoil: Any) -> None:
        early = spoil(state_of(dense_network()))
        with pytest.raises(RetrainError, match="does not belong to this network"):
            starting_module(small_checkpoint(), How.REWIND_WEIGHTS, early_state=early)

    def test_early_weights_find_the_name_that_a_wrapper_had(self) -> None:
        """Reading a checkpoint takes `net.` for a wrapper's prefix; here it is the network's own."""
        network = nn.ModuleDict({"net": dense_network()})
        checkpoint = small_checkpoint(module=network, surgery=None)
        early = {n: t + 1 for n, t in dense_network().state_dict().items()}
        started = starting_module(checkpoint, How.REWIND_WEIGHTS, early_state=early)
        assert same(state_of(started.net), early)

    def test_rewinding_weights_needs_them(self) -> None:
        with pytest.raises(RetrainError, match="needs an early checkpoint") as refused:
            starting_module(small_checkpoint(), How.REWIND_WEIGHTS)
        assert "--rewind-to" in str(refused.value.hint)


class TestRetrain:
    @pytest.mark.parametrize("how", list(How))
    def test_it_learns_and_adds_to_the_lineage(self, how: How) -> None:
        checkpoint = small_checkpoint()
        before = state_of(checkpoint.module)
        made = recipe_for(
            how, dense_recipe=dataclasses.replace(SHORT, budget=Step(epochs=8)),
            dense_cost=count(dense_network(), checkpoint.example_inputs),
            small_cost=count(checkpoint.module, checkpoint.example_inputs), wishes=Wishes(rate=0.1),
        )  # fmt: skip
        early = dense_network().state_dict() if how is How.REWIND_WEIGHTS else None
        retrained = retrain(checkpoint, stripes(), recipe=made, early_state=early)
        assert same(before, state_of(checkpoint.module))
        assert len(retrained.lineage) == 2
        entry = json.loads(json.dumps(retrained.lineage[-1]))
        assert (entry["step"], entry["how"], entry["data"], entry["images"]) == ("retrain", str(how), "stripes", 32)
        assert recipe_from_json(entry["recipe"]) == made
        assert len(entry["history"]) == made.budget.epochs
        assert entry["history"][-1]["train_loss"] < entry["history"][0]["train_loss"]
        assert entry["splits"]["sizes"] == {"train": 32, "tune": 8, "test": 8}
        assert retrained.training == checkpoint.training  # of the dense network
        assert retrained.surgery is checkpoint.surgery
        assert not any(m.training for m in retrained.module.modules())

    def test_a_mask_survives(self) -> None:
        checkpoint = small_checkpoint(module=dense_network(), surgery=None)
        mask = magnitude(checkpoint.module, sparsity=0.6)
        trained = retrain(checkpoint, stripes(), recipe=SHORT, mask=mask).module
        for name, kept in mask.kept.items():
            assert not bool(trained.get_parameter(name)[~kept].any())

    def test_rewound_weights_are_masked_from_the_first_step_on(self) -> None:
        checkpoint = small_checkpoint(module=dense_network(), surgery=None)
        mask = magnitude(checkpoint.module, sparsity=0.6)
        rewinding = dataclasses.replace(SHORT, how=How.REWIND_WEIGHTS)
        trained = retrain(checkpoint, stripes(), recipe=rewinding, mask=mask, early_state=dense_network().state_dict())
        assert not bool(trained.module.get_parameter("0.weight")[~mask.kept["0.weight"]].any())

    def test_a_masked_network_has_no_scratch_arm(self) -> None:
        checkpoint = small_checkpoint(module=dense_network(), surgery=None)
        mask = magnitude(checkpoint.module, sparsity=0.6)
        with pytest.raises(RetrainError, match="no smaller shapes"):
            retrain(checkpoint, stripes(), recipe=dataclasses.replace(SHORT, how=How.SCRATCH_E), mask=mask)

    def test_a_frozen_network_is_trained_and_comes_back_frozen(self) -> None:
        checkpoint = small_checkpoint()
        checkpoint.module.requires_grad_(False)
        trained = retrain(checkpoint, stripes(), recipe=SHORT).module
        assert not any(p.requires_grad for p in trained.parameters())
        assert not any(p.requires_grad for p in checkpoint.module.parameters())
        assert not torch.equal(trained[0].weight, checkpoint.module[0].weight)

    def test_a_teacher_is_followed_and_recorded(self) -> None:
        plain = retrain(small_checkpoint(), stripes(), recipe=SHORT)
        taught = retrain(small_checkpoint(), stripes(), recipe=SHORT, teacher=dense_network())
        assert not same(state_of(plain.module), state_of(taught.module))
        assert taught.lineage[-1]["teacher"] is True

    def test_an_interrupted_run_goes_on_bit_by_bit(self, tmp_path: Path) -> None:
        scratch = dataclasses.replace(SHORT, how=How.SCRATCH_E)
        whole = retrain(small_checkpoint(), stripes(), recipe=scratch)

        def interrupt(progress: Progress) -> None:
            if progress.epoch == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            retrain(small_checkpoint(), stripes(), recipe=scratch, state_file=tmp_path / "s", callbacks=(interrupt,))
        resumed = retrain(small_checkpoint(), stripes(), recipe=scratch, state_file=tmp_path / "s")
        assert same(state_of(whole.module), state_of(resumed.module))
        assert whole.lineage == resumed.lineage


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=f"cannot train on `{device}`") as refused:
        retrain(small_checkpoint(), stripes(), recipe=SHORT, device=device)
    assert "--device cpu" in str(refused.value.hint)


class TestTensorBoard:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own generated protobuf code
    def test_metrics_stream_to_files(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        with tensorboard(tmp_path) as stream:
            retrained = retrain(small_checkpoint(), stripes(), recipe=SHORT, callbacks=(stream,))
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        assert len(events.Scalars("train/loss")) == 4
        history: Any = retrained.lineage[-1]["history"]
        accuracies = [record["tune_correct"] / record["tune_total"] for record in history]
        assert [e.value for e in events.Scalars("tune/accuracy")] == pytest.approx(accuracies)
        assert [e.step for e in events.Scalars("tune/accuracy")] == [1, 3]

    def test_a_missing_tensorboard_says_how_to_get_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(RuntimeUnavailable, match="not installed") as refused, tensorboard(tmp_path):
            pass
        assert "compress[tensorboard]" in str(refused.value.hint)


def test_the_checkpoint_is_lent() -> None:
    checkpoint = small_checkpoint()
    checkpoint.module.train()
    twin = copy.deepcopy(checkpoint.module)
    retrain(checkpoint, stripes(), recipe=SHORT)
    assert checkpoint.module.training
    assert same(state_of(checkpoint.module), state_of(twin))
    assert class_scores(checkpoint.module.eval()(checkpoint.example_inputs[0])).shape == (1, 2)
