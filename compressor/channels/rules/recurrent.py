"""Recurrent layers: their units are one through all gates, layers and directions, as one number says how many."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressor.channels.rules.operators import bound, results
from compressor.channels.tracing import NotFollowed, Role, Rule, Tracer, Tracked

GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}


def _recurrent(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Weights come as `w_ih [gates x units, in]`, `w_hh [gates x units, units]`, then two biases, for every layer."""
    given = bound(target, args, kwargs)
    x, parameters = given.get("input"), given.get("params")
    if not isinstance(x, Tracked) or not isinstance(parameters, list) or "batch_sizes" in given:
        raise NotFollowed("a recurrent layer reads packed sequences")
    gates = next(n for name, n in GATES.items() if f".{name}." in f".{target}.")
    each, directions = (4 if given["has_biases"] else 2), 1 + bool(given["bidirectional"])
    count = parameters[1].value.shape[1]
    if len(parameters) != each * directions * given["num_layers"] or parameters[0].value.shape[0] != gates * count:
        raise NotFollowed("a recurrent layer projects its states")
    states = given["hx"] if isinstance(given["hx"], list) else [given["hx"]]
    units = t.labels.fresh(count)
    for state in states:
        t.labels.unify(state.dims[-1], (units,), t.told())
    known = x.dims[-1]
    t.read(0, x, -1)
    for number, parameter in enumerate(parameters):
        layer, kind = number // (each * directions), number % each
        t.labels.unify(parameter.dims[0], (np.tile(units, gates),), t.told())
        if kind == 0:
            if layer:
                known = (np.tile(units, directions),)
                t.read((2, number), parameter, 1)
            t.labels.unify(known, parameter.dims[1], t.told())
            t.plays(parameter, 0, Role.PRODUCES)
            t.plays(parameter, 1, Role.CONSUMES)
        elif kind == 1:
            t.labels.unify((units,), parameter.dims[1], t.told())
            t.read((2, number), parameter, 1)
            t.plays(parameter, 1, Role.CONSUMES)
    made = t.labels.resolve((np.tile(units, directions),))
    last = t.labels.resolve((units,))
    first = True

    def dims(value: Any) -> Any:
        nonlocal first
        width = made if first else last
        first = False
        return [*((),) * (value.ndim - 1), width]

    return results(result, dims)


RULES: dict[str, Rule] = dict.fromkeys(GATES, _recurrent)
