"""Retraining what pruning left: from the right first weights, through the one training loop, to a new lineage entry."""

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
    """The module that a run starts from; the checkpoint's own stays as it was.

    Scratch arms: the small architecture with fresh weights, drawn by `seed`, as a dense network of these shapes would
    have (never the large one's, masked). `rewind-weights`: the dense network's `early_state`, cut as it was cut.
    Refused: parameters that no `reset_parameters` draws, an early state that is missing or of another network.
    """
    module: nn.Module = copy_of(checkpoint.module)
    if how in SCRATCH:
        _draw_afresh_(module, seed=seed)
    elif how is How.REWIND_WEIGHTS:
        if early_state is None:
            raise RetrainError(
                "rewinding weights takes an early checkpoint of the dense network", hint="give it: `--rewind-to FILE`"
            )
        try:
            early_state = _named_as(module, early_state)
            cut = checkpoint.surgery.cut_state(early_state) if checkpoint.surgery else dict(early_state)
            put_state_(module, cut)
        except (RuntimeError, IndexError, KeyError) as error:  # a layer that became two may be missing
            said = " ".join(str(error).split())
            raise RetrainError(
                f"the early checkpoint is not one of this network: {said[:300]}",
                hint="it must hold the dense network's weights at an earlier time",
            ) from error
    return module


def _named_as(module: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state under the module's own names: reading it may have taken its first child's for a wrapper's prefix."""
    own = set(module.state_dict())
    prefix = f"{next(iter(own)).partition('.')[0]}." if own else ""
    restored = {prefix + name: tensor for name, tensor in state.items()}
    return restored if set(restored) == own else state


def _draw_afresh_(module: nn.Module, *, seed: int) -> None:
    """Every layer's own initialisation, in place; children first, for an attention layer sets its projection's bias."""
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
            "parameters of their own and no `reset_parameters`",
            hint="give the layers one, or use `--how fine-tune`",
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for layer in reversed(list(nn.Module.modules(module))):
            initialise = _initialiser(layer)
            if initialise is not None:
                initialise()


def _initialiser(layer: nn.Module) -> Any:
    name = "_reset_parameters" if isinstance(layer, nn.MultiheadAttention) else "reset_parameters"
    found = getattr(layer, name, None)
    return found if callable(found) else None


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
    """The checkpoint's network, retrained by `recipe`, with what was done as a new lineage entry.

    It is trained on `device`, where that is given, and comes back to where it was.

    With `mask`, its removed weights stay zero. A network that is frozen throughout is trained throughout, and comes
    back frozen. Refused: what `starting_module` and `train` refuse, a mask on a scratch arm, a device that is not here.
    """
    home = next((p.device for p in checkpoint.module.parameters()), torch.device("cpu"))
    place = home if device is None else device_named(device)
    how = recipe.how or How.FINE_TUNE
    if mask is not None and how in SCRATCH:
        raise RetrainError(
            "a masked network has no small shapes to train from scratch",
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
        "history": [dataclasses.asdict(record) for record in trained.history],
    }
    return dataclasses.replace(checkpoint, module=retrained, lineage=(*checkpoint.lineage, entry))


def device_named(name: str) -> torch.device:
    """The device called `name`; `auto` is a GPU where there is one. Refused: one that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        said = str(error).splitlines()[0]
        raise RuntimeUnavailable(
            f"cannot train on `{name}`: {said}", hint="train on the CPU: `--device cpu`"
        ) from error
    return device


def read_early_state(file: Path) -> dict[str, Tensor]:
    """The weights in an early checkpoint, under the usual keys and prefixes; nothing but tensors is unpickled."""
    from compressor.checkpoint.reading import read_state

    return read_state(file)


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Callback]:
    """A callback that streams loss, rate and tune accuracy to `folder`; refused where TensorBoard is not installed."""
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
            writer.add_scalar("tune/accuracy", progress.record.tune_correct / progress.record.tune_total, step)

    try:
        yield stream
    finally:
        writer.close()
