"""Retrain a pruned network: choose its first weights, run the training loop, add a lineage entry."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compressor.checkpoint.recipes import How, Recipe
from compressor.data.splits import Data, SplitName
from compressor.errors import RetrainError, RuntimeUnavailable
from compressor.graph.copies import copy_of
from compressor.graph.recorded import RecordedProgram
from compressor.surgery.masks import WeightMask, apply_mask_
from compressor.surgery.surgery import put_state_
from compressor.training.loop import AfterStep, Callback, Hooks, Progress, train
from compressor.training.ways import SCRATCH, Wishes, recipe_for

if TYPE_CHECKING:
    from compressor.checkpoint.checkpoint import Checkpoint

__all__ = ["Wishes", "read_early_state", "recipe_for", "retrain", "starting_module", "tensorboard"]


def starting_module(
    checkpoint: Checkpoint, how: How, *, early_state: Mapping[str, Tensor] | None = None, seed: int = 0
) -> nn.Module:
    """Return the module that a run starts from; the checkpoint's own is not modified.

    Scratch arms: the small architecture with fresh weights, drawn by `seed` for the small shapes (not the large
    network's initial weights, masked). `rewind-weights`: the dense network's `early_state`, cut by the checkpoint's
    surgery. Refused: parameters without `reset_parameters`, an early state that is missing or belongs to another
    network.
    """
    module: nn.Module = copy_of(checkpoint.module)
    if how in SCRATCH:
        _draw_afresh_(module, seed=seed)
    elif how is How.REWIND_WEIGHTS:
        if early_state is None:
            raise RetrainError(
                "rewinding weights needs an early checkpoint of the dense network", hint="give it: `--rewind-to FILE`"
            )
        try:
            early_state = _named_as(module, early_state)
            cut = checkpoint.surgery.cut_state(early_state) if checkpoint.surgery else dict(early_state)
            put_state_(module, cut)
        except (RuntimeError, IndexError, KeyError) as error:  # a factorised layer may be missing
            reason = " ".join(str(error).split())
            raise RetrainError(
                f"the early checkpoint does not belong to this network: {reason[:300]}",
                hint="it must hold the dense network's weights from earlier in its training",
            ) from error
    return module


def _named_as(module: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the state under the module's names: the reader may have removed a child's name as a wrapper's prefix."""
    own = set(module.state_dict())
    prefix = f"{next(iter(own)).partition('.')[0]}." if own else ""
    restored = {prefix + name: tensor for name, tensor in state.items()}
    return restored if set(restored) == own else state


def _draw_afresh_(module: nn.Module, *, seed: int) -> None:
    """Initialise every layer anew, in place; children first, because an attention layer sets its projection's bias."""
    if isinstance(module, RecordedProgram):
        raise RetrainError(
            "the small network is kept as its exported program, which has no layers to draw afresh",
            hint="`--how fine-tune` trains it; `prune --protect NAME` keeps what its class cannot hold narrower",
        )
    without = [
        name or type(module).__name__
        for name, layer in module.named_modules()
        if any(True for _ in layer.parameters(recurse=False)) and _initialiser(layer) is None
    ]
    if without:
        raise RetrainError(
            f"no fresh weights for {', '.join(f'`{n}`' for n in without[:5])}{' …' * (len(without) > 5)}: "
            "they have parameters and no `reset_parameters`",
            hint="add the method to these layers, or use `--how fine-tune`",
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for layer in reversed(list(nn.Module.modules(module))):
            initialise = _initialiser(layer)
            if initialise is not None:
                initialise()


def _initialiser(layer: nn.Module) -> Any:
    """Return the layer's method that draws fresh weights; `None` if it has none."""
    name = "_reset_parameters" if isinstance(layer, nn.MultiheadAttention) else "reset_parameters"
    method = getattr(layer, name, None)
    return method if callable(method) else None


def retrain(
    checkpoint: Checkpoint,
    data: Data,
    *,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    callbacks: tuple[Callback, ...] = (),
    after_step: tuple[AfterStep, ...] = (),
    state_file: Path | None = None,
    mask: WeightMask | None = None,
    early_state: Mapping[str, Tensor] | None = None,
    device: str | None = None,
) -> Checkpoint:
    """Return the checkpoint with its network retrained by `recipe`, and a new lineage entry.

    `device` is used for training only; the result is on the checkpoint's device. Weights that `mask` removed stay zero.
    If all parameters are frozen, all are trained, and the result is frozen again. Refused: what `starting_module` and
    `train` refuse, a mask with a scratch arm, a missing device.
    """
    home = next((p.device for p in checkpoint.module.parameters()), torch.device("cpu"))
    place = home if device is None else device_named(device)
    how = recipe.how or How.FINE_TUNE
    if mask is not None and how in SCRATCH:
        raise RetrainError(
            "a masked network has no smaller shapes to train from scratch",
            hint="prune channels (`--ratio`), or use `--how rewind-weights`",
        )
    module = starting_module(checkpoint, how, early_state=early_state, seed=recipe.seed)
    frozen = not any(p.requires_grad for p in module.parameters())
    if frozen:
        module.requires_grad_(True)

    def masked(trained: nn.Module) -> None:
        if mask is not None:
            apply_mask_(trained, mask)

    trained = train(
        module.to(place),
        data,
        recipe=recipe,
        preprocessing=checkpoint.preprocessing,
        teacher=None if teacher is None else copy_of(teacher).to(place),
        hooks=Hooks(callbacks=callbacks, after_step=((masked,) if mask is not None else ()) + after_step),
        state_file=state_file,
    )
    retrained = trained.module.to(home)
    if frozen:
        retrained.requires_grad_(False)
    entry: dict[str, object] = {
        "step": "retrain",
        "how": str(how),
        "epochs": recipe.budget.epochs,
        "recipe": recipe.to_json(),
        "teacher": teacher is not None,
        "data": data.name,
        "images": len(data.split(SplitName.TRAIN)),
        "splits": data.to_json(),
        "history": [record.to_json() for record in trained.history],
    }
    return dataclasses.replace(checkpoint, module=retrained, lineage=(*checkpoint.lineage, entry))


def device_named(name: str) -> torch.device:
    """Return the device called `name`; `auto` is a GPU if there is one. Refused: a missing device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise RuntimeUnavailable(
            f"cannot train on `{name}`: {reason}", hint="train on the CPU: `--device cpu`"
        ) from error
    return device


def read_early_state(file: Path) -> dict[str, Tensor]:
    """Return the weights of an early checkpoint, under the usual keys and prefixes; only tensors are unpickled."""
    from compressor.checkpoint.reading import read_state

    return read_state(file)


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Callback]:
    """Yield a callback that writes loss, rate and tuning accuracy to `folder`; refused: no TensorBoard installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RuntimeUnavailable(
            "TensorBoard is not installed", hint="install it: `pip install compress[tensorboard]`"
        ) from error
    writer: Any = SummaryWriter(str(folder))

    def stream(progress: Progress) -> None:
        step = progress.epoch * progress.iterations + progress.iteration
        writer.add_scalar("train/loss", progress.loss, step)
        writer.add_scalar("train/rate", progress.rate, step)
        if progress.record is not None:
            writer.add_scalar("train/epoch_loss", progress.record.train_loss, step)
            writer.add_scalar("tune/accuracy", progress.record.tuned, step)

    try:
        yield stream
    finally:
        writer.close()
