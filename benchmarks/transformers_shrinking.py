"""The smallest configuration of a model type of transformers that builds: its own default, with fewer and narrower
layers.

Four attempts: everything small; widths but no heads; few layers and a small vocabulary; the default.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from compressor.checkpoint import hugging_face

WIDTH, HEADS, PAIRS, HIDDEN, VOCABULARY = 64, 4, 2, 96, 512
LARGEST = 120_000_000  # parameters of a network that a row may have
DEPTH = re.compile(
    r"(num|n|encoder|decoder|text|vision|cross|qformer)?_?(hidden_)?_?(layers?|blocks?|depth|num_layers|n_layers)$|"
    r"(num_(encoder|decoder|hidden|block|attn|latent_query|mtp|self_attends_per_block|nextn_predict).*layers?|"
    r"num_blocks|n_layers?|num_layers|depth|num_self_attends_per_block|encoder_layers|decoder_layers|num_hidden_layers)$"
)
DEPTHS = re.compile(r"(depths?|num_blocks|num_block_repeats|block_repeats|layers|depth_list|num_layers)$")
WIDTHS = re.compile(
    r"(hidden_size|d_model|n_embd|embed_dim|hidden_dim|dim|emb_dim|embedding_dim|encoder_hidden_size|d_embed|"
    r"encoder_hidden_dim|decoder_hidden_dim|fusion_hidden_size|width|model_dim)$"
)
RANKS = re.compile(r"(q|kv|o|qk|v)_lora_rank$")
DERIVED = ("qk_head_dim",)  # from others, where it is not set
INNER = re.compile(
    r"(intermediate_size|ffn_dim|d_ff|encoder_ffn_dim|decoder_ffn_dim|n_inner|mlp_dim|ffn_hidden_size|"
    r"moe_intermediate_size|expert_ffn_hidden_size|zero_expert_num|shared_expert_intermediate_size|dim_feedforward|feedforward_dim|inner_dim|ff_dim)$"
)
ATTENTION = re.compile(r"(num_|n_|encoder_|decoder_)?(attention_)?(heads|head|num_heads|attention_heads)$")
GROUPED = re.compile(r"(num_key_value_heads|num_kv_heads|n_kv_heads|num_query_groups|multi_query_group_num)$")
SIZES = re.compile(r"(rotary_dim|head_dim|d_kv|qk_nope_head_dim|qk_rope_head_dim|v_head_dim|attention_head_size)$")
TOP = re.compile(r"(num_experts_per_tok|num_experts_per_token|moe_topk|top_k_experts|n_group|num_selected_experts)$")
EXPERTS = re.compile(r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)$")


def attempts(model_type: str) -> Iterator[dict[str, Any]]:
    """The values of the config, the smallest first."""
    if model_type in COMPOSED:
        yield hugging_face.values_of(COMPOSED[model_type])
        return
    with hugging_face.imported():
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        default = CONFIG_MAPPING[model_type]().to_dict()
    seen: list[dict[str, Any]] = []
    for level in ("all", "widths", "layers", ""):
        small = _merged(shrunk(default, level), SPECIAL.get(model_type, {})) if level else default
        values = hugging_face.values_of(small)
        if values not in seen:
            seen.append(values)
            yield values


def shrunk(values: dict[str, Any], level: str) -> dict[str, Any]:
    """The values with fewer layers and tokens; narrower too, but for the level `layers`."""
    kinds = values.get("layer_types")
    layers = _layers(kinds) if isinstance(kinds, list) else 2
    small = {}
    staged = {len(v) for key, v in values.items() if isinstance(v, list) and DEPTHS.fullmatch(str(key))}
    depths = {v for key, v in values.items() if type(v) is int and v > layers and DEPTH.fullmatch(str(key))}
    for key, value in values.items():
        if key in DERIVED and level == "all":
            continue
        if type(value) is int and value in staged:  # the number of stages, each of which stays
            small[key] = value
            continue
        small[key] = _shrunk(key, value, layers=layers, level=level)
        if isinstance(value, list) and len(value) in depths:  # an entry for each layer
            small[key] = small[key][:layers]
    if level == "all" and isinstance(values.get("image_size"), int):
        small["image_size"] = _side(values)
    return small


def _merged(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """The values with the others in their places, at every depth."""
    both = {key: _merged(values[key], v) if isinstance(v, dict) and key in values else v for key, v in others.items()}
    return values | both


def _side(values: dict[str, Any]) -> int:
    """Pixels a side: a few patches, and at least 64 where that is a whole number of them."""
    patch, side = values.get("patch_size"), values["image_size"]
    patch = patch if isinstance(patch, int) and patch > 0 else 32
    return int(min(side, 64 if 64 % patch == 0 else 4 * patch))


def _layers(kinds: list[Any]) -> int:
    """How many layers hold one of each kind."""
    return max(2, len(kinds) and max(kinds.index(kind) for kind in set(map(str, kinds))) + 1)


def _shrunk(key: str, value: Any, *, layers: int, level: str) -> Any:
    if isinstance(value, dict):
        small = shrunk(value, level)
        return small | {"mrope_section": [2, 3, 3]} if "mrope_section" in value and level == "all" else small
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, list):
        if key in ("layer_types", "mlp_layer_types") and value:
            return value[:layers]
        if DEPTHS.fullmatch(key) and all(isinstance(v, int) for v in value):
            return [min(v, 1) for v in value]
        return value
    if not isinstance(value, int):
        return value
    if re.search(r"vocab_size|num_embeddings$", key):
        return min(value, VOCABULARY)
    if re.search(r"_token_id$|_token_index$|_id$", key) and value >= VOCABULARY:
        return value % (VOCABULARY - 12)
    if DEPTH.fullmatch(key):
        return min(value, layers)
    if level == "layers":
        return value
    for pattern, most in ((WIDTHS, WIDTH), (INNER, HIDDEN), (RANKS, WIDTH // 2), (EXPERTS, 2 * HEADS), (TOP, PAIRS)):
        if pattern.fullmatch(key):
            return min(value, most)
    if level == "widths":
        return value
    if SIZES.fullmatch(key):
        return min(value, WIDTH // HEADS)
    if GROUPED.fullmatch(key):
        return min(value, PAIRS)
    if ATTENTION.fullmatch(key):
        return min(value, HEADS)
    return value


def is_small(ref: str, values: dict[str, Any]) -> bool:
    """Whether the network has few enough parameters; counted without memory, as far as its constructor allows."""
    with contextlib.suppress(NotImplementedError, RuntimeError), torch.device("meta"):
        net = hugging_face.factory(ref)(**values)
        return sum(p.numel() for p in net.parameters()) <= LARGEST
    return True


SEGMENTS = {
    "vision_config": {"image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1]},
    "prompt_encoder_config": {"image_size": 64, "patch_size": 16, "image_embedding_size": 4},
}
SPECIAL: dict[str, dict[str, Any]] = {  # what no rule about names says
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "esmc": {"num_key_value_heads": 4},
    "sam": SEGMENTS,
    "sam_hq": SEGMENTS,
}
TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SPEECH = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": [16, 16, 16], "conv_stride": [5, 4, 4], "conv_kernel": [10, 8, 4], "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
WRITER = {**TEXT, "model_type": "bert", "is_decoder": True, "add_cross_attention": True}
TOKENS = {"decoder_start_token_id": 1, "pad_token_id": 0}
COMPOSED: dict[str, dict[str, Any]] = {
    "encoder-decoder": {"encoder": {**TEXT, "model_type": "bert"}, "decoder": WRITER, **TOKENS},
    "vision-encoder-decoder": {"encoder": {**IMAGE, "model_type": "vit"}, "decoder": WRITER, **TOKENS},
    "speech-encoder-decoder": {"encoder": {**SPEECH, "model_type": "wav2vec2"}, "decoder": WRITER, **TOKENS},
    "vision-text-dual-encoder": {
        "vision_config": {**IMAGE, "model_type": "vit"}, "text_config": {**TEXT, "model_type": "bert"},
        "projection_dim": 16,
    },
}  # fmt: skip
