"""Where `--arch` names the code, pickles of any classes are read, and nothing that they name or call has an effect."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.checkpoint.loading import load
from compressor.checkpoint.pickles.placeholders import MAGIC, PROTOCOL, weights_in
from compressor.errors import CheckpointError
from tests.attacks.test_pickles import CONSTRUCTED, GADGETS, INPUT, Calls, small

CODE = """
from torch import nn


def net():
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*layers)
"""


class Foreign(nn.Sequential):
    """A class that the restricted reader does not know."""


@pytest.fixture(params=["zip", "old"])
def save(request: pytest.FixtureRequest, workdir: Path) -> Callable[[object, str], None]:
    """`torch.save`, in its present format and its first."""
    (workdir / "net.py").write_text(CODE)
    return lambda found, name: torch.save(found, name, _use_new_zipfile_serialization=request.param == "zip")


def foreign() -> nn.Module:
    return Foreign(*small())


@pytest.mark.parametrize("gadget", GADGETS | CONSTRUCTED)
@pytest.mark.parametrize("place", ["beside", "attribute", "layer"])
def test_a_call_has_no_effect(workdir: Path, save: Callable[[object, str], None], gadget: str, place: str) -> None:
    module, call = foreign(), (GADGETS | CONSTRUCTED)[gadget]
    state = module.state_dict()
    if place == "layer":
        module._modules["0"] = call  # type: ignore[assignment]
    elif place == "attribute":
        module.extra = call  # type: ignore[assignment]
    save({"model": module, "extra": call if place == "beside" else None}, "net.pt")
    before = {p.name for p in workdir.iterdir()}
    if place == "layer":
        with pytest.raises(CheckpointError):
            load("net.pt", arch="net.py:net", inputs=INPUT)
    else:
        found = load("net.pt", arch="net.py:net", inputs=INPUT).module.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert {p.name for p in workdir.iterdir()} - before <= {"state", "__pycache__"}


INSIDES: dict[str, Callable[[nn.Module], Any]] = {
    "no modules": lambda m: m.__dict__.pop("_modules"),
    "a tensor for a module": lambda m: m._modules.update({"0": torch.ones(2)}),
    "a number for a parameter": lambda m: m[0]._parameters.update({"weight": 3}),
    "itself": lambda m: m._modules.update({"5": m}),
    "itself further down": lambda m: m[1]._modules.update({"inner": m}),
    "no values": lambda m: m.to("meta"),
    "a tensor that repeats": lambda m: m.register_buffer("big", torch.zeros(1).expand(1 << 40)),
    "a name that is none": lambda m: m._buffers.update({"a b": torch.ones(1)}),
    "tables of calls": lambda m: m.__dict__.update(_buffers=Calls("os.system", "touch ran")),
}


@pytest.mark.parametrize("what", INSIDES)
def test_broken_insides_are_a_refusal(workdir: Path, save: Callable[[object, str], None], what: str) -> None:
    module = foreign()
    INSIDES[what](module)
    save({"model": module}, "net.pt")
    if what == "tables of calls":  # which have no entries
        assert len(load("net.pt", arch="net.py:net", inputs=INPUT).module) == 5  # type: ignore[arg-type]
    else:
        with pytest.raises(CheckpointError) as caught:
            load("net.pt", arch="net.py:net", inputs=INPUT)
        assert caught.value.hint
        assert str(caught.value).isprintable()
    assert not (workdir / "ran").exists()


def _first_format(content: bytes, *, system: object = None, keys: object = ()) -> bytes:
    system = {"little_endian": True} if system is None else system
    return b"".join(
        [*(pickle.dumps(one, 2) for one in (MAGIC, PROTOCOL, system)), content, pickle.dumps(list(keys), 2)]
    )


def _storage(key: str = "0", kind: str = "torch\nFloatStorage", count: int = 4) -> bytes:
    return (b"(X\x07\x00\x00\x00storagec" + kind.encode() + b"\nX\x01\x00\x00\x00" + key.encode()
            + b"X\x03\x00\x00\x00cpuJ" + struct.pack("<i", count) + b"NtQ")  # fmt: skip


def _tensor(offset: int, size: int, stride: int) -> bytes:
    numbers = [b"J" + struct.pack("<i", n) for n in (offset, size, stride)]
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + _storage() + numbers[0] + b"(" + numbers[1] + b"t(" + numbers[2]
            + b"t\x89ccollections\nOrderedDict\n)RtR")  # fmt: skip


RAW = struct.pack("<q4f", 4, 1, 2, 3, 4)
WRITTEN: dict[str, tuple[bytes, bytes]] = {
    "a tensor beyond its bytes": (_tensor(0, 5, 1), RAW),
    "an offset beyond its bytes": (_tensor(4, 1, 1), RAW),
    "a negative stride": (_tensor(3, 4, -1), RAW),
    "a negative size": (_tensor(0, -4, 1), RAW),
    "bytes that are cut": (_tensor(0, 4, 1), RAW[:-4]),
    "a length that is negative": (_tensor(0, 4, 1), struct.pack("<q", -4)),
    "a length beyond the file": (_tensor(0, 4, 1), struct.pack("<q", 1 << 60) + RAW),
    "a storage of no type": (_storage(kind="os\nsystem"), RAW),
    "something outside": (b"X\x01\x00\x00\x00aQ", b""),
    "a name outside": (b"Pother\n", b""),
    "lists without end": (b"]" * 100_000 + b"a" * 99_999, b""),
    "an extension": (b"\x82\x07", b""),
    "a state for a class": (b"cnet\nNet\n}b", b""),
    "a new object of none": (b"X\x01\x00\x00\x00a)\x81", b""),
    "a call of a text": (b"X\x01\x00\x00\x00a)R", b""),
    "an item of a number": (b"K\x01K\x02a", b""),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_what_torch_does_not_write_is_a_refusal(workdir: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg._extension_cache, 7, os.system)  # type: ignore[attr-defined]
    content, raw = WRITTEN[what]
    written = b"\x80\x02}X\x01\x00\x00\x00w" + content + b"s."
    keys = ["0"] if raw else []
    (workdir / "w.pt").write_bytes(_first_format(written, keys=keys) + raw)
    with pytest.raises(CheckpointError) as caught:
        weights_in(workdir / "w.pt")
    assert caught.value.hint


def test_a_memo_of_two_billion_takes_no_memory(workdir: Path) -> None:
    written = b"\x80\x02}X\x01\x00\x00\x00w]r\xff\xff\xff\x7fs."
    (workdir / "w.pt").write_bytes(_first_format(written))
    assert weights_in(workdir / "w.pt") == {"w": []}


def test_a_good_one_is_read(workdir: Path) -> None:
    written = b"\x80\x02}X\x01\x00\x00\x00w" + _tensor(1, 3, 1) + b"s."
    (workdir / "w.pt").write_bytes(_first_format(written, keys=["0"]) + RAW)
    assert weights_in(workdir / "w.pt")["w"].tolist() == [2, 3, 4]
    (workdir / "w.pt").write_bytes(_first_format(written, system={"little_endian": False}, keys=["0"]) + RAW)
    with pytest.raises(CheckpointError, match="byte order"):
        weights_in(workdir / "w.pt")


def test_torchscript_is_not_read_as_a_pickle(workdir: Path) -> None:
    import zipfile

    torch.save({"w": torch.ones(1)}, workdir / "w.pt")
    with zipfile.ZipFile(workdir / "w.pt", "a") as archive:
        archive.writestr("w/constants.pkl", pickle.dumps(()))
    with pytest.raises(CheckpointError, match="TorchScript"):
        weights_in(workdir / "w.pt")


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_is_not_of_torch_does_not_run(workdir: Path, protocol: int) -> None:
    (workdir / "net.pt").write_bytes(pickle.dumps(Calls("os.system", "touch ran"), protocol=protocol))
    with pytest.raises(CheckpointError):
        weights_in(workdir / "net.pt")
    assert not (workdir / "ran").exists()
    if protocol == 0:
        return  # torch does not write it
    stream = io.BytesIO()
    torch.save({"a": Calls("os.system", "touch ran"), "w": torch.ones(2)}, stream, pickle_protocol=protocol)
    (workdir / "net.pt").write_bytes(stream.getvalue())
    assert weights_in(workdir / "net.pt")["w"].tolist() == [1, 1]
    assert not (workdir / "ran").exists()
