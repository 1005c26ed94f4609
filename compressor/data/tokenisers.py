"""The tokeniser of a Hugging Face folder: `tokenizer.json`, or the older files that transformers reads.

A tokeniser comes with a file, so it must not run code or fetch anything: `tokenizer.json` is data for the tokenizers
library; other forms are read by transformers' own classes, offline, and a folder that asks for code is refused.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.errors import DataError
from compressor.files.json_files import parsed
from compressor.files.regular import check_regular

WHOLE, CONFIG, OLDER = "tokenizer.json", "tokenizer_config.json", ("vocab.txt", "vocab.json", "spiece.model")
INSTALL = "`pip install compress[transformers]`"
ELSEWHERE = "tokenise the texts yourself: an `.npz` with the inputs' names, or `--data file.py:function`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Texts as tokens: int32 `[texts, length]` each; `cut` is the number of texts that were longer."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    cut: int


Encode = Callable[[Sequence[str], Sequence[str] | None, int], Encoded]
"""Texts, the second text of each pair or `None`, and the length to which they are cut or padded."""


def tokeniser_in(folders: Sequence[Path]) -> Encode | None:
    """Return the tokeniser in the first of these folders that has one; `None` where none has."""
    for folder in folders:
        if (folder / WHOLE).is_file():
            return _whole(folder)
        if any((folder / name).is_file() for name in OLDER):
            return _older(folder)
    return None


def _json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of the folder; nothing where it is not there."""
    file = folder / name
    if not file.is_file():
        return {}
    return parsed(file.read_bytes(), where=str(file), refusal=DataError, hint="fetch the folder again")


def _whole(folder: Path) -> Encode:
    """The tokeniser in a `tokenizer.json`."""
    file = folder / WHOLE
    check_regular(file, refusal=DataError)
    try:
        library: Any = importlib.import_module("tokenizers")
    except ImportError as error:
        raise DataError(f"{file} is read by tokenizers, which is not installed", hint=INSTALL) from error
    tokeniser = _unless_broken(lambda: library.Tokenizer.from_file(str(file)), folder)
    padding = _padding(folder, tokeniser)

    def encode(texts: Sequence[str], pairs: Sequence[str] | None, length: int) -> Encoded:
        both = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))

        def encoded() -> list[Any]:
            tokeniser.enable_truncation(max_length=length)
            tokeniser.enable_padding(length=length, pad_id=padding, direction="right")
            every: list[Any] = tokeniser.encode_batch(both)
            return every

        every = _unless_broken(encoded, folder)
        return Encoded(
            input_ids=_tensor([one.ids for one in every], folder),
            attention_mask=_tensor([one.attention_mask for one in every], folder),
            token_type_ids=_tensor([one.type_ids for one in every], folder),
            cut=sum(bool(one.overflowing) for one in every),
        )

    return encode


def _padding(folder: Path, tokeniser: Any) -> int:
    """The token of padding: the network's, else the tokeniser's, else 0, which a mask hides."""
    own = _json(folder, "config.json").get("pad_token_id")
    if isinstance(own, int) and own >= 0:
        return own
    named = _json(folder, CONFIG).get("pad_token")
    named = named.get("content") if isinstance(named, dict) else named
    number = tokeniser.token_to_id(named) if isinstance(named, str) else None
    return number if isinstance(number, int) else 0


def _unless_broken(read: Callable[[], Any], folder: Path) -> Any:
    """What `read` returns; its errors say which folder they are of."""
    try:
        return read()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no `Exception`
        why = " ".join(str(error).split())[:200]
        raise DataError(f"the tokeniser in {folder} cannot be used: {why}", hint=ELSEWHERE) from error


def _tensor(rows: Sequence[Sequence[int]], folder: Path) -> Tensor:
    """Rows of tokens. Refused: numbers that no vocabulary has."""
    tokens: Tensor = _unless_broken(lambda: torch.tensor(rows, dtype=torch.int32), folder)
    return tokens


def _older(folder: Path) -> Encode:
    """The tokeniser in the files of an older form, by transformers' own class for it."""
    if _json(folder, CONFIG).get("auto_map"):
        raise DataError(f"the tokeniser in {folder} asks for code of its own", hint=ELSEWHERE)
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise DataError(
            f"the tokeniser in {folder} is read by transformers, which is not installed", hint=INSTALL
        ) from (error)

    def opened() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return library.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)

    tokeniser = _unless_broken(opened, folder)

    def encode(texts: Sequence[str], pairs: Sequence[str] | None, length: int) -> Encoded:
        def encoded() -> Any:
            tokeniser.padding_side = "right"
            if tokeniser.pad_token is None:
                tokeniser.pad_token = tokeniser.eos_token
            form = {"padding": "max_length", "truncation": True, "max_length": length, "return_token_type_ids": True}
            beside = None if pairs is None else list(pairs)
            return tokeniser(list(texts), beside, **form), tokeniser(list(texts), beside)

        fitted, whole = _unless_broken(encoded, folder)
        return Encoded(
            input_ids=_tensor(fitted["input_ids"], folder),
            attention_mask=_tensor(fitted["attention_mask"], folder),
            token_type_ids=_tensor(fitted["token_type_ids"], folder),
            cut=sum(len(ids) > length for ids in whole["input_ids"]),
        )

    return encode
