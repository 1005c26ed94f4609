from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.checkpoint.recipes import (
    How,
    Optimiser,
    Recipe,
    Schedule,
    Shape,
    Start,
    Step,
    how_named,
    recipe_from_json,
)
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import RetrainError, TaskError
from compressor.graph.outputs import class_scores
from compressor.surgery.masks import apply_mask_, magnitude
from compressor.training.loop import Hooks, Progress, Trained, correct_in, iterations_per_epoch, optimiser_of, train

PREPROCESSING = Preprocessing(mean=(0.5,), std=(0.5,), size=(8, 8), channels=1)
RECIPE = Recipe(budget=Step(epochs=3), schedule=Schedule(rate=0.05), batch_size=16, augment=("flip", "crop"), seed=4)


def bars(count: int, *, seed: int) -> Images:
    """Noisy 8x8 images with a bright bar, upright (0) or lying (1)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = torch.randint(0, 120, (count, 1, 8, 8), generator=generator)
    at = torch.randint(0, 8, (count,), generator=generator)
    for image, label, place in zip(images, labels, at, strict=True):
        (image[0, :, place] if label == 0 else image[0, place]).add_(120)
    return Images(images.to(torch.uint8), labels)


def small_data() -> Data:
    return Data(name="bars", source="made", train=bars(72, seed=0), tune=bars(20, seed=1), test=bars(20, seed=2))


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


def run(module: nn.Module | None = None, **options: object) -> Trained:
    hooks = {name: options.pop(name) for name in ("callbacks", "after_step", "before_epoch") if name in options}
    arguments = {"recipe": RECIPE, "preprocessing": PREPROCESSING, "hooks": Hooks(**hooks), **options}  # type: ignore[arg-type]
    return train(module or small_network(), small_data(), **arguments)  # type: ignore[arg-type]  # as given


def same_bytes(one: nn.Module, other: nn.Module) -> bool:
    pair = one.state_dict(), other.state_dict()
    return pair[0].keys() == pair[1].keys() and all(torch.equal(t, pair[1][n]) for n, t in pair[0].items())


class InterruptionError(Exception):
    """What a callback raises where a user would press Ctrl-C."""


def interrupt_at(epoch: int, iteration: int) -> object:
    def callback(progress: Progress) -> None:
        if (progress.epoch, progress.iteration) == (epoch, iteration):
            raise InterruptionError

    return callback


class TestSameBytes:
    def test_the_same_recipe_gives_the_same_bytes_whatever_the_global_generator_did(self) -> None:
        first = run()
        torch.manual_seed(99)
        assert same_bytes(first.module, run().module)

    def test_another_seed_gives_others(self) -> None:
        other = run(recipe=dataclasses.replace(RECIPE, seed=5))
        assert not same_bytes(run().module, other.module)

    @pytest.mark.parametrize("optimiser", list(Optimiser))
    @pytest.mark.parametrize(("epoch", "iteration"), [(0, 2), (1, 0), (1, 4), (2, 3)])
    def test_an_interrupted_run_resumes_bit_by_bit(
        self, tmp_path: Path, optimiser: Optimiser, epoch: int, iteration: int
    ) -> None:
        recipe = dataclasses.replace(RECIPE, optimiser=optimiser)
        whole = run(recipe=recipe)
        state = tmp_path / "run" / "train.state"
        with pytest.raises(InterruptionError):
            run(recipe=recipe, state_file=state, callbacks=(interrupt_at(epoch, iteration),))
        assert state.exists() == (epoch > 0 or iteration == 4)
        resumed = run(recipe=recipe, state_file=state)
        assert same_bytes(whole.module, resumed.module)
        assert whole.history == resumed.history

    def test_a_finished_run_is_not_run_again(self, tmp_path: Path) -> None:
        first = run(state_file=tmp_path / "s")
        seen: list[Progress] = []
        again = run(state_file=tmp_path / "s", callbacks=(seen.append,))
        assert not seen
        assert same_bytes(first.module, again.module)
        assert first.history == again.history

    def test_a_run_goes_on_after_every_interruption(self, tmp_path: Path) -> None:
        for epoch in range(3):
            with pytest.raises(InterruptionError):
                run(state_file=tmp_path / "s", callbacks=(interrupt_at(epoch, 1),))
            with pytest.raises(InterruptionError):
                run(state_file=tmp_path / "s", callbacks=(interrupt_at(epoch, 4),))  # behind the epoch's save
        assert same_bytes(run().module, run(state_file=tmp_path / "s").module)

    def test_a_masked_run_with_a_teacher_resumes_bit_by_bit(self, tmp_path: Path) -> None:
        mask = magnitude(small_network(), sparsity=0.5)
        options: dict[str, object] = {
            "teacher": small_network(),
            "after_step": (lambda module: apply_mask_(module, mask),),
        }
        whole = run(**options)
        with pytest.raises(InterruptionError):
            run(**options, state_file=tmp_path / "s", callbacks=(interrupt_at(1, 2),))
        assert same_bytes(whole.module, run(**options, state_file=tmp_path / "s").module)


class TestStateOfAnotherRun:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"recipe": dataclasses.replace(RECIPE, seed=9)}, "another recipe"),
            ({"module": nn.Sequential(nn.Flatten(), nn.Linear(64, 2))}, "another weights"),
        ],
    )
    def test_it_is_refused(self, tmp_path: Path, options: dict[str, object], said: str) -> None:
        run(state_file=tmp_path / "s")
        before = (tmp_path / "s").read_bytes()
        with pytest.raises(RetrainError, match=said):
            run(**options, state_file=tmp_path / "s")  # type: ignore[arg-type]
        assert (tmp_path / "s").read_bytes() == before

    def test_other_data_are_refused(self, tmp_path: Path) -> None:
        run(state_file=tmp_path / "s")
        data = dataclasses.replace(small_data(), split_seed=1)
        with pytest.raises(RetrainError, match="another data"):
            train(small_network(), data, recipe=RECIPE, preprocessing=PREPROCESSING, state_file=tmp_path / "s")

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no archive"])
    def test_a_broken_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "s").write_bytes(content)
        with pytest.raises(RetrainError, match="is no state of a run"):
            run(state_file=tmp_path / "s")

    def test_a_place_that_cannot_be_written_is_an_error_and_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(RetrainError, match="cannot write"):
            run(state_file=tmp_path / "file" / "s")
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


class TestLending:
    def test_the_callers_modules_are_as_before(self) -> None:
        module, teacher = small_network(), small_network()
        module[1].eval()
        module[4].requires_grad_(False)
        teacher.train()
        before = copy.deepcopy(module), copy.deepcopy(teacher)
        generator = torch.random.get_rng_state()
        run(module, teacher=teacher)
        for now, then in zip((module, teacher), before, strict=True):
            assert same_bytes(now, then)
            assert [m.training for m in now.modules()] == [m.training for m in then.modules()]
            assert [p.requires_grad for p in now.parameters()] == [p.requires_grad for p in then.parameters()]
            assert all(p.grad is None for p in now.parameters())
            assert all(p.is_contiguous() for p in now.parameters())
        assert torch.equal(generator, torch.random.get_rng_state())

    def test_the_trained_module_is_ready_for_use(self) -> None:
        trained = run().module
        assert not any(m.training for m in trained.modules())
        assert all(p.is_contiguous() for p in trained.parameters())

    def test_frozen_parameters_stay(self) -> None:
        module = small_network()
        module[0].requires_grad_(False)
        assert torch.equal(run(module).module.get_parameter("0.weight"), module[0].weight)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_a_teacher_is_followed_at_the_temperature_asked_for(self, temperature: float) -> None:
        torch.manual_seed(1)
        module, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)) for _ in range(2))
        images = bars(6, seed=0)
        data = Data(name="bars", source="made", train=images, tune=images, test=images)
        recipe = Recipe(
            budget=Step(epochs=1), schedule=Schedule(rate=1e-9), batch_size=6, augment=(), temperature=temperature
        )
        found = train(module, data, recipe=recipe, preprocessing=PREPROCESSING, teacher=teacher).history[0].train_loss
        with torch.no_grad():
            ours, theirs = (net(PREPROCESSING(images.images)).double() for net in (module, teacher))
        plain = -ours.log_softmax(1)[torch.arange(6), images.labels].mean()
        soft = (theirs / temperature).softmax(1)
        distance = (soft * (soft.log() - (ours / temperature).softmax(1).log())).sum(1).mean()
        assert found == pytest.approx(float(0.5 * plain + 0.5 * temperature**2 * distance), rel=1e-5)

    def test_an_objective_takes_the_place_of_the_usual_loss(self) -> None:
        seen: list[tuple[int, ...]] = []

        class Small:
            identity: Mapping[str, object] = {"small": True}

            def __call__(
                self, module: nn.Module, inputs: Tensor, labels: Tensor, /, *, step: int, steps: int
            ) -> Tensor:
                seen.append((*inputs.shape, *labels.shape, step, steps))
                scores: Tensor = module(inputs)
                return scores.square().mean()

        trained = run(objective=Small())
        assert seen[0][:-1] == (16, 1, 8, 8, 16, 0)
        assert [s[-2] for s in seen] == list(range(seen[0][-1]))
        assert trained.history[-1].train_loss < trained.history[0].train_loss < 1
        with torch.no_grad():
            assert float(trained.module(torch.zeros(1, 1, 8, 8)).abs().max()) < 0.3

    def test_a_teacher_does_not_drift(self) -> None:
        """In train mode its batch norms would follow the student's batches."""
        teacher = small_network().train()
        assert same_bytes(run(teacher=teacher).module, run(teacher=copy.deepcopy(teacher).eval()).module)
        assert not same_bytes(run(teacher=teacher).module, run().module)


class TestLoop:
    def test_it_learns(self) -> None:
        recipe = dataclasses.replace(RECIPE, budget=Step(epochs=12), augment=("flip",))
        trained = run(recipe=recipe)
        assert trained.history[-1].train_loss < trained.history[0].train_loss
        test = small_data().test
        assert test is not None
        assert correct_in(trained.module, test, preprocessing=PREPROCESSING) >= 16  # of 20; chance gives 10

    def test_callbacks_see_every_iteration_and_every_record(self) -> None:
        seen: list[Progress] = []
        trained = run(callbacks=(seen.append,))
        assert [(p.epoch, p.iteration) for p in seen] == [(e, i) for e in range(3) for i in range(5)]
        assert tuple(p.record for p in seen if p.record is not None) == trained.history
        assert all((p.record is None) == (p.iteration < 4) for p in seen)

    def test_rates_follow_the_schedule(self) -> None:
        seen: list[Progress] = []
        run(callbacks=(seen.append,))
        assert [p.rate for p in seen] == [RECIPE.schedule.at(i / 15) for i in range(15)]

    def test_after_step_sees_the_training_copy_after_every_step_and_once_before(self) -> None:
        module = small_network()
        seen: list[nn.Module] = []
        run(module, after_step=(seen.append,))
        assert len(seen) == 16
        assert len({id(m) for m in seen}) == 1
        assert seen[0] is not module

    def test_a_mask_survives(self) -> None:
        mask = magnitude(small_network(), sparsity=0.75)
        trained = run(after_step=(lambda module: apply_mask_(module, mask),))
        for name, kept in mask.kept.items():
            weight = trained.module.get_parameter(name)
            assert not bool(weight[~kept].any())
            assert bool(weight[kept].all())

    def test_a_snapshot_holds_the_early_weights(self, tmp_path: Path) -> None:
        run(snapshot=(Step(epochs=1), tmp_path / "early.pt"))
        early = torch.load(tmp_path / "early.pt", weights_only=True)
        stopped = small_network()
        with pytest.raises(InterruptionError):
            run(state_file=tmp_path / "s", callbacks=(interrupt_at(0, 4),))
        stopped.load_state_dict(torch.load(tmp_path / "s", weights_only=True)["module"])
        assert all(torch.equal(t, early[n]) for n, t in stopped.state_dict().items())

    @pytest.mark.parametrize(
        ("images", "batch_size", "iterations"),
        [(72, 16, 5), (65, 16, 4), (64, 16, 4), (1, 16, 1), (3, 1, 3), (2, 1, 2)],
    )
    def test_a_last_batch_of_one_is_left_out(self, images: int, batch_size: int, iterations: int) -> None:
        assert iterations_per_epoch(images, batch_size) == iterations

    def test_a_network_that_normalises_vectors_trains_on_any_number_of_images(self) -> None:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        data = dataclasses.replace(small_data(), train=bars(33, seed=0))
        trained = train(module, data, recipe=RECIPE, preprocessing=PREPROCESSING)
        assert len(trained.history) == 3

    def test_weight_decay_leaves_vectors_alone(self) -> None:
        groups = optimiser_of(small_network(), RECIPE).param_groups
        assert [g["weight_decay"] for g in groups] == [RECIPE.weight_decay, 0.0]
        assert [{p.ndim for p in g["params"]} for g in groups] == [{2, 4}, {1}]


class TestRefusals:
    def test_unlabelled_data(self) -> None:
        images = Images(torch.zeros(9, 1, 8, 8, dtype=torch.uint8))
        data = dataclasses.replace(small_data(), train=images)
        with pytest.raises(RetrainError, match="bars has no labels"):
            train(small_network(), data, recipe=RECIPE, preprocessing=PREPROCESSING)

    def test_labels_without_an_output(self) -> None:
        images = Images(torch.zeros(9, 1, 8, 8, dtype=torch.uint8), torch.arange(9))
        data = dataclasses.replace(small_data(), train=images)
        with pytest.raises(TaskError, match="labels from 0 to 8 do not fit"):
            train(small_network(), data, recipe=RECIPE, preprocessing=PREPROCESSING)

    def test_a_loss_that_is_not_finite(self) -> None:
        wild = dataclasses.replace(RECIPE, schedule=Schedule(rate=1e30, warmup=0.0))
        with pytest.raises(RetrainError, match=r"the loss is (nan|inf) in epoch 1") as refused:
            run(recipe=wild)
        assert "--lr" in str(refused.value.hint)

    def test_a_frozen_network(self) -> None:
        with pytest.raises(RetrainError, match="no parameter"):
            run(small_network().requires_grad_(False))

    @pytest.mark.parametrize("output", [(), {}, 3, None])
    def test_an_output_without_scores(self, output: object) -> None:
        with pytest.raises(RetrainError, match="not class scores"):
            class_scores(output)

    @pytest.mark.parametrize("wrap", [lambda t: (t, 1), lambda t: {"out": t, "aux": 0}, lambda t: [[t]], lambda t: t])
    def test_scores_are_found_in_any_container(self, wrap: object) -> None:
        scores = torch.zeros(2, 3)
        assert class_scores(wrap(scores)) is scores  # type: ignore[operator]


class TestSchedule:
    @pytest.mark.parametrize(
        ("schedule", "progress", "rate"),
        [
            (Schedule(rate=1.0, warmup=0.0), 0.0, 1.0),
            (Schedule(rate=1.0, warmup=0.0), 0.5, 0.5),
            (Schedule(rate=1.0, warmup=0.0), 1.0, 0.0),
            (Schedule(rate=0.4, warmup=0.2), 0.0, 0.0004),
            (Schedule(rate=0.4, warmup=0.2), 0.1, 0.2),
            (Schedule(rate=0.4, warmup=0.2), 0.2, 0.4),
            (Schedule(rate=0.4, warmup=0.2), 0.6, 0.2),
            (Schedule(rate=1.0, warmup=0.0, shape=Shape.STEP), 0.49, 1.0),
            (Schedule(rate=1.0, warmup=0.0, shape=Shape.STEP), 0.5, 0.1),
            (Schedule(rate=1.0, warmup=0.0, shape=Shape.STEP), 0.75, 0.01),
            (Schedule(rate=1.0, warmup=0.0, shape=Shape.STEP, milestones=(0.9,)), 0.8, 1.0),
            (Schedule(rate=0.3, warmup=0.0, shape=Shape.CONSTANT), 0.99, 0.3),
            # a rewound run: what the schedule says from `skipped` on
            (Schedule(rate=1.0, warmup=0.0, shape=Shape.STEP, skipped=0.5), 0.0, 0.1),
            (Schedule(rate=1.0, warmup=0.0, shape=Shape.STEP, skipped=0.5), 0.5, 0.01),
            (Schedule(rate=1.0, warmup=0.0, skipped=0.5), 0.0, 0.5),
            (Schedule(rate=1.0, warmup=0.2, skipped=0.6), 0.0, 0.5),
        ],
    )
    def test_rates_by_hand(self, schedule: Schedule, progress: float, rate: float) -> None:
        assert schedule.at(progress) == pytest.approx(rate, abs=1e-12)

    @settings(deadline=None)
    @given(
        rate=st.floats(1e-5, 10),
        warmup=st.floats(0, 0.99),
        skipped=st.floats(0, 0.99),
        shape=st.sampled_from(list(Shape)),
        progress=st.floats(0, 1),
    )
    def test_a_rate_is_never_negative_nor_above_its_peak(
        self, rate: float, warmup: float, skipped: float, shape: Shape, progress: float
    ) -> None:
        at = Schedule(rate=rate, warmup=warmup, skipped=skipped, shape=shape).at(progress)
        assert 0 <= at <= rate * (1 + 1e-12)
        assert at > 0 or progress == 1 or math.isclose(at, 0, abs_tol=1e-12)

    @pytest.mark.parametrize(
        "fields",
        [
            {"rate": 0},
            {"rate": -1},
            {"rate": math.inf},
            {"rate": math.nan},
            {"rate": 1, "warmup": 1},
            {"rate": 1, "skipped": -0.1},
        ],
    )
    def test_no_schedule_without_sense(self, fields: dict[str, float]) -> None:
        with pytest.raises(RetrainError):
            Schedule(**fields)  # type: ignore[arg-type]


class TestRecipe:
    def test_plain_values_and_back(self, tmp_path: Path) -> None:
        recipe = dataclasses.replace(
            RECIPE, how=How.SCRATCH_B, start=Start.FRESH, optimiser=Optimiser.ADAMW, notes=("a", "b")
        )
        plain = recipe.to_json()
        assert recipe_from_json(json.loads(json.dumps(plain))) == recipe
        assert json.loads(json.dumps(plain)) == plain
        torch.save(plain, tmp_path / "r.pt")
        assert torch.load(tmp_path / "r.pt", weights_only=True) == plain  # no class of ours is pickled

    @pytest.mark.parametrize(
        "change", [{"schedule": 3}, {"how": "x"}, {"more": 1}, {"budget": {}}, {"optimiser": "adam"}]
    )
    def test_what_is_no_recipe_is_refused(self, change: dict[str, object]) -> None:
        with pytest.raises(RetrainError):
            recipe_from_json({**RECIPE.to_json(), **change})

    @pytest.mark.parametrize(
        "change", [{"budget": Step(epochs=0)}, {"batch_size": 0}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}]
    )
    def test_no_recipe_without_sense(self, change: dict[str, object]) -> None:
        with pytest.raises(RetrainError):
            dataclasses.replace(RECIPE, **change)  # type: ignore[arg-type]

    def test_a_negative_length_is_refused(self) -> None:
        with pytest.raises(RetrainError, match="-1 epochs"):
            Step(epochs=-1)

    def test_ways_are_known_by_name(self) -> None:
        assert how_named("scratch-b") is How.SCRATCH_B
        with pytest.raises(RetrainError, match="called `finetune`") as refused:
            how_named("finetune")
        assert "fine-tune" in str(refused.value.hint)


def test_correct_is_counted_over_every_image() -> None:
    class Right(nn.Module):
        """Reads the label out of the first pixel."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long(), 10).float()

    labels = torch.arange(700) % 10
    images = Images(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), labels)
    assert correct_in(Right(), images, preprocessing=Preprocessing()) == 700
    images.labels[:100] = (images.labels[:100] + 1) % 10
    assert correct_in(Right(), images, preprocessing=Preprocessing()) == 600


def test_a_network_with_two_inputs_is_trained_for_numbers() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 1), nn.Linear(2, 1)

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return (self.a(x) + self.b(z))[:, 0]

    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(200, 3, generator=generator), torch.randn(200, 2, generator=generator)
    items = [{"x": a, "z": b, "target": float(a.sum() - b[0])} for a, b in zip(x, z, strict=True)]
    data = Data(name="sums", source="made", train=items[:160], tune=items[160:], test=None)
    recipe = dataclasses.replace(RECIPE, budget=Step(epochs=8), augment=())
    trained = train(Adds(), data, recipe=recipe, preprocessing=Preprocessing(takes=("x", "z")))
    first, last = trained.history[0], trained.history[-1]
    assert (last.metric, last.tune_total, last.tune_correct) == ("MAE", 40, None)
    assert last.tuned < 0.2 * first.tuned < 0.2 * 2
