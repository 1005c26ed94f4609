"""Networks of transformers as people have them: heads, grouped heads and hidden units leave, and the proof holds."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.checkpoint.architectures import Architecture
from compressor.jobs.coverage import Stage, coverage_of
from tests.support.hugging import transformers

TEXT = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 40,
}  # fmt: skip
IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
SPEECH = {
    "vocab_size": 32, "conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 8],
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
BACKBONE = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1],
    "out_features": ["stage4"],
}  # fmt: skip

NETWORKS: dict[str, dict[str, Any]] = {
    "roberta.RobertaForSequenceClassification": TEXT,
    "distilbert.DistilBertForSequenceClassification": {
        "vocab_size": 60, "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 24
    },
    "vit.ViTForImageClassification": IMAGE,
    "deit.DeiTForImageClassification": IMAGE,
    "swin.SwinForImageClassification": {
        "image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4
    },
    "clip_text_model.CLIPTextModelWithProjection": {**TEXT, "projection_dim": 16, "eos_token_id": 59},
    "clip_vision_model.CLIPVisionModelWithProjection": {**IMAGE, "projection_dim": 16},
    "whisper.WhisperEncoder": {
        "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 24, "num_mel_bins": 16,
        "max_source_positions": 20,
    },
    "wav2vec2.Wav2Vec2ForCTC": {**TEXT, **SPEECH},
    "t5.T5EncoderModel": {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 4},
    "gpt2.GPT2LMHeadModel": {
        "vocab_size": 60, "n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 59, "eos_token_id": 59
    },
    "sam_vision_model.SamVisionModel": {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32,
        "patch_size": 8, "mlp_dim": 24, "window_size": 2, "global_attn_indexes": [0],
    },
    "detr.DetrForObjectDetection": {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_queries": 6,
        "backbone_config": BACKBONE,
    },
}  # fmt: skip


def reached(name: str, values: dict[str, Any], until: Stage) -> Any:
    transformers()
    architecture = Architecture(ref=f"transformers:{name}", arguments=tuple(values.items()))
    row = coverage_of(architecture, until=until)
    assert (row.reached, row.why) == (until, None)
    assert row.proof is not None
    assert row.proof <= 1e-9
    return row


def test_grouped_heads_leave_with_their_queries() -> None:
    row = reached("llama.LlamaForCausalLM", {**TEXT, "num_key_value_heads": 2}, Stage.PRUNE)
    assert row.form == "class"
    assert row.deep
    assert [one["layer"] for one in row.left_alone] == ["lm_head"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_usual_networks_are_pruned_exported_and_read_back(name: str) -> None:
    reached(name, NETWORKS[name], Stage.RELOAD)
