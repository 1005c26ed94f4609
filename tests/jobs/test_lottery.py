"""`compress retrain --how lottery`: a network in, its ticket as a masked artifact out, however often it stops."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.checkpoint.artifacts import Artifact, open_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.checkpoint.recipes import How
from compressor.data.sources import load_data
from compressor.data.splits import Data
from compressor.errors import RetrainError
from compressor.jobs import lottery as ticketing
from compressor.training.loop import Progress
from compressor.training.retraining import starting_module
from compressor.training.watch import state_of
from compressor.training.ways import Wishes
from tests.support.command_line import ARCH, done, refused

WORDS = (
    "--how", "lottery", "--data", "data.npz", "--dense-epochs", 2, "--lr", 0.05, "--batch-size", 32,
    "--augment", "none",
)  # fmt: skip


@pytest.fixture
def early(inputs: Path) -> Path:
    """Other weights of the tiny network, as from an earlier time."""
    state = {n: t * 0.9 + 0.01 if t.is_floating_point() else t for n, t in torch.load(inputs / "tiny.pt").items()}
    torch.save(state, inputs / "early.pt")
    return inputs / "early.pt"


def tiny() -> Checkpoint:
    return load("tiny.pt", arch=ARCH[1], inputs=("1x1x16x16",))


def data() -> Data:
    return load_data("data.npz")


def search(rewind_to: str | None, *, out: str = "out.compressed", rounds: int = 3, **options: Any) -> ticketing.Search:
    wishes = options.pop("wishes", Wishes(dense_epochs=2, rate=0.05, batch_size=32, augment=()))
    network = tiny()
    asked = ticketing.rounds_for(network, rounds=rounds, rate=0.4)
    return ticketing.prepare(network, rounds=asked, rewind_to=rewind_to, wishes=wishes, folder=Path(out), **options)


def found(place: str) -> tuple[Artifact, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    artifact = open_artifact(Path(place))
    mask = artifact.mask()
    assert mask is not None
    return artifact, dict(mask.kept), dict(artifact.checkpoint().module.state_dict())


class StoppedError(Exception):
    """Where a user would press Ctrl-C."""


def stopping(calls: int) -> Callable[[Progress], None]:
    left = [calls]

    def press(_: Progress) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError

    return press


@pytest.mark.usefixtures("trusting")
class TestRun:
    def test_every_round_is_in_the_results_and_the_counts_are_exact(self, early: Path) -> None:
        told: list[dict[str, Any]] = []
        results = ticketing.run(search(str(early)), data(), say=lambda one: told.append(one.to_json())).to_json()
        artifact, mask, state = found("out.compressed")
        left = {n: k.numel() for n, k in mask.items()}
        for row in told:
            left = {n: k - int((0.2 if n == "body.8.weight" else 0.4) * k + 1e-9) for n, k in left.items()}
            assert row["weights"] - row["zeros"] == sum(left.values())
        assert {n: int(k.sum()) for n, k in mask.items()} == left
        assert not any(bool(state[n][~k].any()) for n, k in mask.items())
        assert results["lottery"]["told"] == told == artifact.results().to_json()["lottery"]["told"]
        assert results["mask"]["zeros"] == told[-1]["zeros"]
        assert results["lottery"]["rewound_to"] == "early weights"
        steps = [step["step"] for step in results["lineage"]]
        assert steps == ["mask", "retrain"] * 3
        assert [p.name for p in Path().iterdir() if "partial" in p.name] == []
        entry = results["retrain"][0]
        assert (entry["how"], entry["epochs"]) == ("rewind-weights", 1)
        assert (told[-1]["tune_correct"], told[-1]["tune_total"]) == (entry["history"][-1]["tune_correct"], 20)

    @pytest.mark.parametrize(
        ("rewind_to", "step", "calls"),
        [("early.pt", 0, 8), ("trained", 0, 6), ("fresh", 0, 16), ("fresh", 7, 6), ("fresh", 7, 8)],
    )
    def test_a_search_that_was_stopped_anywhere_gives_the_bytes_of_one_that_was_not(
        self, early: Path, rewind_to: str, step: int, calls: int
    ) -> None:
        assert early.exists()
        whole = ticketing.run(search(rewind_to, step=step, rounds=2, out="a.compressed"), data()).to_json()
        planned = search(rewind_to, step=step, rounds=2, out="b.compressed")
        with pytest.raises(StoppedError):
            ticketing.run(planned, data(), callbacks=(stopping(calls),))
        assert not planned.folder.exists()
        seen: list[Progress] = []
        resumed = ticketing.run(planned, data(), callbacks=(seen.append,)).to_json()
        (_, mask_a, state_a), (_, mask_b, state_b) = found("a.compressed"), found("b.compressed")
        assert all(torch.equal(k, mask_b[n]) for n, k in mask_a.items())
        assert all(torch.equal(t, state_b[n]) for n, t in state_a.items())
        assert resumed["lottery"] == whole["lottery"]
        assert resumed["lineage"] == whole["lineage"]

    def test_fresh_weights_are_drawn_by_the_seed_trained_first_and_rewound_to(self, inputs: Path) -> None:
        assert inputs.exists()
        starts: list[dict[str, torch.Tensor]] = []
        real = ticketing.retrain

        def watched(checkpoint: Checkpoint, *args: Any, **options: Any) -> Checkpoint:
            starts.append(dict(options.get("early_state") or {}))
            return real(checkpoint, *args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ticketing, "retrain", watched)
            results = ticketing.run(search("fresh", rounds=1), data()).to_json()
        drawn = state_of(starting_module(tiny(), How.SCRATCH_E, seed=0))
        _, mask, _ = found("out.compressed")
        for name, tensor in starts[1].items():
            assert torch.equal(tensor, drawn[name] * mask.get(name, torch.ones_like(tensor)))
        assert [step["step"] for step in results["lineage"]] == ["retrain", "mask", "retrain"]
        assert [step.get("epochs") for step in results["lineage"]] == [2, None, 2]

    def test_a_late_step_leaves_the_first_epochs_and_their_part_of_the_schedule_out(self, inputs: Path) -> None:
        assert inputs.exists()
        results = ticketing.run(search("fresh", step=7, rounds=1), data())  # 5 steps in an epoch
        recipe = results.lineage[-1]["recipe"]
        assert (recipe["budget"]["epochs"], recipe["schedule"]["skipped"]) == (1, 0.5)
        with pytest.raises(RetrainError, match="10 steps: none remains after 10"):
            ticketing.run(search("fresh", step=10, rounds=1, out="other.compressed"), data())

    def test_the_state_of_another_search_is_refused(self, early: Path) -> None:
        planned = search(str(early))
        with pytest.raises(StoppedError):
            ticketing.run(planned, data(), callbacks=(stopping(8),))
        for other, what in (
            (dataclasses.replace(planned, rounds=dataclasses.replace(planned.rounds, rate=0.3)), "rounds"),
            (search("trained"), "early weights, recipe"),
        ):
            with pytest.raises(RetrainError, match=f"another {what}"):
                ticketing.run(other, data())
        (planned.state_file / ticketing.ROUNDS).write_bytes(b"broken")
        with pytest.raises(RetrainError, match="no state of a run"):
            ticketing.run(planned, data())

    def test_the_weights_that_an_artifact_lacks_stay_away(self, early: Path) -> None:
        done("prune", "tiny.pt", *ARCH, "--sparsity", 0.5, "--repair", "none", "--out", "half.compressed")
        artifact = open_artifact(Path("half.compressed"))
        network = artifact.checkpoint()
        planned = ticketing.prepare(
            network, artifact=artifact, rounds=ticketing.rounds_for(network, rounds=1, rate=0.4),
            rewind_to=str(early), wishes=Wishes(dense_epochs=2, rate=0.05, augment=()),
        )  # fmt: skip
        assert planned.folder == Path("half.lottery.compressed")
        results = ticketing.run(planned, data()).to_json()
        before, after = artifact.mask(), open_artifact(planned.folder).mask()
        assert before is not None
        assert after is not None
        assert after.nested_in(before)
        assert [step["step"] for step in results["lineage"]] == ["mask", "mask", "retrain"]
        with pytest.raises(RetrainError, match="cannot start from fresh weights"):
            ticketing.prepare(
                network, artifact=artifact, rounds=planned.rounds, rewind_to="fresh", wishes=Wishes(dense_epochs=2),
                folder=Path("x.compressed"),
            )  # fmt: skip

    def test_a_small_network_is_rewound_in_its_small_shapes(self, early: Path) -> None:
        done("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--out", "small.compressed")
        artifact = open_artifact(Path("small.compressed"))
        network = artifact.checkpoint()
        planned = ticketing.prepare(
            network, artifact=artifact, rounds=ticketing.rounds_for(network, rounds=2), rewind_to=str(early),
            wishes=Wishes(dense_epochs=2, rate=0.05, augment=()),
        )  # fmt: skip
        assert network.surgery is not None
        cut = network.surgery.cut_state(torch.load(early))
        assert planned.early is not None
        assert all(torch.equal(t, cut[n]) for n, t in planned.early.items() if n in cut)
        results = ticketing.run(planned, data()).to_json()
        assert "prune" in results
        _, mask, state = found(str(planned.folder))
        assert all(state[n].shape == k.shape for n, k in mask.items())


class TestCommand:
    def test_a_ticket_from_a_checkpoint_is_an_artifact_that_exports(self, early: Path) -> None:
        result = done("retrain", "tiny.pt", *ARCH, *WORDS, "--rounds", 2, "--rewind-to", early, "--device", "cpu")
        assert "round 2: " in result.stderr
        assert "2 rounds, each removes 0.2 of each layer's weights left, 0.1 of `body.8.weight`" in result.stderr
        assert "wrote tiny.lottery.compressed" in result.stdout
        assert "rewound to: early weights" in result.stdout
        done("evaluate", "tiny.lottery.compressed", "--data", "data.npz")
        done("report", "tiny.lottery.compressed")

    @pytest.mark.usefixtures("trusting", "inputs")
    def test_the_results_are_json(self) -> None:
        ask = (
            "retrain",
            "tiny.pt",
            *ARCH,
            *WORDS,
            "--rounds",
            1,
            "--rewind-to",
            "trained",
            "--scope",
            "global",
            "--json",
        )
        results = json.loads(done(*ask).stdout)
        assert results["lottery"]["rates"] == {"body.8.weight": 0.0}
        assert results["mask"]["scope"] == "global"
        assert results["retrain"][0]["how"] == "rewind-lr"

    @pytest.mark.parametrize(
        ("words", "says", "hints"),
        [
            ((), "early weights of its network", "--rewind-to fresh"),
            (("--rewind-to", "gone.pt"), "gone.pt is not there", "check the path"),
            (("--rewind-to", "other.pt"), "does not belong to this network", "dense network's weights"),
            (("--rewind-to", "trained", "--rewind-step", 3), "from fresh weights", "--rewind-to fresh"),
            (("--rewind-to", "fresh", "--epochs", 3), "as long as", "--dense-epochs"),
            (("--rewind-to", "trained", "--rate", 1.5), "between 0 and 1", "--rate 0.2"),
            (("--rewind-to", "trained", "--scope", "layer"), "no scope called `layer`", "uniform"),
            (("--rewind-to", "trained", "--teacher", "dense"), "`--teacher` has no effect", "leave it out"),
            (("--rewind-to", "trained", "--out", "data.npz"), "is in the way", "--out"),
        ],
    )
    @pytest.mark.usefixtures("inputs")
    def test_wrong_wishes_are_refused_before_anything_is_written(
        self, words: tuple[object, ...], says: str, hints: str
    ) -> None:
        torch.save({"weight": torch.zeros(3)}, "other.pt")
        refused("retrain", "tiny.pt", *ARCH, *WORDS, *words, says=says, hints=hints)

    @pytest.mark.usefixtures("inputs")
    def test_a_checkpoint_without_a_recorded_training_asks_how_long_it_was(self) -> None:
        ask = ("retrain", "tiny.pt", *ARCH, "--how", "lottery", "--data", "data.npz", "--rewind-to", "trained")
        refused(*ask, says="does not record it", hints="--dense-epochs")

    @pytest.mark.usefixtures("workdir")
    def test_what_is_for_the_lottery_is_refused_elsewhere_and_its_name_is_known(self) -> None:
        refused("retrain", "--data", "data.npz", "--rounds", 3, says="`--rounds` has no effect", hints="another way")
        refused("retrain", "--data", "data.npz", "--how", "lotery", says="lotery", hints="did you mean `lottery`?")
