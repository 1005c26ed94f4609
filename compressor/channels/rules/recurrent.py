"""Recurrent layers: a unit is the same through gates, layers and directions, because one number sets their count."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressor.channels.rules.operators import bound, results
from compressor.channels.tracing import NotFollowed, Role, Rule, Tracer, Tracked

GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}


def _recurrent(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """The weights of each layer are `w_ih [gates x units, in]`, `w_hh [gates x units, units]`, then two biases."""
    named = bound(target, args, kwargs)
    x, parameters = named.get("input"), named.get("params")
    if not isinstance(x, Tracked) or not isinstance(parameters, list) or "batch_sizes" in named:
        raise NotFollowed("a recurrent layer reads packed sequences")
    gates = next(n for name, n in GATES.items() if f".{name}." in f".{target}.")
    each, directions = (4 if named["has_biases"] else 2), 1 + bool(named["bidirectional"])
    count = parameters[1].value.shape[1]
    if len(parameters) != each * directions * named["num_layers"] or parameters[0].value.shape[0] != gates * count:
        raise NotFollowed("a recurrent layer projects its states")
    states = named["hx"] if isinstance(named["hx"], list) else [named["hx"]]
    units = t.labels.fresh(count)
    for state in states:
        t.labels.unify(state.dims[-1], (units,), t.reason())
    features = x.dims[-1]
    t.read(0, x, -1)
    for number, parameter in enumerate(parameters):
        layer, kind = number // (each * directions), number % each
        t.labels.unify(parameter.dims[0], (np.tile(units, gates),), t.reason())
        if kind == 0:
            if layer:
                features = (np.tile(units, directions),)
                t.read((2, number), parameter, 1)
            t.labels.unify(features, parameter.dims[1], t.reason())
            t.plays(parameter, 0, Role.PRODUCES)
            t.plays(parameter, 1, Role.CONSUMES)
        elif kind == 1:
            t.labels.unify((units,), parameter.dims[1], t.reason())
            t.read((2, number), parameter, 1)
            t.plays(parameter, 1, Role.CONSUMES)
    all_units = t.labels.resolve((np.tile(units, directions),))
    last = t.labels.resolve((units,))
    first = True

    def dims(value: Any) -> Any:
        nonlocal first
        width = all_units if first else last
        first = False
        return [*((),) * (value.ndim - 1), width]

    return results(result, dims)


RULES: dict[str, Rule] = dict.fromkeys(GATES, _recurrent)
