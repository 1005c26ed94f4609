"""Pickle a module's structure without its weights: it rebuilds a network whose class has no reference."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.checkpoint.pickles.unpickle import read_pickle
from compressor.errors import CheckpointError
from compressor.files.names import check_names_in
from compressor.graph.calling import own_class_
from compressor.graph.copies import copy_of


def write_skeleton(module: nn.Module, file: Path) -> None:
    """Pickle the module's structure with its current shapes, without the weights that its state has.

    Tensors that no state has, as buffers that are not persistent or plain attributes, keep their values.
    """
    stored = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) in stored]
    torch.save(own_class_(copy_of(module, instead=[(one, _without_values(one)) for one in tensors])), file)


def _without_values(tensor: Tensor) -> Tensor:
    """The tensor with its shape and type only."""
    bare = tensor.detach().to("meta")
    return nn.Parameter(bare, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def read_skeleton(file: Path, *, trust_pickle: bool = False) -> nn.Module:
    """Return the structure that `write_skeleton` wrote, without weights. Refused: a pickle that could run code."""
    module = read_pickle(file, trust_pickle=trust_pickle)
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"{file} holds no module", hint="prune again")
    check_names_in(module, where=str(file))
    return module
