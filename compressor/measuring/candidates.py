"""The candidates of a bench: the dense network twice, the same network with zeros in it, and the small one.

The MACs and parameters of masked networks are those that are not zero, as in papers: the work of a runtime that skips
zeros. The measurement shows what a real runtime gains from the zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.channels.groups import ChannelGroup, Role, trace
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.errors import PlanError
from compressor.export.onnx import export_onnx
from compressor.graph.copies import copy_of
from compressor.planning.costs import count, masked_macs
from compressor.progress import Say
from compressor.surgery.masks import MaskScope, WeightMask, apply_mask_, magnitude, maskable
from compressor.surgery.plan import PruningPlan, gone_mask, plan_from_json


class CandidateName(StrEnum):
    """The candidates, in the order of the tables."""

    DENSE = "dense"
    DENSE_AGAIN = "dense again"
    MASKED_WEIGHTS = "masked weights"
    MASKED_CHANNELS = "masked channels"
    SMALL = "small"


@dataclass(frozen=True, slots=True, kw_only=True)
class Onnx:
    """A candidate's ONNX file; `batch` if it accepts only one size."""

    file: Path
    batch: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A network, its non-zero parameters and MACs, and its ONNX file once exported."""

    name: CandidateName
    module: nn.Module
    params: int
    macs: int
    onnx: Onnx | None = None

    @property
    def stem(self) -> str:
        """Its name as part of a file name."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The candidates, the dense one first, and notes about them."""

    all: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def dense(self) -> Candidate:
        """The reference of the others."""
        return self.all[0]

    @property
    def distinct(self) -> tuple[Candidate, ...]:
        """Each network once."""
        return tuple(c for c in self.all if c.name is not CandidateName.DENSE_AGAIN)


def candidates_of(small: Checkpoint, dense: Checkpoint, *, mask: WeightMask | None = None) -> Candidates:
    """Return the candidates for a small network or, with `mask` (the weights that `small` keeps), for a masked one."""
    cost = count(dense.module, dense.example_inputs)
    candidates = [
        Candidate(name=name, module=dense.module, params=cost.params, macs=cost.macs)
        for name in (CandidateName.DENSE, CandidateName.DENSE_AGAIN)
    ]
    notes = ["the MACs and parameters of masked networks are those that are not zero"]
    if mask is not None:
        candidates.append(_masked(small.module, mask, dense))
        return Candidates(all=tuple(candidates), notes=tuple(notes))
    small_cost = count(small.module, small.example_inputs)
    try:
        zeros = equal_mask(dense.module, params=small_cost.params)
        module = copy_of(dense.module)
        apply_mask_(module, zeros)
        candidates.append(_masked(module, zeros, dense))
    except PlanError as error:
        notes.append(f"`{CandidateName.MASKED_WEIGHTS}` is left out: {error}")
    silent = _silent(small, dense)
    if silent is None:
        notes.append(f"`{CandidateName.MASKED_CHANNELS}` is left out: the lineage names no removed channels")
    else:
        name = CandidateName.MASKED_CHANNELS
        candidates.append(Candidate(name=name, module=silent, params=small_cost.params, macs=small_cost.macs))
    name = CandidateName.SMALL
    candidates.append(Candidate(name=name, module=small.module, params=small_cost.params, macs=small_cost.macs))
    return Candidates(all=tuple(candidates), notes=tuple(notes))


def with_onnx(candidates: Candidates, small: Checkpoint, dense: Checkpoint, folder: Path, *, say: Say) -> Candidates:
    """Return the candidates with new ONNX files in `folder`, all exported by one function.

    Both dense candidates share one file. Refused: as in `export_onnx`.
    """
    files: dict[CandidateName, Onnx] = {}
    for candidate in candidates.distinct:
        say(f"exporting {candidate.name}")
        origin = small if candidate.name is CandidateName.SMALL else dense
        file = folder / f"{candidate.stem}.onnx"
        parity = export_onnx(dataclasses.replace(origin, module=candidate.module), file)
        files[candidate.name] = Onnx(file=file, batch=None if parity.dynamic_batch else 1)
    files[CandidateName.DENSE_AGAIN] = files[CandidateName.DENSE]
    exported = tuple(dataclasses.replace(c, onnx=files[c.name]) for c in candidates.all)
    return dataclasses.replace(candidates, all=exported)


def equal_mask(module: nn.Module, *, params: int) -> WeightMask:
    """Return the mask that leaves the module with `params` parameters. Refused: the module has too few weights."""
    leaving = sum(p.numel() for p in module.parameters()) - params
    weights = sum(p.numel() for p in maskable(module).values())
    return magnitude(module, sparsity=(leaving + 0.5) / weights, scope=MaskScope.GLOBAL)  # exactly `leaving` of them


def _masked(module: nn.Module, mask: WeightMask, dense: Checkpoint) -> Candidate:
    """The masked candidate."""
    return Candidate(
        name=CandidateName.MASKED_WEIGHTS,
        module=module,
        params=count(module, dense.example_inputs).params - mask.removed,
        macs=masked_macs(module, mask, dense.example_inputs),
    )


def _silent(small: Checkpoint, dense: Checkpoint) -> nn.Module | None:
    """The dense network with zeros in the channels that the small one lost; `None` if no lineage names them."""
    steps = small.lineage[len(dense.lineage) :]
    plans = [plan for step in steps for plan in _plans(step)]
    if not plans:
        return None
    heads = all(step.get("heads", True) for step in steps)
    groups = trace(dense.module, dense.example_inputs, heads=heads).groups
    return zeroed(dense.module, groups, composed(plans, groups))


def zeroed(module: nn.Module, groups: Sequence[ChannelGroup], plan: PruningPlan) -> nn.Module:
    """Return a copy of the module with zeros where the plan's removed channels are read: as large, and as slow."""
    masked = copy_of(module)
    state = dict(masked.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for group in groups:
            gone = gone_mask(group, plan)
            for member in group.members:
                if member.role is Role.CONSUMES:
                    positions = member.positions[gone[member.channels]]
                    state[member.tensor].index_fill_(member.dim, positions.to(state[member.tensor].device), 0)
    return masked


def _plans(step: Mapping[str, Any]) -> Sequence[PruningPlan]:
    """The plans of one step."""
    return [plan_from_json(plan) for plan in step.get("plans", ())]


def composed(plans: Sequence[PruningPlan], groups: Sequence[ChannelGroup]) -> PruningPlan:
    """Return one plan for several plans one after the other; each counts the channels that remain after the previous
    one.
    """
    removed: dict[str, tuple[int, ...]] = {}
    for group in groups:
        alive = list(range(group.channels))
        for plan in plans:
            gone = set(plan.removed.get(group.root, ()))
            alive = [channel for position, channel in enumerate(alive) if position not in gone]
        removed[group.root] = tuple(sorted(set(range(group.channels)) - set(alive)))
    return PruningPlan(removed=removed)
