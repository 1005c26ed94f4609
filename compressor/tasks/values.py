"""Tasks whose answers are numbers: regression, the restoration of images, and the probability of a text."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressor.errors import TaskError
from compressor.tasks.task import Rows, Task, first_tensor, mean_or_ratio, softened_distance

EXACT = 1e-10  # the least mean squared error that a signal-to-noise ratio tells apart


def _both(outputs: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets of one shape; a single output `[batch, 1]` is `[batch]` too."""
    answers, wanted = first_tensor(outputs), target
    if answers.ndim == wanted.ndim + 1 and answers.shape[-1] == 1:
        answers = answers[..., 0]
    if answers.shape != wanted.shape:
        raise TaskError(
            f"outputs of {list(answers.shape)} for targets of {list(wanted.shape)}",
            hint="regression needs a number for every output: or say what it is, `--task file.py:task`",
        )
    return answers, wanted.to(answers.device, answers.dtype)


def regression() -> Task:
    """Numbers: outputs and targets of one shape; mean squared error as the loss, mean absolute error as the score."""

    def loss(outputs: Any, target: Tensor) -> Tensor:
        return functional.mse_loss(*_both(outputs, target))

    def score(outputs: Any, target: Tensor) -> Tensor:
        answers, wanted = _both(outputs, target)
        return (answers - wanted).abs().double().reshape(len(answers), -1).mean(dim=1)

    return Task(
        name="regression",
        metric="MAE",
        loss=loss,
        score=score,
        percent=False,
        higher_is_better=False,
        as_target=lambda outputs: first_tensor(outputs).squeeze(-1),
    )


def restoration() -> Task:
    """Images for images: outputs and targets `[batch, channels, h, w]`; mean squared error as the loss, the peak
    signal-to-noise ratio as the score, where the peak is 1, or 255 where the targets go beyond 1.
    """

    def score(outputs: Any, target: Tensor) -> Tensor:
        answers, wanted = _both(outputs, target)
        peak = 1.0 if float(wanted.max()) <= 1.0 else 255.0
        error = (answers - wanted).double().square().flatten(1).mean(dim=1).clamp_min(EXACT)
        return 10 * torch.log10(peak**2 / error)

    return Task(
        name="restoration",
        metric="PSNR",
        unit="dB",
        percent=False,
        loss=lambda outputs, target: functional.mse_loss(*_both(outputs, target)),
        score=score,
        as_target=first_tensor,
    )


def language_modelling() -> Task:
    """The next token: outputs `[batch, tokens, vocabulary]`, targets the tokens themselves, int `[batch, tokens]`,
    where negative numbers do not count; cross entropy, perplexity.
    """

    def surprise(outputs: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        whole = first_tensor(outputs)
        if whole.ndim != 3 or whole.shape[:2] != target.shape:
            raise TaskError(
                f"outputs of {list(whole.shape)} are no scores of the next token, for texts of {list(target.shape)}",
                hint="a language model returns `[batch, tokens, vocabulary]`; leave out `--task`, or name another one",
            )
        scores, after = whole[:, :-1], target[:, 1:].long().to(whole.device)
        each = functional.cross_entropy(scores.transpose(1, 2), after.clamp_min(0), reduction="none")
        return each, after >= 0

    def loss(outputs: Any, target: Tensor) -> Tensor:
        each, counts = surprise(outputs, target)
        return (each * counts).sum() / counts.sum().clamp_min(1)

    def score(outputs: Any, target: Tensor) -> Tensor:
        each, counts = surprise(outputs, target)
        return torch.stack([(each * counts).sum(dim=1), counts.sum(dim=1)], dim=1).double()

    return Task(
        name="language-modelling",
        metric="perplexity",
        percent=False,
        higher_is_better=False,
        loss=loss,
        score=score,
        value=perplexity,
        as_target=None,
        distance=softened_distance(2),
    )


def perplexity(rows: Rows) -> float:
    """Return exp of the mean surprise of a token."""
    return math.exp(min(700.0, mean_or_ratio(rows)))
