"""Operators whose channels stay, each with its reason in words."""

from __future__ import annotations

from typing import Any

from compressor.channels.tracing import NotFollowed, Rule, Tracer
from compressor.graph.operators import name_of

BY_VALUES = "which positions `{}` returns, and how many, depends on values"
GRADIENTS = "`{}` computes a gradient, which inference does not need"
MEMORY = "`{}` reads memory by its strides, whatever lies there"
FUSED = "`{}` is a whole layer in one operator, whose projections cannot be seen"
WATCHES = "`{}` updates its statistics whenever it runs"
COUNTED = "`{}` counts its positions through"
DRAWS = "`{}` draws by the values of all its positions"

STATED: dict[str, str] = {
    **dict.fromkeys(("nonzero", "nonzero_static", "argwhere", "masked_select", "_unique", "_unique2", "unique_dim",
                     "unique_consecutive", "bincount", "histc", "nms", "_local_scalar_dense"), BY_VALUES),
    **dict.fromkeys(("as_strided", "as_strided_copy", "as_strided_scatter", "set", "resize", "_reshape_copy"), MEMORY),
    **dict.fromkeys(("_native_multi_head_attention", "_transformer_encoder_layer_fwd", "_cudnn_rnn", "miopen_rnn",
                     "mkldnn_rnn_layer", "quantized_lstm", "quantized_gru"), FUSED),
    **dict.fromkeys(("fused_moving_avg_obs_fake_quant", "_fused_moving_avg_obs_fq_helper"), WATCHES),
    **dict.fromkeys(("take", "put", "diagonal_scatter", "fractional_max_pool2d", "fractional_max_pool3d"), COUNTED),
    "multinomial": DRAWS,
}  # fmt: skip


def stated_reason(target: Any) -> str | None:
    """Return why the operator's channels stay; `None` where no reason is written here."""
    name = name_of(target)
    if name.endswith("_backward") or "_backward_" in name:
        return GRADIENTS.format(name)
    reason = STATED.get(name)
    return reason.format(name) if reason is not None else None


def stated(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Pin what reaches the operator, for the stated reason."""
    del t, args, kwargs, result
    raise NotFollowed(stated_reason(target) or "")


RULES: dict[str, Rule] = dict.fromkeys(STATED, stated)
