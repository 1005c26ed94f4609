"""A module's structure without its weights, pickled: what rebuilds a network whose class nobody names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compressor.checkpoint.unpickle import read_pickle
from compressor.errors import CheckpointError
from compressor.files.names import check_names_in
from compressor.graph.copies import copy_of


def write_skeleton(module: nn.Module, file: Path) -> None:
    """Pickle the module's structure without its weights: what rebuilds it, with the shapes that it has now."""
    torch.save(copy_of(module).to("meta"), file)


def read_skeleton(file: Path, *, trust_pickle: bool = False) -> nn.Module:
    """The structure that `write_skeleton` wrote, with weights yet to be assigned; refused where it could run code."""
    module = read_pickle(file, trust_pickle=trust_pickle)
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"{file} holds no module", hint="prune again")
    check_names_in(module, where=str(file))
    return module
