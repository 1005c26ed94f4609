"""Files with something wrong in them: a byte, a length, a member of an archive, a value of its JSON, a hostile text.

Each mutation is drawn from a `random.Random`, so that a seed gives the same mutants again.
"""

from __future__ import annotations

import enum
import gzip
import io
import json
import os
import pickle
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

CANARY, ESCAPED = "PWNED", "ESCAPED"  # what appears in the working folder where a mutant ran code, or wrote elsewhere
CODE = f'__import__("os").system("touch {CANARY}")'
TEXTS = (
    "", "x" * 5000, "\0", "../../" + ESCAPED, f"/{ESCAPED}", "é\ud800", "[red]", "os:system", "torch.nn:Module", CODE,
    f'training")\rgetattr(__import__("os"),"system")("touch {CANARY}")\rdef f(self):\r    x = (1)#',
    f"{CODE}:{CODE}", "aten.from_file.default", "__class__", "NaN",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.5, float("nan"), float("inf"), True)
DEEP = 2000


class Form(enum.Enum):
    """How a file is built, which decides what can be wrong in it."""

    BYTES = enum.auto()
    JSON = enum.auto()
    ZIP = enum.auto()
    GZIP = enum.auto()
    SAFETENSORS = enum.auto()


class _Runs:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {CANARY}",)


PICKLE = pickle.dumps(_Runs(), protocol=2)


def mutated(data: bytes, form: Form, dice: random.Random) -> tuple[bytes, str]:
    """Another file, and what is wrong with it; one mutation in three knows nothing of the file's form."""
    if form is Form.BYTES or dice.random() < 1 / 3:
        return _bytes(data, dice)
    return {Form.JSON: _json, Form.ZIP: _zip, Form.GZIP: _gzip, Form.SAFETENSORS: _safetensors}[form](data, dice)


def _bytes(data: bytes, dice: random.Random) -> tuple[bytes, str]:
    """Bytes changed, cut off, put in, taken out, or standing twice."""
    at, length = dice.randrange(len(data) + 1), dice.choice((1, 2, 4, 8, 64))
    end, chunk = at + length, data[at : at + length]
    match dice.randrange(7):
        case 0:
            found, places = bytearray(data), [dice.randrange(len(data)) for _ in range(dice.choice((1, 1, 2, 8)))]
            for place in places:
                found[place] ^= 1 << dice.randrange(8)
            return bytes(found), f"bits flipped at {places}"
        case 1:
            return data[:at] + dice.choice((b"\0", b"\xff", b"\x80")) * length + data[end:], f"bytes set at {at}"
        case 2:
            return data[:at], f"cut off at {at}"
        case 3:
            return data[:at] + data[end:], f"{length} bytes missing at {at}"
        case 4:
            return data[:at] + chunk + data[at:], f"{length} bytes twice at {at}"
        case 5:
            to = dice.randrange(len(data) + 1)
            return data[:to] + chunk + data[to + len(chunk) :], f"{length} bytes of {at} at {to}"
    return data + dice.randbytes(length), f"{length} bytes more"


def _json(data: bytes, dice: random.Random) -> tuple[bytes, str]:
    """A key missing, renamed or new; a value of another kind, hostile, huge, not a number, or nested too deep."""
    value, how = _changed(json.loads(data), dice)
    text = json.dumps(value)
    if dice.random() < 0.05:
        return text.replace('"0000deep"', "[" * DEEP + "]" * DEEP).encode(), how
    return text.encode("utf-8", "surrogatepass"), how


def _changed(value: Any, dice: random.Random) -> tuple[Any, str]:
    places: dict[str, list[Any]] = {}
    for place in _places(value):  # by their names, so that what stands there once is drawn as often as what fills pages
        places.setdefault(re.sub(r"\W*\d+$", "", place[2]).rpartition("/")[2], []).append(place)
    if not places:
        return _other(value, dice), "the whole"
    holder, key, where = dice.choice(places[dice.choice(sorted(places))])
    match dice.randrange(5):
        case 0:
            del holder[key]
            return value, f"without {where}"
        case 1 if isinstance(holder, dict):
            new = dice.choice(TEXTS)
            holder[new] = holder.pop(key)
            return value, f"{where} called {new[:40]!r}"
        case 2 if isinstance(holder, list):
            holder.insert(key, holder[key])
            return value, f"{where} twice"
    holder[key] = _other(holder[key], dice)
    return value, f"{where} = {str(holder[key])[:40]!r}"


def _places(value: Any, where: str = "") -> Any:
    """Every value inside, with what holds it and its key there; long lists by their first few."""
    entries = list(value.items()) if isinstance(value, dict) else list(enumerate(value[:6]))
    for key, inner in entries:
        yield value, key, f"{where}/{str(key)[:40]}"
        if isinstance(inner, (dict, list)):
            yield from _places(inner, f"{where}/{str(key)[:40]}")


def _other(value: Any, dice: random.Random) -> Any:
    """Another value, often of another kind."""
    if isinstance(value, (int, float)) and dice.random() < 0.5:
        return dice.choice(NUMBERS)
    if isinstance(value, str) and dice.random() < 0.5:
        return dice.choice(TEXTS)
    deep: Any = []
    for _ in range(dice.choice((0, 3, 60))):
        deep = [deep]
    return dice.choice((None, deep, {}, {"a": 1}, [None], [value], {"0": value}, "0000deep", *TEXTS, *NUMBERS))


def _zip(data: bytes, dice: random.Random) -> tuple[bytes, str]:
    """A member with another name, twice, missing, of other content, a pickle that runs code, or with a wrong CRC."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = dice.randrange(len(members))
    name, content = members[at]
    other, how = name, "as it is"
    match dice.randrange(7):
        case 0:
            leaf = dice.choice(("../" + ESCAPED, f"/{ESCAPED}", "x.json", "code/x.py", "constants.pkl", "a/" * 60))
            other = dice.choice((name.rpartition("/")[0] + "/" + leaf, leaf, dice.choice(members)[0]))
            members[at], how = (other, content), f"{name} called {other[:40]}"
        case 1:
            members.append((name, _inside(name, content, dice)[0]))
            how = f"{name} twice"
        case 2:
            del members[at]
            how = f"without {name}"
        case 3:
            members[at], how = (name, PICKLE), f"{name} is a pickle that runs code"
        case 4:
            place = data.find(content) if content else -1
            if place >= 0:
                wrong = place + dice.randrange(len(content))
                return data[:wrong] + bytes([data[wrong] ^ 0xFF]) + data[wrong + 1 :], f"{name} with a wrong CRC"
        case _:
            content, how = _inside(name, content, dice)
            members[at], how = (name, content), f"{name}: {how}"
    found = io.BytesIO()
    method = dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(found, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that stands twice is meant
        for member, inner in members:
            archive.writestr(member, inner)
    return found.getvalue(), how


def _inside(name: str, content: bytes, dice: random.Random) -> tuple[bytes, str]:
    """A member with something wrong in it, by its own form."""
    return _json(content, dice) if name.endswith(".json") and dice.random() < 0.8 else _bytes(content, dice)


def _gzip(data: bytes, dice: random.Random) -> tuple[bytes, str]:
    content, how = _bytes(gzip.decompress(data), dice)
    return gzip.compress(content, mtime=0), f"inside: {how}"


def _safetensors(data: bytes, dice: random.Random) -> tuple[bytes, str]:
    """A header of another length, or with something wrong in its JSON."""
    (length,) = struct.unpack("<Q", data[:8])
    if dice.random() < 0.2:
        other = dice.choice((0, 1, length - 1, length + 1, 2**20, 2**40, 2**63))
        return struct.pack("<Q", other) + data[8:], f"a header of {other} bytes"
    header, how = _json(data[8 : 8 + length], dice)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :], f"header: {how}"
