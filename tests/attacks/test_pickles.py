"""Pickles build nothing but tensors, plain values and layers, and no constructor, hook or method of the file's runs."""

from __future__ import annotations

import collections
import functools
import io
import os
import pickle
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from compressor.checkpoint.loading import load
from compressor.checkpoint.pickles.skeletons import read_skeleton, write_skeleton
from compressor.checkpoint.pickles.standins import layer_class
from compressor.checkpoint.reading import read_state
from compressor.errors import CheckpointError, CompressError, UntrustedPickle
from tests.support.topologies import alive

INPUT = ("1x1x8x8",)


def small() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return alive(nn.Sequential(*layers))


class Calls:
    """Pickles as a call of what stands at `name`."""

    def __init__(self, name: str, *args: object) -> None:
        self.name, self.args = name, args

    def __reduce__(self) -> tuple[Any, ...]:
        home, _, leaf = self.name.rpartition(".")
        return getattr(__import__(home, fromlist=[leaf]), leaf), self.args


HOSTILE = 'training")\rgetattr(__import__("os"),"system")("touch ran")\rdef f(self):\r    x = (1)#'


@pytest.fixture(params=["zip", "old"])
def save(request: pytest.FixtureRequest) -> Callable[[object, str], None]:
    """`torch.save`, in its present format and its first."""
    return lambda found, name: torch.save(found, name, _use_new_zipfile_serialization=request.param == "zip")


@pytest.mark.parametrize("table", ["_modules", "_parameters", "_buffers"])
@pytest.mark.parametrize("name", [HOSTILE, "a\nb", 'a"b', "a b", "", "a\\", "a.b", "‮a"])
def test_names_of_parts_are_names(workdir: Path, table: str, name: str) -> None:
    """`torch.export` writes them into code as they are."""
    module = small()
    held: dict[str, Any] = {
        "_modules": nn.ReLU(),
        "_parameters": nn.Parameter(torch.ones(2)),
        "_buffers": torch.ones(2),
    }
    getattr(module[1], table)[name] = held[table]
    torch.save(module, "net.pt")
    torch.save(module.to("meta"), "skeleton.pt")
    for read in (lambda: load("net.pt", inputs=INPUT), lambda: read_skeleton(Path("skeleton.pt"))):
        with pytest.raises(CheckpointError, match="which is no name") as caught:
            read()
        assert str(caught.value).isprintable()
        assert caught.value.hint
    assert not (workdir / "ran").exists()


def test_names_in_a_state_are_names(workdir: Path) -> None:
    from safetensors.torch import save_file

    save_file({f"a.{HOSTILE}": torch.zeros(2)}, workdir / "w.safetensors")
    torch.save({f"a.{HOSTILE}": torch.zeros(2)}, workdir / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        with pytest.raises(CheckpointError, match="which is no name"):
            read_state(workdir / name)


@pytest.mark.usefixtures("workdir")
def test_names_are_checked_where_the_user_trusts_the_file_too() -> None:
    module = small()
    module[1]._modules[HOSTILE] = nn.ReLU()
    module[1].own = Calls("builtins.len", "x")
    torch.save(module, "net.pt")
    with pytest.raises(CheckpointError, match="which is no name"):
        load("net.pt", inputs=INPUT, trust_pickle=True)


CONSTRUCTED = {
    "a layer": Calls("torch.nn.modules.linear.Linear", 2, 3),
    "a huge layer": Calls("torch.nn.modules.linear.Linear", 1 << 22, 1 << 22),
    "a traced network": Calls("timm.models._features_fx.GraphExtractNet", nn.ReLU(), (), False),
    "a graph": Calls("torchvision.models.feature_extraction.DualGraphModule", nn.ReLU(), None, None),
    "a partial": functools.partial(nn.Linear, 1 << 20, 1 << 20),
}


@pytest.mark.parametrize("what", CONSTRUCTED)
@pytest.mark.parametrize("place", ["module", "hyper_parameters", "state_dict", "nested"])
@pytest.mark.usefixtures("workdir")
def test_no_constructor_runs(monkeypatch: pytest.MonkeyPatch, what: str, place: str) -> None:
    made: list[object] = []
    given: Any = CONSTRUCTED[what]
    found: Any = {"state_dict": small().state_dict(), "hyper_parameters": {"x": given}}
    if place == "module":
        found = given
    elif place == "state_dict":
        found = {"state_dict": given}
    elif place == "nested":
        found = small()
        found.extra = [{"x": (given,)}]
    torch.save(found, "net.pt")
    original = nn.Module.__init__
    monkeypatch.setattr(nn.Module, "__init__", lambda self, *a, **k: (made.append(self), original(self, *a, **k))[1])
    if what == "a partial" and place in ("hyper_parameters", "nested"):
        read_state(Path("net.pt"))  # a value as any other, which nobody calls
    else:
        with pytest.raises(CheckpointError):
            read_state(Path("net.pt"))
    assert not made


@pytest.mark.parametrize(
    "name",
    [
        "timm.models._features_fx.GraphExtractNet", "timm.models._features_fx.FeatureGraphNet",
        "timm.models._features.FeatureHookNet", "torchvision.models.feature_extraction.DualGraphModule",
        "torch.fx.graph_module.GraphModule", "torch.jit._script.RecursiveScriptModule", "torch.nn.modules.os.system",
        "torchvision.models._api.get_model", "torchvision.models.resnet.load_state_dict_from_url",
        "timm.models._hub.load_state_dict_from_hf", "timm.models.resnet.torch.hub.load", "sample_models.train.main",
        "torch.nn.modules.linear.Linear\n", "torch.nn.modules..linear.Linear",
    ],
)  # fmt: skip
def test_what_is_no_plain_layer_is_never_one(name: str) -> None:
    assert layer_class(name) is None


INSIDES: dict[str, Callable[[nn.Module], Any]] = {
    "no modules": lambda m: m.__dict__.pop("_modules"),
    "modules that are none": lambda m: m.__dict__.update(_modules=None),
    "no parameters": lambda m: m[0].__dict__.pop("_parameters"),
    "a tensor for a module": lambda m: m._modules.update({"0": torch.ones(2)}),
    "a number for a parameter": lambda m: m[0]._parameters.update({"weight": 3}),
    "itself": lambda m: m._modules.update({"5": m}),
    "itself further down": lambda m: m[1]._modules.update({"inner": m}),
    "a hook": lambda m: m[0]._forward_hooks.update({0: nn.functional.relu}),
    "another forward": lambda m: m[0].__dict__.update(forward=nn.functional.relu),
    "another call": lambda m: m[0].__dict__.update(_call_impl=nn.functional.relu),
    "a class of its own": lambda m: m[0].__dict__.update(__class__=nn.Linear),
    "a wrapper of itself": lambda m: m.__dict__.update(_orig_mod=m),
    "a wrapper of nothing": lambda m: m.__dict__.update(_orig_mod=3),
    "no values": lambda m: m.to("meta"),
    "a tensor that repeats": lambda m: m.register_buffer("big", torch.zeros(1).expand(1 << 40)),
    "text for a size": lambda m: m[0].__dict__.update(stride="x"),
    "a state that is none": lambda m: m[0].__dict__.update(groups=None),
}


@pytest.mark.parametrize("what", INSIDES)
def test_broken_insides_are_one_refusal(workdir: Path, save: Callable[[object, str], None], what: str) -> None:
    module = small()
    INSIDES[what](module)
    del workdir
    save(module, "net.pt")
    began = time.monotonic()
    with pytest.raises(CompressError) as caught:
        load("net.pt", inputs=INPUT)
    assert caught.value.hint
    assert time.monotonic() - began < 20


def test_a_wrapper_that_wraps_itself_ends(workdir: Path, save: Callable[[object, str], None]) -> None:
    del workdir
    wrapped = nn.DataParallel(small())
    wrapped._modules["module"] = wrapped
    save(wrapped, "net.pt")
    save({"model": wrapped}, "inner.pt")
    for name in ("net.pt", "inner.pt"):
        with pytest.raises(CheckpointError, match=r"holds itself|first format"):
            load(name, inputs=INPUT)
        with pytest.raises(CheckpointError, match=r"holds itself|wraps no network"):
            load(name, inputs=INPUT, trust_pickle=True)


GADGETS: dict[str, Calls] = {
    "system": Calls("os.system", "touch ran"),
    "eval": Calls("builtins.eval", "open('ran', 'w')"),
    "exec": Calls("builtins.exec", "open('ran', 'w')"),
    "open": Calls("builtins.open", "ran", "w"),
    "getattr": Calls("builtins.getattr", nn.ReLU(), "train"),
    "import": Calls("importlib.import_module", "antigravity"),
    "partial": Calls("functools.partial", os.system, "touch ran"),
    "load": Calls("torch.serialization.load", "other.pt"),
    "hub": Calls("torch.hub.load", "x", "y"),
    "touch": Calls("pathlib.PosixPath", "ran"),
    "compile": Calls("torch.compile", nn.ReLU()),
    "from_file": Calls("torch.from_file", "ran", True, 4),
    "url": Calls("torchvision.models.get_model", "resnet18"),
    "reconstruct": Calls("copyreg._reconstructor", nn.ReLU, object, None),
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_calls_are_refused_by_name(workdir: Path, save: Callable[[object, str], None], gadget: str) -> None:
    save({"state_dict": small().state_dict(), "extra": [GADGETS[gadget]]}, "net.pt")
    with pytest.raises(UntrustedPickle) as caught:
        load("net.pt", inputs=INPUT)
    assert not (workdir / "ran").exists()
    assert "--trust-pickle" in str(caught.value.hint)
    assert caught.value.classes


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_is_not_of_torch_does_not_run(workdir: Path, protocol: int) -> None:
    (workdir / "net.pt").write_bytes(pickle.dumps(Calls("os.system", "touch ran"), protocol=protocol))
    with pytest.raises(CheckpointError):
        load("net.pt", inputs=INPUT)
    assert not (workdir / "ran").exists()


def test_a_tar_file_is_not_unpacked(workdir: Path) -> None:
    with tarfile.open(workdir / "net.pt", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", "../escaped"):
            held = pickle.dumps(Calls("os.system", "touch ran"))
            info = tarfile.TarInfo(name)
            info.size = len(held)
            archive.addfile(info, io.BytesIO(held))
    with pytest.raises(CheckpointError, match="tar"):
        load("net.pt", inputs=INPUT)
    assert {p.name for p in workdir.iterdir()} == {"net.pt"}


def test_a_dict_with_methods_of_the_files_own_is_a_dict(workdir: Path) -> None:
    """An `OrderedDict` takes attributes from a pickle, which would hide its methods."""
    state = collections.OrderedDict(small().state_dict())
    state.values = nn.functional.relu  # type: ignore[method-assign,assignment]
    torch.save({"state_dict": state}, workdir / "net.pt")
    assert read_state(workdir / "net.pt").keys() == small().state_dict().keys()


def test_an_old_file_of_a_whole_network_is_read_or_refused_as_what_it_is(workdir: Path) -> None:
    module = small()
    torch.save(module, workdir / "net.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UntrustedPickle, match="a whole network in torch's first format") as caught:
        load("net.pt", inputs=INPUT)
    assert "--trust-pickle" in str(caught.value.hint)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load("net.pt", inputs=INPUT, trust_pickle=True).module(x), module(x))
    torch.save(Own(), workdir / "own.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UntrustedPickle, match="could run code") as caught:
        load("own.pt", inputs=INPUT)
    assert caught.value.classes == (f"{Own.__module__}.Own",)
    assert load("own.pt", inputs=INPUT, trust_pickle=True).name == "own"


class Own(nn.Sequential):
    """A class of the user's."""

    def __init__(self) -> None:
        super().__init__(*small())


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "efficientnet_b0", "densenet121", "swin_t"])
def test_whole_networks_of_torchvision_come_as_they_were(workdir: Path, name: str) -> None:
    module = torchvision.models.get_model(name).eval()
    write_skeleton(module, workdir / "skeleton.pt")
    torch.save(module, workdir / "net.pt")
    again = load("net.pt").module
    assert [type(m) for m in again.modules()] == [type(m) for m in module.modules()]
    for mine, other in zip(module.modules(), again.modules(), strict=True):
        assert mine.extra_repr() == other.extra_repr()
    bare = read_skeleton(workdir / "skeleton.pt")
    bare.load_state_dict(module.state_dict(), assign=True)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(again(x), module(x))
        assert torch.equal(bare.eval()(x), module(x))


def test_one_wrong_byte_of_the_weights_is_seen(workdir: Path) -> None:
    torch.save(small(), "net.pt")
    with zipfile.ZipFile("net.pt") as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("/data/0"))
        weight = archive.read(info)
    held = bytearray((workdir / "net.pt").read_bytes())
    held[held.index(weight) + 1] ^= 1
    (workdir / "net.pt").write_bytes(held)
    with pytest.raises(CheckpointError, match="damaged"):
        load("net.pt", inputs=INPUT)


@pytest.fixture
def pipe(workdir: Path) -> Iterator[Path]:
    path = workdir / "pipe"
    os.mkfifo(path)
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes in its file system")
@pytest.mark.parametrize("ending", ["", ".pt", ".pt2", ".safetensors", ".onnx"])
@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_before_it_is_opened(pipe: Path, ending: str) -> None:
    there = pipe.with_name(f"net{ending}")
    there.symlink_to(pipe)
    with pytest.raises(CheckpointError, match="a pipe, not a regular file"):
        load(there, inputs=INPUT)
    there.unlink()
    there.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="a device, not a regular file"):
        load(there, inputs=INPUT)


def test_a_table_that_names_a_tensor_twice_is_refused(workdir: Path) -> None:
    entry = b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    table = b"{" + entry + b"," + entry + b"}"
    (workdir / "w.safetensors").write_bytes(len(table).to_bytes(8, "little") + table + bytes(4))
    with pytest.raises(CheckpointError, match="twice"):
        read_state(workdir / "w.safetensors")
