"""Texts in lines and tables, tokenised for a network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.data.batches import first_batch, is_labelled
from compressor.data.expected import Expected
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Samples
from compressor.data.sources import data_for, load_data
from compressor.data.splits import Data, SplitName
from compressor.errors import DataError
from compressor.graph.input_spec import InputSpec
from tests.support.hugging import transformers

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "food", "a", "the", "very")
TAKES = ("input_ids", "attention_mask", "token_type_ids")
LENGTH = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokeniser of few words, as transformers saves it."""
    library: Any = pytest.importorskip("tokenizers", reason="needs the extra `transformers`")
    index = {word: i for i, word in enumerate(WORDS)}
    tokeniser = library.Tokenizer(library.models.WordLevel(index, unk_token="[UNK]"))
    tokeniser.pre_tokenizer = library.pre_tokenizers.Whitespace()
    tokeniser.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    home = tmp_path / "my-bert"
    home.mkdir()
    tokeniser.save(str(home / "tokenizer.json"))
    return home


def expected(folder: Path, *takes: str, **other: Any) -> Expected:
    specs = tuple(InputSpec(name=name, shape=(1, LENGTH), dtype=torch.int64) for name in takes or TAKES)
    return Expected(specs=specs, folders=(folder,), **other)


def items(samples: Samples | None) -> list[dict[str, Any]]:
    assert samples is not None
    return [samples[i] for i in range(len(samples))]


def every(data: Data) -> list[dict[str, Any]]:
    return items(data.whole)


def read(folder: Path, name: str, content: str, *takes: str, **other: Any) -> Data:
    (folder.parent / name).write_text(content)
    return load_data(str(folder.parent / name), expected=expected(folder, *takes, **other))


def test_lines_become_tokens_of_the_networks_length(folder: Path) -> None:
    data = read(folder, "texts.txt", "good film\n\nbad unknown food\n")
    first, second = items(data.test)
    assert first["input_ids"].tolist() == [2, 4, 6, 3, 0, 0, 0, 0]
    assert first["attention_mask"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert second["input_ids"].tolist() == [2, 5, 1, 7, 3, 0, 0, 0]
    assert "labels" not in first
    assert data.caveats == ()
    assert (
        first_batch(data.split(SplitName.TEST), size=2, preprocessing=Preprocessing(takes=TAKES)).inputs[0].dtype
        is torch.int64
    )


def test_long_texts_are_cut_and_that_is_said(folder: Path) -> None:
    data = read(folder, "texts.txt", "a very very very good film the film\ngood film\n")
    assert items(data.test)[0]["input_ids"].tolist() == [2, 8, 10, 10, 10, 4, 6, 3]
    assert "1 of 2 texts in texts.txt are longer than the network's 8 tokens" in data.caveats[0]


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("t.csv", "text,label\ngood film,1\nbad film,0\n", [1, 0]),
        ("t.csv", "label,id,sentence\n1,x,good film\n0,y,bad film\n", [1, 0]),
        ("t.csv", "good film,1\nbad film,0\n", [1, 0]),
        ("t.csv", "comment,label\ngood film,1\nbad film,0\n", [1, 0]),
        ("t.csv", '"good film",0.5\n"bad film",1.5\n', [0.5, 1.5]),
        ("t.tsv", "text\tlabel\ngood film\tyes\nbad film\tno\n", [1, 0]),
        ("t.csv", "text\ngood film\nbad film\n", None),
        ("t.csv", "text,label\ngood film,\nbad film,\n", None),
    ],
)
def test_columns_are_found_by_their_names(folder: Path, name: str, content: str, labels: list[float] | None) -> None:
    data = read(folder, name, content)
    assert [item["input_ids"][1:3].tolist() for item in items(data.test)] == [[4, 6], [5, 6]]
    assert [item.get("labels") for item in items(data.test)] == ([None, None] if labels is None else labels)
    assert data.classes == (("no", "yes") if "yes" in content else None)
    assert is_labelled(data.split(SplitName.TEST), preprocessing=Preprocessing(takes=TAKES)) == (labels is not None)


@pytest.mark.parametrize("content", ["text,text_pair,label\ngood film,bad food,1\n", "good film,bad food,1\n"])
def test_pairs(folder: Path, content: str) -> None:
    (item,) = items(read(folder, "pairs.csv", content).test)
    assert item["input_ids"].tolist() == [2, 4, 6, 3, 5, 7, 3, 0]
    assert item["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert item["labels"] == 1


def test_a_text_is_its_own_target_in_language_modelling(folder: Path) -> None:
    (folder.parent / "t.csv").write_text("text,label\ngood film,x\nbad film,y\n")
    data = load_data(str(folder.parent / "t.csv"), task="language-modelling", expected=expected(folder))
    assert items(data.test)[0]["labels"].tolist() == [2, 4, 6, 3, -100, -100, -100, -100]
    assert data.classes is None


def test_a_file_for_each_split_and_no_text_in_two(folder: Path) -> None:
    home = folder.parent / "texts"
    home.mkdir()
    (home / "train.csv").write_text("text,label\n" + "".join(f"{w} film,{w}\n" for w in WORDS[4:9]))
    (home / "test.csv").write_text("text,label\ngood film,good\nbad the,bad\n")
    data = load_data(str(home), expected=expected(folder))
    assert data.repeated == 1
    assert data.sizes == {"train": 3, "tune": 1, "test": 2}
    assert data.classes == ("a", "bad", "film", "food", "good")
    assert [item["labels"] for item in items(data.test)] == [4, 1]


def test_one_file_is_split_by_the_seed_and_repeats_stay_in_the_split_that_is_measured(folder: Path) -> None:
    (folder.parent / "t.txt").write_text(
        "".join(f"{w} {v}\n" for w in WORDS[4:] for v in WORDS[4:]) + "good good\n" * 9
    )
    draws = [load_data(str(folder.parent / "t.txt"), expected=expected(folder), seed=seed) for seed in (0, 0, 1)]
    texts = [[str(item["input_ids"].tolist()) for item in items(one.test)] for one in draws]
    assert texts[0] == texts[1] != texts[2]
    parts = [
        {str(i["input_ids"].tolist()) for i in items(part)} for part in (draws[0].train, draws[0].tune, draws[0].test)
    ]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_a_single_input_of_whole_numbers_is_the_tokens(folder: Path) -> None:
    (item,) = items(read(folder, "t.txt", "good film\n", "ids").test)
    assert item["ids"].tolist() == [2, 4, 6, 3, 0, 0, 0, 0]


@dataclass
class Known:
    """As much of a checkpoint as reading its data takes."""

    path: str
    classes: tuple[str, ...] | None = None
    name: str = "net"
    architecture: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(ref="x:y"))
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(takes=TAKES))
    example_inputs: tuple[Tensor, ...] = (torch.zeros(1, LENGTH, dtype=torch.int64),) * 3
    input_specs: tuple[InputSpec, ...] = ()


def test_the_checkpoint_brings_tokeniser_length_and_classes(folder: Path) -> None:
    file = folder.parent / "t.csv"
    file.write_text("text,label\ngood film,Good\nbad film,bad\n")
    data = data_for(Known(str(folder), classes=("good", "so-so", "bad")), str(file))
    assert [item["labels"] for item in items(data.test)] == [0, 2]
    with pytest.raises(DataError, match="no class called `Good`"):
        data_for(Known(str(folder), classes=("fine", "bad")), str(file))


def test_an_artifact_finds_the_dense_networks_tokeniser(folder: Path) -> None:
    artifact, file = folder.parent / "small.compressed", folder.parent / "t.txt"
    artifact.mkdir()
    (artifact / "recipe.json").write_text(json.dumps({"source": {"path": str(folder)}}))
    file.write_text("good film\n")
    assert items(data_for(Known(str(artifact)), str(file)).test)[0]["input_ids"].tolist()[:4] == [2, 4, 6, 3]
    (artifact / "recipe.json").write_text(json.dumps({"source": {"path": str(folder / "gone")}}))
    with pytest.raises(DataError, match="no tokeniser"):
        data_for(Known(str(artifact)), str(file), seed=1) if (folder / "tokenizer.json").rename(folder / "x") else None


def test_a_tokeniser_may_lie_beside_the_texts(folder: Path) -> None:
    (folder / "t.txt").write_text("good film\n")
    alone = replace(expected(folder), folders=(folder.parent,))
    assert items(load_data(str(folder / "t.txt"), expected=alone).test)[0]["input_ids"].tolist()[:4] == [2, 4, 6, 3]


def test_the_padding_is_the_networks(folder: Path) -> None:
    (folder / "config.json").write_text('{"pad_token_id": 9}')
    assert items(read(folder, "t.txt", "good film\n").test)[0]["input_ids"].tolist()[4:] == [9] * 4
    (folder / "config.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"pad_token": {"content": "very"}}')
    assert items(read(folder, "t.txt", "good film\n").test)[0]["input_ids"].tolist()[4:] == [10] * 4


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.txt", "\n \n", "there are no texts"),
        ("t.csv", "", "there are no texts"),
        ("t.csv", "text,label\ngood film,1\nbad film\n", "row 3 has 1 columns, the first has 2"),
        ("t.csv", 'text,label\n"good film,1\nbad film,0\n', "is no table"),
        ("t.csv", "a,b,c,d\ne,f,g,h\n", "4 columns and no header that names the text: a, b, c, d"),
        ("t.csv", "text,label\ngood film,1\nbad film,\n", "1 of 2 texts in .* have no label, the first is text 2"),
        ("t.csv", "text,label\ngood film,-7\n", "has the label -7"),
    ],
)
def test_wrong_tables_are_refused(folder: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as raised:
        read(folder, name, content)
    assert raised.value.hint


def test_wrong_networks_are_refused(folder: Path) -> None:
    file = folder.parent / "t.txt"
    file.write_text("good film\n")
    tokens = InputSpec(name="input_ids", shape=(1, LENGTH), dtype=torch.int64, below=6)
    floats = InputSpec(name="x", shape=(1, 8), dtype=torch.float32)
    for said, one in (
        ("are tokenised for a network", Expected()),
        ("no tokeniser for the texts", replace(expected(folder), folders=(folder.parent / "x",))),
        ("the network reads pixel_values=1x8", expected(folder, "input_ids", "pixel_values")),
        ("knows the token 6, and the network reads numbers below 6", replace(expected(folder), specs=(tokens,))),
        ("the network reads x=1x8:float32", replace(expected(folder), specs=(floats,))),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said) as raised:
            load_data(str(file), expected=one)
        assert raised.value.hint
    file.write_bytes(b"\xff\xfe\x00g")
    with pytest.raises(DataError, match="is no text"):
        load_data(str(file), expected=expected(folder))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"model": {"type": "Nothing"}}', '{"version": "1.0", "model": null}']
)
def test_a_broken_tokeniser_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"the tokeniser in .* cannot be used") as raised:
        read(folder, "t.txt", "good film\n")
    assert raised.value.hint


def test_a_token_that_no_vocabulary_has_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"pad_token_id": 2147483648}')
    with pytest.raises(DataError, match="without overflow"):
        read(folder, "t.txt", "good film\n")


def test_an_older_tokeniser_is_transformers_own_and_runs_no_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    data = read(folder, "t.txt", "good film\na very very very good film the film\n")
    assert items(data.test)[0]["input_ids"].tolist() == [2, 4, 6, 3, 0, 0, 0, 0]
    assert items(data.test)[1]["input_ids"].tolist() == [2, 8, 10, 10, 10, 4, 6, 3]
    assert "1 of 2" in data.caveats[0]
    monkeypatch.chdir(folder)
    (folder / "evil.py").write_text("open('ran', 'w').close()\nclass T: pass\n")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    with pytest.raises(DataError, match="asks for code of its own"):
        read(folder, "t.txt", "good film\n")
    assert not (folder / "ran").exists()
