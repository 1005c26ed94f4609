"""Folders of transformers and timm: the class, the weights and the inputs that they describe."""

from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import load_artifact, open_artifact
from compressor.checkpoint.folders import load_folder
from compressor.checkpoint.loading import load
from compressor.errors import CompressError
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget
from tests.support.hugging import bert_folder, edited, transformers


def test_a_folder_gives_the_network_that_transformers_loads(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert", num_labels=3)
    checkpoint = load(folder)
    reference = transformers().BertForSequenceClassification.from_pretrained(folder).eval()
    ids, mask = checkpoint.example_inputs
    assert [spec.name for spec in checkpoint.input_specs] == ["input_ids", "attention_mask"]
    assert int(ids.min()) >= 1
    assert int(ids.max()) < 60
    assert bool((mask == 1).all())
    answer, expected = checkpoint.module(ids, mask).logits, reference(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(answer, expected)
    assert answer.shape == (1, 3)


def test_a_pruned_folder_reloads_and_says_its_config(tmp_path: Path) -> None:
    checkpoint = load(bert_folder(tmp_path / "bert"))
    pruned = prune(checkpoint, Request(budget=ChannelBudget(ratio=0.4)))
    assert {group.root.rpartition(".")[2] for group in pruned.traced.groups} >= {"query", "dense", "word_embeddings"}
    small = pruned.checkpoint
    source = {"path": "", "sha256": ""}
    write_artifact(tmp_path / "a.compressed", small, source=source, results=Results(), trust_pickle=False, verify=False)
    again = load_artifact(tmp_path / "a.compressed")
    assert again.architecture.ref == "transformers:bert.BertForSequenceClassification"
    inputs = small.example_inputs
    assert torch.allclose(again.module(*inputs).logits, small.module(*inputs).logits)


def test_several_shards_are_one_network(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    expected = load(folder)
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = {"model-1.safetensors": names[:7], "model-2.safetensors": names[7:]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    table = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    sharded = load(folder)
    assert torch.equal(
        sharded.module(*expected.example_inputs).logits, expected.module(*expected.example_inputs).logits
    )


def test_old_names_in_a_bin_are_mapped(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    expected = load(folder)
    state = load_file(folder / "model.safetensors")
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in state.items()}
    old = {n.replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in old.items()}
    assert old.keys() != state.keys()
    torch.save(old, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    again = load(folder)
    assert torch.equal(again.module(*expected.example_inputs).logits, expected.module(*expected.example_inputs).logits)


def test_half_precision_is_computed_in_float32_and_stored_as_it_was(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    state = load_file(folder / "model.safetensors")
    save_file({n: t.half() for n, t in state.items()}, folder / "model.safetensors")
    checkpoint = load(folder)
    assert {p.dtype for p in checkpoint.module.parameters()} == {torch.float32}
    assert set(checkpoint.types.values()) == {torch.float16}


def test_the_users_inputs_replace_those_of_the_config(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    checkpoint = load(folder, inputs=["input_ids=1x7:int64<9"])
    assert [tuple(t.shape) for t in checkpoint.example_inputs] == [(1, 7), (1, 7)]
    assert int(checkpoint.example_inputs[0].max()) < 9
    with pytest.raises(CompressError, match="takes no input `pixels`"):
        load(folder, inputs=["pixels=1x3x8x8"])


def test_only_named_outputs_are_kept(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert", head="BertModel")
    assert load(folder, outputs=["pooler_output"]).module(*load(folder).example_inputs).keys() == {"pooler_output"}
    pruned = prune(load(folder, outputs=["pooler_output"]), Request(budget=ChannelBudget(ratio=0.4)))
    roots = {group.root for group in pruned.traced.groups}
    assert "embeddings.word_embeddings" in roots  # the last hidden state would pin it
    assert "embeddings.word_embeddings" not in {g.root for g in prune(load(folder), pruned.request).traced.groups}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["GPT2Model"]}, "has no `GPT2Model` for `bert`"),
        ({"model_type": "birt"}, "no model type `birt`"),
        ({"hidden_size": 32}, "of another shape"),
        ({"num_hidden_layers": 2}, "missing"),
        ({"model_type": None}, "no `model_type`"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(CompressError, match=message) as caught:
        load(edited(bert_folder(tmp_path / "bert"), **values))
    assert caught.value.hint


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CompressError, match="no weights"):
        load(folder)


def test_a_timm_folder_is_timms_network_with_its_preprocessing(tmp_path: Path) -> None:
    import timm

    net = timm.create_model("test_resnet", num_classes=4).eval()
    cfg = {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    config = {"architecture": "test_resnet", "num_classes": 4, "pretrained_cfg": cfg, "label_names": list("abcd")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    checkpoint = load(tmp_path)
    assert checkpoint.architecture.ref == "timm:test_resnet"
    assert checkpoint.preprocessing.mean == (0.5, 0.5, 0.5)
    assert checkpoint.preprocessing.size == (64, 64)
    assert checkpoint.classes == ("a", "b", "c", "d")
    inputs = checkpoint.example_inputs
    assert torch.allclose(checkpoint.module(*inputs), net(*inputs))


def test_an_artifact_records_the_outputs_that_matter(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.first(x).relu()
            return {"scores": self.last(features.mean((2, 3))), "features": features}

    code = "import torch\nfrom torch import Tensor, nn\n" + textwrap.dedent(inspect.getsource(Net))
    (tmp_path / "net.py").write_text(code)
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    arch = f"{tmp_path / 'net.py'}:Net"
    checkpoint = load(tmp_path / "net.pt", arch=arch, inputs=["1x3x8x8"], outputs=["scores"])
    pruned = prune(checkpoint, Request(budget=ChannelBudget(ratio=0.5)))
    source = {"path": checkpoint.path, "sha256": checkpoint.sha256}
    write_artifact(
        tmp_path / "a.compressed", pruned.checkpoint, source=source, results=Results(), trust_pickle=False, verify=False
    )
    artifact = open_artifact(tmp_path / "a.compressed")
    for again in (artifact.checkpoint(), artifact.dense()):
        assert again.outputs == ("scores",)
        assert again.module(*again.example_inputs).keys() == {"scores"}
    with pytest.raises(CompressError, match="were chosen when it was pruned"):
        load(tmp_path / "a.compressed", outputs=["features"])


def test_a_network_that_code_builds_with_transformers_has_its_inputs_too(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    (tmp_path / "net.py").write_text(
        "import json\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "def make():\n"
        f"    return BertForSequenceClassification(BertConfig(**json.load(open({str(folder / 'config.json')!r}))))\n"
    )
    checkpoint = load(folder / "model.safetensors", arch=f"{tmp_path / 'net.py'}:make")
    assert [spec.name for spec in checkpoint.input_specs] == ["input_ids", "attention_mask"]
    assert checkpoint.module.config.use_cache is False
    assert torch.equal(
        checkpoint.module(*checkpoint.example_inputs).logits, load(folder).module(*checkpoint.example_inputs).logits
    )


def test_the_dense_network_of_an_artifact_takes_the_inputs_of_the_recipe_alone(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    specs = load(folder, inputs=["input_ids=1x7"]).input_specs[:1]
    only = load_folder(folder, inputs=specs, complete=True)
    assert [spec.name for spec in only.input_specs] == ["input_ids"]
    assert only.module(*only.example_inputs).logits.shape == (1, 2)


def test_a_folder_says_itself_how_it_is_built(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="says how the network is built") as caught:
        load(bert_folder(tmp_path / "bert"), arch="net.py:make")
    assert "model.safetensors" in str(caught.value.hint)
