"""`compress prune --sparsity --mask-criterion`: what a user types, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compressor.checkpoint.loading import load
from tests.support.command_line import ARCH, done, refused

ASK = ("prune", "tiny.pt", *ARCH, "--sparsity", 0.5, "--mask-criterion")


@pytest.fixture
def early(inputs: Path) -> Path:
    """Weights that half of the network's have grown from, and the other half shrunk."""
    state = torch.load("tiny.pt")
    torch.save({n: t * (1 + (torch.arange(t.numel()).view(t.shape) % 2 - 0.5)) for n, t in state.items()}, "early.pt")
    return inputs / "early.pt"


def test_weights_that_grew_are_kept(early: Path) -> None:
    done(*ASK, "magnitude-increase", "--initial", early)
    module = load("tiny.compressed", arch="net.py:Net").module
    weight, first = module.get_parameter("body.3.weight").detach(), torch.load(early)["body.3.weight"]
    kept = weight != 0
    assert int(kept.sum()) == weight.numel() // 2
    assert bool((weight.abs() > first.abs())[kept].all())


def test_the_result_says_what_judged(early: Path) -> None:
    said = json.loads(done(*ASK, "movement", "--initial", early, "--dry-run", "--json").stdout)
    assert said["mask"]["criterion"] == said["lineage"][-1]["criterion"] == "movement"
    said = json.loads(done("prune", "tiny.pt", *ARCH, "--sparsity", 0.5, "--dry-run", "--json").stdout)
    assert said["mask"]["criterion"] == "large-final"


def test_what_does_not_go_together_is_refused(early: Path) -> None:
    refused(*ASK, "movement", says="`movement` compares every weight", hints="--initial FILE")
    refused(*ASK, "movemnt", says="no mask criterion called `movemnt`", hints="movement")
    refused(*ASK, "random", "--initial", early, says="`random` does not use initial weights", hints="--initial")
    refused(
        "prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--mask-criterion", "movement",
        says="`--mask-criterion` judges single weights", hints="--sparsity",
    )  # fmt: skip
    refused(
        "prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--initial", early,
        says="`--initial` is for single weights", hints="--sparsity",
    )  # fmt: skip
    refused(*ASK, "movement", "--initial", "nowhere.pt", says="nowhere.pt is not there", hints="path")
