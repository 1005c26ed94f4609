"""Texts: a line each in a `.txt`, or a row each in a `.csv` or `.tsv` with a label, tokenised as the network's folder
says.

The columns of a table are found by their names (`text`, `sentence`, …, a second one for pairs, and `label`). Without
such names they are text and label, or text, second text and label.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from compressor.data.content import Content
from compressor.data.expected import Expected
from compressor.data.samples import UNLABELLED
from compressor.data.splits import SplitName
from compressor.data.tokenisers import ELSEWHERE, Encode, Encoded, tokeniser_in
from compressor.errors import DataError
from compressor.files.names import printable
from compressor.files.regular import check_regular
from compressor.graph.input_spec import InputSpec

TEXTS = ("text", "sentence", "sentence1", "text1", "question", "question1", "premise", "content", "review")
PAIRS = ("text_pair", "text2", "sentence2", "question2", "hypothesis", "answer", "context")
LABELS = ("label", "labels", "target", "class", "y")
NOT_COUNTED = -100  # torch's own
LARGEST = 2_000_000_000  # bytes of a file, which is read at once
LONGEST_FIELD = 10_000_000  # characters
OWN_TARGET = "language-modelling"


class Row(NamedTuple):
    """A text, the one that it is paired with and its label, where there are any, as they are written."""

    text: str
    pair: str | None
    label: str | None


class Texts:
    """Tokenised texts in memory: an item is a mapping of int64 `[length]` by the inputs' names, with a target."""

    def __init__(self, inputs: Mapping[str, Tensor], target: Tensor | None, digests: list[bytes]) -> None:
        self.inputs, self.target, self.digests = inputs, target, digests

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, index: int, /) -> dict[str, Tensor | int | float]:
        item: dict[str, Tensor | int | float] = {name: part[index].long() for name, part in self.inputs.items()}
        if self.target is not None:
            one = self.target[index]
            item["labels"] = one.long() if one.ndim else one.item()
        return item


def read_texts(files: Mapping[SplitName | None, Path], *, expected: Expected) -> Content:
    """Return the texts in one file, or in one for each split, as the tokens that the network reads.

    With the task of language modelling a text is its own target. Refused: no network, a network without a tokeniser or
    with inputs other than tokens, tables without texts, labels that are missing for some rows.
    """
    rows = {split: _rows(path) for split, path in files.items()}
    first = next(iter(files.values()))
    encode = _tokeniser(expected, first)
    names = None if expected.task == OWN_TARGET else _names([row for some in rows.values() for row in some])
    splits: dict[SplitName | None, Texts] = {}
    cut = 0
    for split, some in rows.items():
        encoded = _encoded(some, encode, expected)
        cut += encoded.cut
        if expected.task == OWN_TARGET:
            target: Tensor | None = encoded.input_ids.masked_fill(encoded.attention_mask == 0, NOT_COUNTED)
        else:
            target = _target([row.label for row in some], names, where=files[split])
        splits[split] = Texts(_inputs(encoded, expected, where=first), target, [_digest(row) for row in some])
    count = sum(map(len, rows.values()))
    length = _length(expected)
    caveat = f"{cut:,} of {count:,} texts in {first.name} are longer than the network's {length} tokens and are cut; "
    caveat += "a longer input: `--input 'input_ids=1x128:int64'` when pruning"
    return Content(splits={**splits}, classes=names, by_name=names is not None, caveats=(caveat,) if cut else ())


def _tokeniser(expected: Expected, file: Path) -> Encode:
    """The network's tokeniser, or one that lies beside the texts."""
    if not expected.specs:
        raise DataError(
            f"{file} holds texts, which are tokenised for a network",
            hint='give the network too: `data_for(checkpoint, "texts.csv")`',
        )
    encode = tokeniser_in((*expected.folders, file.absolute().parent))
    if encode is None:
        raise DataError(
            f"there is no tokeniser for the texts in {file}: looked in {', '.join(map(str, expected.folders))}",
            hint=f"put the network's tokenizer.json there, or {ELSEWHERE}",
        )
    return encode


def _length(expected: Expected) -> int:
    return expected.specs[0].shape[-1]


def _encoded(rows: Sequence[Row], encode: Encode, expected: Expected) -> Encoded:
    """The rows as tokens of the network's length."""
    pairs = [row.pair or "" for row in rows] if any(row.pair is not None for row in rows) else None
    return encode([row.text for row in rows], pairs, _length(expected))


def _inputs(encoded: Encoded, expected: Expected, *, where: Path) -> dict[str, Tensor]:
    """What the network reads of the tokens, by its inputs' names. Refused: other inputs, unknown tokens."""
    inputs = {}
    for number, spec in enumerate(expected.specs):
        inputs[str(spec.name)] = _input(encoded, spec, alone=len(expected.specs) == 1, where=where)
        if len(spec.shape) != 2 or (number and spec.shape != expected.specs[0].shape):
            raise DataError(
                f"{where} holds texts, and the network reads {spec.shown}",
                hint=f"texts become `[batch, length]`, alike for all inputs; else {ELSEWHERE}",
            )
    return inputs


def _input(encoded: Encoded, spec: InputSpec, *, alone: bool, where: Path) -> Tensor:
    """One input, known by its name; a single one of any name is the tokens."""
    name = str(spec.name)
    whole = spec.dtype is not None and not spec.dtype.is_floating_point
    if name == "input_ids" or (alone and whole):
        most = int(encoded.input_ids.max())
        if spec.below is not None and most >= spec.below:
            raise DataError(
                f"the tokeniser knows the token {most}, and the network reads numbers below {spec.below:g}",
                hint="use the tokeniser that the network was trained with",
            )
        return encoded.input_ids
    if name == "attention_mask":
        return encoded.attention_mask
    if name == "token_type_ids":
        return encoded.token_type_ids
    if name == "position_ids":
        return torch.arange(encoded.input_ids.shape[1], dtype=torch.int32).expand_as(encoded.input_ids)
    raise DataError(f"{where} holds texts, and the network reads {spec.shown}", hint=ELSEWHERE)


def _rows(file: Path) -> list[Row]:
    """The rows of a file. Refused: none, no text, broken tables."""
    check_regular(file, refusal=DataError)
    if file.stat().st_size > LARGEST:
        raise DataError(f"{file} has more than {LARGEST:,} bytes", hint="use a part of it")
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text: {error}", hint="save it as UTF-8") from error
    if file.suffix.lower() == ".txt":
        rows = [Row(line.strip(), None, None) for line in content.splitlines() if line.strip()]
    else:
        rows = _of_table(content, file)
    if not rows:
        raise DataError(f"there are no texts in {file}", hint="a line or a row for each text")
    return rows


def _of_table(content: str, file: Path) -> list[Row]:
    """The rows of a table."""
    tabs = file.suffix.lower() == ".tsv"
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        lines = [
            (number, line)
            for number, line in enumerate(
                csv.reader(
                    io.StringIO(content, newline=""),
                    delimiter="\t" if tabs else ",",
                    quoting=csv.QUOTE_NONE if tabs and '"' not in content.partition("\n")[0] else csv.QUOTE_MINIMAL,
                    strict=not tabs,
                ),
                1,
            )
            if any(field.strip() for field in line)
        ]
    except csv.Error as error:
        raise DataError(f"{file} is no table: {error}", hint='a text with commas stands in quotes: "a, b",1') from error
    finally:
        csv.field_size_limit(before)
    if not lines:
        return []
    text, pair, label, rest = _columns(lines, file)
    width = len(lines[0][1])
    for number, line in rest:
        if len(line) != width:
            raise DataError(
                f"{file}, row {number} has {len(line)} columns, the first has {width}",
                hint='a text with commas stands in quotes: "a, b",1',
            )
    return [
        Row(
            line[text],
            None if pair is None else line[pair],
            None if label is None else line[label].strip(),
        )
        for _, line in rest
    ]


Lines = list[tuple[int, list[str]]]


def _columns(lines: Lines, file: Path) -> tuple[int, int | None, int | None, Lines]:
    """Which columns are text, second text and label, and the rows below the header, if there is one."""
    header = [name.strip().lower() for name in lines[0][1]]
    text = next((header.index(name) for name in TEXTS if name in header), None)
    if text is not None:
        pair, label = (next((header.index(n) for n in names if n in header), None) for names in (PAIRS, LABELS))
        return text, pair, label, lines[1:]
    if len(header) > 3:
        raise DataError(
            f"{file} has {len(header)} columns and no header that names the text: {printable(', '.join(header))}",
            hint="call the columns `text`, `text_pair` if there are pairs, and `label`",
        )
    label = len(header) - 1 if len(header) > 1 else None
    has_header = label is not None and header[label] in LABELS
    return 0, 1 if len(header) == 3 else None, label, lines[1:] if has_header else lines


def _numbers(labels: Sequence[str]) -> list[float] | None:
    """The labels as numbers, if all are."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _names(rows: Sequence[Row]) -> tuple[str, ...] | None:
    """The classes, sorted by name; `None` where labels are numbers or absent."""
    labels = [row.label for row in rows if row.label]
    return None if not labels or _numbers(labels) is not None else tuple(sorted(set(labels)))


def _target(labels: Sequence[str | None], names: tuple[str, ...] | None, *, where: Path) -> Tensor | None:
    """The labels as numbers; `None` for a file without. Refused: rows without a label beside others with one."""
    known = [label for label in labels if label]
    if not known:
        return None
    if len(known) < len(labels):
        place = next(number for number, label in enumerate(labels, 1) if not label)
        raise DataError(
            f"{len(labels) - len(known)} of {len(labels)} texts in {where} have no label, the first is text {place}",
            hint="label them, or leave them out",
        )
    if names is not None:
        index = {name: i for i, name in enumerate(names)}
        return torch.tensor([index[label] for label in known])
    numbers = _numbers(known) or []
    if all(number.is_integer() for number in numbers):
        if min(numbers) < UNLABELLED:
            raise DataError(f"{where} has the label {min(numbers):g}", hint="labels count from 0")
        return torch.tensor([int(number) for number in numbers])
    return torch.tensor(numbers, dtype=torch.float32)


def _digest(row: Row) -> bytes:
    """A digest of the text and its pair."""
    content = f"{row.text}\0{row.pair or ''}".encode(errors="surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()
