"""A `config.json` runs no code, reads nothing outside its folder and fetches nothing."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.checkpoint import hugging_face
from compressor.checkpoint.architectures import Architecture, check_harmless
from compressor.checkpoint.loading import load
from compressor.errors import ArchitectureError, CheckpointError, CompressError
from tests.support.hugging import bert_folder, edited, transformers


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every address that anything asks for."""
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    folder = edited(bert_folder(tmp_path / "bert"), auto_map={"AutoModel": "evil.Evil"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ArchitectureError, match="code of its own") as caught:
        load(folder)
    assert "--arch" in str(caught.value.hint)
    assert not (tmp_path / "ran").exists()


HOSTILE: list[dict[str, Any]] = [
    {"attn_implementation": "someone/kernels"},
    {"_attn_implementation": "someone/kernels"},
    {"_attn_implementation_internal": "someone/kernels"},
    {"_experts_implementation_internal": "someone/kernels"},
    {"_name_or_path": "someone/model"},
    {"name_or_path": "http://somewhere/"},
    {"dtype": "load"},
    {"torch_dtype": "hub"},
    {"router_dtype": "load"},
    {"use_kernels": True},
    {"__class__": "x"},
    {"to_dict": "x"},
    {"sub_configs": {"a": "b"}},
    {"attribute_map": {"hidden_size": "vocab_size"}},
    {"base_model_tp_plan": {"layer": "colwise"}},
    {"tokenizer_class": "os.system"},
    {"task_specific_params": {"auto": "/etc/passwd"}},
    {"kernel_config": {"use_local_kernel": True, "kernel_mapping": {"LayerNorm": "/tmp/x:y"}}},
]


@pytest.mark.parametrize("values", HOSTILE, ids=lambda values: next(iter(values)))
def test_what_would_load_something_changes_nothing(
    tmp_path: Path, values: dict[str, Any], no_network: list[object]
) -> None:
    folder = bert_folder(tmp_path / "bert")
    expected = load(folder)
    answer = load(edited(folder, **values))
    assert torch.equal(answer.module(*expected.example_inputs).logits, expected.module(*expected.example_inputs).logits)
    assert no_network == []


@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "fusion_config", "distributed_config"])
def test_layers_of_another_kind_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ArchitectureError, match="another kind"):
        load(edited(bert_folder(tmp_path / "bert"), **{key: {"quant_method": "gptq"}}))


def test_a_nested_config_asks_for_no_code_either(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="code of its own"):
        load(edited(bert_folder(tmp_path / "bert"), text_config={"auto_map": {"AutoModel": "evil.Evil"}}))


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "model.pkl", "a\nb.bin", 3, None]
)
def test_an_index_names_no_file_elsewhere(tmp_path: Path, name: object) -> None:
    folder = bert_folder(tmp_path / "bert")
    (tmp_path / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="in its own folder"):
        load(folder)


@pytest.mark.parametrize("architecture", ["os", "PreTrainedModel", "AutoModel", "nn", "bert.BertModel", "", 3, "torch"])
def test_a_class_is_one_of_the_model_types_networks(tmp_path: Path, architecture: object) -> None:
    with pytest.raises(CompressError) as caught:
        load(edited(bert_folder(tmp_path / "bert"), architectures=[architecture]))
    assert caught.value.hint


def test_timm_arguments_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 20)
    for arguments in ({"checkpoint_path": "x"}, {"pretrained_cfg": {"url": "x"}}, {"scriptable": True}):
        config = {"architecture": "resnet18", "num_classes": 4, "model_args": arguments}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CompressError):
            load(tmp_path)
    with pytest.raises(CompressError):
        hugging_face.reference({"architecture": "hf-hub:someone/net"})


REFERENCES: list[tuple[str, dict[str, Any]]] = [
    ("bert.BertModel", {"auto_map": {"AutoModel": "a.B"}}),
    ("bert.BertModel", {"attn_implementation": "a/b"}),
    ("bert.BertModel", {"_attn_implementation": "eager"}),
    ("bert.BertModel", {"hidden_act": "../x"}),
    ("bert.BertModel", {"hidden_act": {"__class__": 1}}),
    ("bert.BertModel", {"quantization_config": {"quant_method": "awq"}}),
    ("bert.BertModel", {"num_labels": "x"}),
    ("bert.BertModel", {"text_config": {"model_type": "nothing", "vocab_size": 3}}),
]


@pytest.mark.parametrize(("name", "values"), REFERENCES)
def test_an_artifact_may_name_only_what_a_folder_may(name: str, values: dict[str, Any]) -> None:
    transformers()
    with pytest.raises(ArchitectureError):
        check_harmless(Architecture(ref=f"transformers:{name}", arguments=tuple(values.items())))


def test_a_type_by_name_is_one() -> None:
    transformers()
    assert hugging_face.values_of({"router_dtype": "load", "a_dtype": "float32"}) == {"a_dtype": "float32"}


def test_a_backbone_by_name_is_not_looked_up(tmp_path: Path, no_network: list[object]) -> None:
    folder = bert_folder(tmp_path / "bert")
    values = {"model_type": "detr", "architectures": ["DetrForObjectDetection"], "use_timm_backbone": False}
    with pytest.raises(CheckpointError) as caught:
        load(edited(folder, backbone="someone", **values))
    assert caught.value.hint
    assert no_network == []


def test_arguments_for_timm_inside_a_config_are_numbers() -> None:
    transformers()
    asked = {"features_only": True, "feature_cls": "fx", "checkpoint_path": "x", "act_layer": "gelu", "depth": 3}
    values = hugging_face.values_of({"architecture": "resnet18", "model_args": asked})
    assert values == {"architecture": "resnet18", "model_args": {"depth": 3}}


def test_the_hub_is_never_asked(tmp_path: Path, no_network: list[object]) -> None:
    load(bert_folder(tmp_path / "bert"))
    backbone = {"model_type": "timm_backbone", "backbone": "resnet18", "use_pretrained_backbone": True}
    values = hugging_face.values_of({"model_type": "detr", "backbone_config": backbone})
    assert values == {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18"}}
    assert no_network == []
