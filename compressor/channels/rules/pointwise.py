"""Operators that work position by position, with broadcasting: labels that meet are united."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from compressor.channels.rules.operators import results
from compressor.channels.tracing import Rule, Tracer, Tracked
from compressor.graph.operators import name_of

POINTWISE = {
    "dropout", "feature_dropout", "alpha_dropout", "native_dropout", "hardswish", "to", "_to_copy", "contiguous",
    "detach", "alias", "lift_fresh_copy", "lift_fresh", "masked_fill", "fill", "copy", "bernoulli", "zeros_like",
    "ones_like", "full_like", "rand_like", "randn_like", "empty_like", "type_as", "silu", "zero", "rrelu", "nan_to_num",
    "float", "_assert_tensor_metadata", "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "__iand__",
    "__ior__", "__ixor__", "complex", "polar", "real", "imag", "_conj", "conj", "_neg_view", "resolve_conj",
    "resolve_neg", "_prelu_kernel", "prims.convert_element_type", "normal", "uniform", "exponential", "random",
    "randint_like", "clone", "frexp", "log_sigmoid_forward",
}  # fmt: skip

ONE = {
    "fill",
    "type_as",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
}  # their other arguments hold values or types, not positions


def pointwise(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Unite labels that meet position by position."""
    operands = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tracked)]
    if name_of(target) in ONE:
        operands = operands[:1]
    shaped = result if isinstance(result, Tensor) else next(v for v in result if isinstance(v, Tensor))
    dims = t.pointwise(operands, shaped.shape)
    tracked = results(result, lambda v: dims if v.shape == shaped.shape else ((),) * v.ndim)
    wide = [v for v in operands if v.value.ndim]
    if len(wide) == 1 and wide[0].value.shape == shaped.shape and isinstance(tracked, Tracked):
        tracked.source, tracked.origin = wide[0].source, wide[0].origin  # a scaled parameter is still that parameter
    return tracked


RULES: dict[str, Rule] = dict.fromkeys(POINTWISE, pointwise)
