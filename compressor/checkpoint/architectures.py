"""Build a module from a reference: `torchvision:NAME`, `timm:NAME`, `file.py:Net`, `package.module:factory`.

A reference from the user is always followed. A reference from a *file* must not run code of that file's choice: it is a
name in the registry of torchvision, timm or transformers, or one of the sample models, with numbers as arguments, or
code that this user has named by `--arch` before, whose file has the same sha256 (`checkpoint.code.trust`).
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressor.checkpoint import hugging_face
from compressor.checkpoint.code import importing, trust
from compressor.checkpoint.code.definitions import digest_of
from compressor.errors import ArchitectureError, unknown
from compressor.files.names import printable

PROGRAM = "program"  # the file is an exported program, without a class
PICKLE = "pickle"  # the module itself was pickled: an artifact stores its skeleton
REGISTRIES = ("torchvision", "timm", hugging_face.REGISTRY)
SAMPLES = frozenset(
    f"sample_models.networks:{name}"
    for name in ("resnet20", "resnet8", "vgg11", "mobilenet_v2", "lenet_300_100", "small_cnn")
)
# Arguments with which a factory would fetch, open, trace or compile something.
REFUSED_ARGUMENTS = re.compile(
    r"weights.*|pretrained.*|.*cfg.*|.*checkpoint.*|.*cache.*|.*(url|path|file|dir|hub)|progress|.*features?_.*|"
    r"out_indices|scriptable|exportable|.*jit.*|kwargs|args"
)
TEXT_ARGUMENTS = frozenset({"global_pool", "act_layer", "norm_layer", "pool_type", "class_token", "pos_embed"})
LARGEST_ARGUMENT = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A reference, its call's arguments, and the sha256 of the Python file that it names, if it names one."""

    ref: str
    arguments: tuple[tuple[str, object], ...] = ()
    sha256: str | None = None

    @property
    def file(self) -> Path | None:
        """The Python file that the reference names."""
        path, _, factory = self.ref.rpartition(":")
        return Path(path) if path.endswith(".py") and factory else None


def architecture_from_user(ref: str, arguments: tuple[tuple[str, object], ...] = ()) -> Architecture:
    """Return the architecture of `--arch`; the code that it names is recorded as trusted, by its file's hash."""
    architecture = Architecture(ref=ref, arguments=arguments)
    source, _, name = ref.rpartition(":")
    if architecture.file is not None:
        if not architecture.file.is_file():
            raise ArchitectureError(f"there is no file {architecture.file}", hint="check the path in `--arch`")
        return _trusted(importing.trusted_file(architecture.file.resolve(), name), arguments)
    parts = (*source.split("."), *name.split(".")) if source not in REGISTRIES else (name,)
    if ":" not in ref or not all(part.isidentifier() for part in parts if source not in REGISTRIES):
        hint = "write `torchvision:resnet18`, `timm:resnet18`, `net.py:Net`, `pkg/net.py:Net` or `package.module:make`"
        raise ArchitectureError(f"`{ref}` is not an architecture", hint=hint)
    architecture = _by_registry(architecture)
    if architecture.ref.partition(":")[0] in REGISTRIES or architecture.ref in SAMPLES:
        return architecture
    return _trusted(importing.trusted_module(source, name), arguments)


def _trusted(entry: trust.Trusted, arguments: tuple[tuple[str, object], ...]) -> Architecture:
    """The architecture of code that the user named; it is remembered if it has a file."""
    if entry.file is None:
        return Architecture(ref=entry.ref, arguments=arguments)
    digest = importing.sha256_of_code(entry.file)
    trust.remember(digest, entry)
    return Architecture(ref=entry.ref, arguments=arguments, sha256=digest)


def _by_registry(architecture: Architecture) -> Architecture:
    """The same network by the name that a file may use: `torchvision.models:resnet18` is `torchvision:resnet18`."""
    source, _, name = architecture.ref.rpartition(":")
    if source.split(".")[:2] != ["torchvision", "models"]:
        return architecture
    import torchvision

    is_listed = name in torchvision.models.list_models()
    return replace(architecture, ref=f"torchvision:{name}") if is_listed else architecture


def check_harmless(architecture: Architecture) -> None:
    """Refuse a reference from a file that would run code which the user has not named.

    A file may name a network of a registry or one of the samples, with numbers as arguments, and nothing else.
    """
    source, _, name = architecture.ref.partition(":")
    if architecture.ref in SAMPLES or (source in REGISTRIES and re.fullmatch(r"[\w.-]+", name, re.ASCII)):
        if source == hugging_face.REGISTRY:
            hugging_face.check_values(architecture.ref, dict(architecture.arguments))
            return
        for key, value in architecture.arguments:
            _check_argument(architecture.ref, key, value)
        return
    entry = _entry(architecture)
    if entry is None:
        raise ArchitectureError(
            f"the file asks to be built by `{printable(architecture.ref)}`, which would run that code",
            hint=f"if you trust it, name it once: `compress inspect MODEL --arch {printable(architecture.ref)}`",
        )
    file = architecture.file or entry.file
    digest = importing.sha256_of_code(file) if file is not None and file.is_file() else None
    if file is None or digest is None or not (digest == architecture.sha256 or _is_same_code(entry, file, digest)):
        raise ArchitectureError(
            f"{file} is not the file that this was made with",
            hint="restore it; or if what was edited does not belong to the network, name it again: "
            f"`compress inspect MODEL --arch {printable(architecture.ref)}`; or prune again",
        )


def _is_same_code(entry: trust.Trusted, file: Path, digest: str) -> bool:
    """True if the user named the edited file too, and nothing that the network depends on in it was edited."""
    named = any(one.ref == entry.ref for one in trust.entries(digest))
    return named and entry.code is not None and digest_of(file, entry.ref.rpartition(":")[2]) == entry.code


def _entry(architecture: Architecture) -> trust.Trusted | None:
    """What the user said of the code that the reference names: of this file or module, else of the same file elsewhere.

    A copy of a trusted file that lies elsewhere imports nothing that lies beside it.
    """
    entries = trust.entries(architecture.sha256) if architecture.sha256 else ()
    exact = next((one for one in entries if one.ref == architecture.ref), None)
    if exact is not None or architecture.file is None:
        return exact
    name = architecture.ref.rpartition(":")[2]
    known = any(one.ref == trust.ANY or one.ref.rpartition(":")[2] == name for one in entries)
    return trust.Trusted(ref=architecture.ref, file=architecture.file) if known else None


def _check_argument(ref: str, name: object, value: object) -> None:
    """Refuse arguments from a file that are more than numbers, or that let a factory do more than build a network."""
    named = isinstance(name, str) and name.isidentifier() and name.isascii() and not REFUSED_ARGUMENTS.fullmatch(name)
    text = isinstance(value, str) and name in TEXT_ARGUMENTS and re.fullmatch(r"\w{0,40}", value, re.ASCII)
    if not named or not (text or _is_small(value)):
        raise ArchitectureError(
            f"the file asks for `{ref}` with `{printable(name)}={printable(repr(value))}`, which a file may not",
            hint="build it yourself: write a `net.py` that does, and use `--arch net.py:NAME`",
        )


def _is_small(value: object) -> bool:
    """True for a small number, `None`, or a short list of these."""
    if isinstance(value, (list, tuple)):
        return len(value) <= 100 and all(map(_is_small, value))
    return value is None or (isinstance(value, (bool, int, float)) and abs(value) <= LARGEST_ARGUMENT)


def build(architecture: Architecture) -> nn.Module:
    """Return a fresh module; torch's random state stays unchanged. Refused: a missing reference, or one that builds no
    module.
    """
    source, _, name = architecture.ref.rpartition(":")
    arguments = dict(architecture.arguments)
    factory = _factory(architecture, source, name)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # a factory's notices about its own defaults
        try:
            module = factory(**arguments)
        except SystemExit as error:  # a function that is a command of its own
            raise ArchitectureError(
                f"`{architecture.ref}` ended the process instead of returning a network", hint="name what builds one"
            ) from error
        except Exception as error:  # the constructor is the user's own code, which may raise anything
            shown = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
            raise ArchitectureError(
                f"`{architecture.ref}({shown})` failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                hint=_way_out(error),
            ) from error
    if not isinstance(module, nn.Module):
        raise ArchitectureError(
            f"`{architecture.ref}` returned a `{type(module).__name__}`, not a module",
            hint="name what builds one: `--arch net.py:Net`",
        )
    if hugging_face.is_of_transformers(module):
        hugging_face.without_cache_(module.config)
    return module


def _way_out(error: Exception) -> str:
    """What to do about an error of a constructor."""
    if isinstance(error, OSError):
        return "it reads a file: run in the folder from which its path leads there, or set the path: `--arch-arg k=v`"
    return "add the arguments that it needs: `--arch-arg k=v`"


def _factory(architecture: Architecture, source: str, name: str) -> Callable[..., Any]:
    """The function or class that builds the network."""
    if architecture.file is not None:
        return _attribute(code_of(architecture), name, str(architecture.file))
    if source == "torchvision":
        import torchvision

        names = torchvision.models.list_models()
        if name not in names:
            raise ArchitectureError(f"torchvision has no `{name}`", hint=unknown("networks", name, names))
        weights = {f"weights{part}": None for part in ("", "_backbone")}  # a detector's backbone has its own
        accepted = weights.keys() & inspect.signature(torchvision.models.get_model_builder(name)).parameters.keys()
        return lambda **arguments: torchvision.models.get_model(name, **{**dict.fromkeys(accepted), **arguments})
    if source == "timm":
        try:
            import timm
        except ImportError as error:
            raise ArchitectureError("timm is not installed", hint="`pip install compress[timm]`") from error
        if not timm.is_model(name):
            raise ArchitectureError(f"timm has no `{name}`", hint=unknown("networks", name, timm.list_models()))
        return lambda **arguments: timm.create_model(name, pretrained=False, **arguments)
    if source == hugging_face.REGISTRY:
        return hugging_face.factory(name)
    return _attribute(code_of(architecture), name, source)


def code_of(architecture: Architecture) -> ModuleType:
    """Return the module that has the code of an architecture outside the registries. Refused: it cannot be imported."""
    entry = _entry(architecture)
    roots = () if entry is None else entry.roots
    if architecture.file is not None:
        return importing.import_file(architecture.file, roots)
    return importing.import_module(architecture.ref.rpartition(":")[0], roots)


def _attribute(module: Any, name: str, where: str) -> Callable[..., Any]:
    """The callable `name` of a module. Refused: one that does not exist."""
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [n for n, value in vars(module).items() if inspect.isclass(value) or inspect.isfunction(value)]
        raise ArchitectureError(f"{where} has no `{name}`", hint=unknown("names", name, names))
    return factory  # type: ignore[no-any-return]  # callable, as checked


def architecture_arguments(strings: Sequence[str]) -> tuple[tuple[str, object], ...]:
    """Return `["width=64", "act=relu"]` as pairs; values are Python literals, or else text."""
    pairs: list[tuple[str, object]] = []
    for text in strings:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ArchitectureError(
                f"`--arch-arg {text}` is not of the form k=v", hint="for example `--arch-arg classes=10`"
            )
        try:
            pairs.append((name, ast.literal_eval(value)))
        except (ValueError, SyntaxError):
            pairs.append((name, value))
    return tuple(pairs)


class _WithoutMemory(TorchFunctionMode):
    """While active, layers are built with names and shapes only: no memory, and no time for drawing weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (
            func(*args, **{**(kwargs or {}), "device": "meta"}) if func is torch.empty else func(*args, **kwargs or {})
        )


def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors of the network that the reference builds."""
    with _WithoutMemory():
        return {k: tuple(t.shape) for k, t in build(architecture).state_dict().items()}


def built_for(
    architecture: Architecture, state: Callable[[set[str]], Mapping[str, Tensor]]
) -> tuple[Architecture, nn.Module]:
    """Return the architecture and its module, with as many classes as the state's head if a registry builds it.

    `state` gives the state under the network's own names. A registry's network is first built without memory; code of
    the user's is run once and for real, because its constructor may compute with its weights.
    """
    if architecture.ref.partition(":")[0] in REGISTRIES:
        architecture = with_classes(architecture, state(set(_shapes(architecture))))
    return architecture, build(architecture)


def with_classes(architecture: Architecture, state: Mapping[str, Tensor]) -> Architecture:
    """Return the architecture with the number of classes in the state's head, for a torchvision or timm network."""
    source = architecture.ref.partition(":")[0]
    if source not in ("torchvision", "timm") or "num_classes" in dict(architecture.arguments):
        return architecture
    classes = _classes(_shapes(architecture), state)
    if classes is None:
        return architecture
    return Architecture(ref=architecture.ref, arguments=(*architecture.arguments, ("num_classes", classes)))


def _classes(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> int | None:
    """The number of rows of the head, if the state differs from a network with 1000 classes in nothing else."""
    rows = {
        state[k].shape[0]
        for k, shape in shapes.items()
        if shape[:1] == (1000,) and k in state and tuple(state[k].shape[1:]) == shape[1:]
    }
    return rows.pop() if len(rows) == 1 else None


def recognise(state: Mapping[str, Tensor]) -> Architecture | None:
    """Return the torchvision classification network with this state, by keys and shapes, with any number of classes."""
    import torchvision

    families: dict[str, list[str]] = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        builder = inspect.unwrap(torchvision.models.get_model_builder(name))
        families.setdefault(builder.__module__, []).append(name)
    own = {key: tuple(tensor.shape) for key, tensor in state.items()}
    tops = {key.split(".")[0] for key in state} - AUXILIARY_HEADS
    for names in families.values():
        for name in sorted(names, key=len):
            architecture = Architecture(ref=f"torchvision:{name}", arguments=_auxiliary(name, state))
            shapes = _torchvision_shapes(architecture)
            if {key.split(".")[0] for key in shapes} - AUXILIARY_HEADS != tops:
                break  # a family shares its top-level names
            if shapes.keys() != own.keys():
                continue
            classes = _classes(shapes, state)
            if classes not in (None, 1000):
                architecture = Architecture(
                    ref=architecture.ref, arguments=(*architecture.arguments, ("num_classes", classes))
                )
                shapes = _shapes(architecture)
            if shapes == own:
                return architecture
    return None


@functools.lru_cache(maxsize=256)
def _torchvision_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    return _shapes(architecture)


AUXILIARY_HEADS = {"AuxLogits", "aux1", "aux2"}


def _auxiliary(name: str, state: Mapping[str, Tensor]) -> tuple[tuple[str, object], ...]:
    """The arguments of GoogLeNet and Inception, whose auxiliary heads a state may lack."""
    if name not in ("googlenet", "inception_v3"):
        return ()
    return (("aux_logits", any(k.split(".")[0] in AUXILIARY_HEADS for k in state)), ("init_weights", False))
