"""A surgery: for every tensor the indices that stay, for every layer the numbers that change.

It also records which layers were split into two thinner ones (`surgery.factors`).

A surgery turns any state of the dense network into one of the small network (rewinding needs an early one), composes
with the next surgery (iterative pruning is a `for`), and makes an artifact loadable without the module's pickle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import SurgeryError
from compressor.graph.copies import copy_of
from compressor.graph.recorded import program_from
from compressor.surgery.constant import silent_from
from compressor.surgery.factors import Factors, factorized, factors_from_json, pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Surgery:
    """A cut, relative to the dense network.

    `slices`: tensor name → dimension → kept indices, int64 `[kept]`. `attributes`: layer → attributes to set on it.
    `program`: the whole small network as its exported program (`surgery.mending`), where attributes are not enough.
    `emptied`: layers that produced or read channels of which none is left; `surgery.constant` has their replacement.
    `factors`: layer → the two layers that replace it, `layer.0` and `layer.1`, in the order of the splits. `slices` and
    `attributes` of a layer apply before its split, those of the two layers after it.
    """

    slices: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    program: Mapping[str, Any] | None = None
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    emptied: tuple[str, ...] = ()
    factors: Mapping[str, Factors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tensor, dims in self.slices.items():
            for dim, kept in dims.items():
                if not kept.numel():
                    raise SurgeryError(f"dimension {dim} of `{tensor}` would be empty")

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return the kept part of the dense network's tensor called `name`; the tensor itself if nothing was cut."""
        for dim, kept in sorted(self.slices.get(name, {}).items(), reverse=True):
            tensor = tensor.index_select(dim, kept.to(tensor.device))
        return tensor

    def cut_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state of the dense network cut to the small one; a split layer's weights are decomposed."""
        small = {name: self.cut(name, tensor) for name, tensor in state.items()}
        for layer, factors in self.factors.items():
            weight, bias = small.pop(f"{layer}.weight"), small.pop(f"{layer}.bias", None)
            halves = {f"{layer}.{name}": tensor for name, tensor in pieces(weight, bias, factors).items()}
            small |= {name: self.cut(name, tensor) for name, tensor in halves.items()}
        gone = {f"{layer}.weight" for layer in self.emptied}
        return {name: tensor for name, tensor in small.items() if name not in gone}

    def then(self, second: Surgery) -> Surgery:
        """Return the surgery that does this one and then `second` (relative to the smaller network)."""
        slices = {name: dict(dims) for name, dims in self.slices.items()}
        for name, dims in second.slices.items():
            mine = slices.setdefault(name, {})
            for dim, kept in dims.items():
                before = mine.get(dim)
                mine[dim] = kept if before is None else before[kept]
        attributes = {layer: dict(values) for layer, values in self.attributes.items()}
        for layer, values in second.attributes.items():
            attributes.setdefault(layer, {}).update(values)
        emptied = tuple(dict.fromkeys((*self.emptied, *second.emptied)))
        program = self.program if second.program is None else second.program
        factors = {**self.factors, **second.factors}
        return Surgery(slices=slices, attributes=attributes, emptied=emptied, program=program, factors=factors)

    def to_json(self) -> dict[str, object]:
        """Return plain values; `surgery_from_json` reads them back."""
        return {
            "slices": {n: {str(d): k.tolist() for d, k in dims.items()} for n, dims in self.slices.items()},
            "attributes": {layer: dict(values) for layer, values in self.attributes.items()},
            "emptied": list(self.emptied),
            "program": self.program,
            "factors": {layer: factors.to_json() for layer, factors in self.factors.items()},
        }


def surgery_from_json(plain: Mapping[str, object]) -> Surgery:
    """Return the surgery that `to_json` wrote."""
    try:
        slices: Mapping[str, Mapping[str, list[int]]] = plain["slices"]  # type: ignore[assignment]  # checked by use
        attributes: Mapping[str, Mapping[str, int]] = plain["attributes"]  # type: ignore[assignment]
        return Surgery(
            slices={n: {int(d): torch.tensor(k, dtype=torch.int64) for d, k in ds.items()} for n, ds in slices.items()},
            attributes={layer: dict(values) for layer, values in attributes.items()},
            program=plain.get("program"),  # type: ignore[arg-type]  # checked by use
            emptied=tuple(plain.get("emptied", ())),  # type: ignore[arg-type]  # a list of names
            factors={
                layer: factors_from_json(plain_factors)
                for layer, plain_factors in plain.get("factors", {}).items()  # type: ignore[attr-defined]  # checked by use
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SurgeryError(f"not a record of a surgery: {error}") from error


def operate(module: nn.Module, surgery: Surgery) -> nn.Module:
    """Return a copy of the dense module after the surgery; the module stays unchanged."""
    return _operated(module, surgery, fill=True)


def _operated(module: nn.Module, surgery: Surgery, *, fill: bool) -> nn.Module:
    """As `operate`; without `fill`, the weights of split layers are uninitialised, and the caller loads them."""
    if surgery.program is not None:
        small: nn.Module = program_from(surgery.program, surgery.cut_state(module.state_dict()))
        for parameter, dense in zip(small.parameters(), module.parameters(), strict=False):
            parameter.requires_grad_(dense.requires_grad)
    else:
        small = _sliced(module, surgery, fill=fill)
    for name in surgery.emptied:
        owner, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(owner), leaf, silent_from(small.get_submodule(name)))
    return small


def _sliced(module: nn.Module, surgery: Surgery, *, fill: bool) -> nn.Module:
    """A copy of the module with narrower tensors and split layers."""
    inner = {f"{layer}.{number}" for layer in surgery.factors for number in (0, 1)}
    tensors = [name for name in surgery.slices if name.rpartition(".")[0] not in inner]
    cuts = _cuts(module, surgery, tensors)
    small = copy_of(module, instead=cuts.values())
    _put_(small, {name: cut for name, (_, cut) in cuts.items()})
    set_attributes_(small, surgery, [name for name in surgery.attributes if name not in inner])
    for layer, factors in surgery.factors.items():
        owner, _, leaf = layer.rpartition(".")
        try:
            two = factorized(small.get_submodule(layer), factors, fill=fill)
        except AttributeError as error:
            raise SurgeryError(f"the network has no layer `{layer}` to factorise") from error
        setattr(small.get_submodule(owner), leaf, two)
        parts = (f"{layer}.0", f"{layer}.1")
        inside = [name for name in surgery.slices if name.rpartition(".")[0] in parts]
        _put_(small, {name: cut for name, (_, cut) in _cuts(small, surgery, inside).items()})
        set_attributes_(small, surgery, [name for name in surgery.attributes if name in parts])
    return small


def _cuts(module: nn.Module, surgery: Surgery, tensors: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """These tensors of the module by name, each with its cut; tied names share one cut."""
    cut_of: dict[int, tuple[Tensor, Tensor]] = {}
    by_name = {}
    for name in tensors:
        owner, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(module.get_submodule(owner), leaf)
        if id(tensor) not in cut_of:
            cut = surgery.cut(name, tensor.detach()).contiguous()
            learns = tensor.requires_grad
            cut_of[id(tensor)] = tensor, nn.Parameter(cut, learns) if isinstance(tensor, nn.Parameter) else cut.clone()
        by_name[name] = cut_of[id(tensor)]
    return by_name


def _put_(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace the tensors with these names: a class that copies itself may not have done so."""
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        layer = module.get_submodule(owner)
        if getattr(layer, leaf) is not tensor:
            setattr(layer, leaf, tensor)


def set_attributes_(module: nn.Module, surgery: Surgery, layers: Sequence[str]) -> None:
    """Set the numbers that the surgery changes in these layers, whose tensors have (or will have) the small shapes."""
    for name in layers:
        layer = module.get_submodule(name)
        for attribute, value in surgery.attributes[name].items():
            if not isinstance(vars(layer).get(attribute), (int, tuple)):
                raise SurgeryError(f"`{name}` has no number `{attribute}` that a surgery could change")
            setattr(layer, attribute, (value,) if attribute == "normalized_shape" else value)


def put_state_(module: nn.Module, state: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Load `state` strictly, with the version that this class writes: bare tensors do not record one."""
    versioned = OrderedDict(state)
    versioned._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]  # as torch itself does
    module.load_state_dict(versioned, strict=True, assign=assign)


def reshaped(module: nn.Module, surgery: Surgery, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the dense module in the small shapes with `state`. Refused: names or shapes that differ."""
    small = _operated(module, surgery, fill=False)
    try:
        put_state_(small, state)
    except RuntimeError as error:
        raise SurgeryError(f"the weights do not fit the recorded surgery: {error}") from error
    return small
