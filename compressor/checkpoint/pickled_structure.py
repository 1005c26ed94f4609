"""Pickle a module's structure without its weights: it rebuilds a network whose class has no reference."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compressor.checkpoint.unpickle import read_pickle
from compressor.errors import CheckpointError
from compressor.files.names import check_names_in
from compressor.graph.copies import copy_of


def write_skeleton(module: nn.Module, file: Path) -> None:
    """Pickle the module's structure without its weights, with its current shapes."""
    torch.save(copy_of(module).to("meta"), file)


def read_skeleton(file: Path, *, trust_pickle: bool = False) -> nn.Module:
    """Return the structure that `write_skeleton` wrote, without weights. Refused: a pickle that could run code."""
    module = read_pickle(file, trust_pickle=trust_pickle)
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"{file} holds no module", hint="prune again")
    check_names_in(module, where=str(file))
    return module
