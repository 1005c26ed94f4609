"""What may be unpickled: tensors and plain values, and modules of torch, torchvision, timm and the sample models.

torch's own restricted unpickler does the reading; this file decides which classes it may build. A name is allowed only
where it resolves to an `nn.Module` class, or to one of a few plain helpers, inside those packages, so that nothing a
pickle can call reads a file or runs code.
"""

from __future__ import annotations

import collections
import functools
import importlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.errors import CheckpointError, UntrustedPickle

PACKAGES = (
    "torch.nn.modules.",
    "torch.nn.parallel.data_parallel.",
    "torchvision.models.",
    "torchvision.ops.",
    "timm.models.",
    "timm.layers.",
    "sample_models.",
)
# plain values and pure functions that pickled modules of those packages hold
HELPERS = {
    "collections.OrderedDict",
    "collections.defaultdict",
    "functools.partial",
    "torch.nn.modules.container.Sequential",
    "torch.nn.functional.relu",
    "torch.nn.functional.gelu",
    "torch.nn.functional.silu",
    "torch._C._nn.gelu",
    "torchvision.ops.misc.Conv2dNormActivation",
    "torchvision.models.convnext.LayerNorm2d",
    "builtins.set",
}


def read_pickle(file: Path, *, trust_pickle: bool = False) -> Any:
    """The object in a torch file; refused where building it could run code, unless the user trusts it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's notice about pickle protocols: the refusal below says more
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass  # it asks for classes: which ones is found out below
    except Exception as error:  # the reader follows the file's bytes: a file that is no pickle makes it raise anything
        raise _broken(file, error) from error
    try:
        wanted = tuple(torch.serialization.get_unsafe_globals_in_checkpoint(str(file)))
    except Exception as error:  # as above
        wanted = ()
        if not trust_pickle:
            raise _broken(file, error) from error
    refused = tuple(name for name in wanted if _allowed(name) is None)
    if (refused or not wanted) and not trust_pickle:
        if not wanted:
            raise _broken(file, ValueError("its pickle is not one that torch writes"))
        raise UntrustedPickle(
            f"{file} is a pickle that could run code on loading: it wants to build",
            classes=refused,
            hint="save the weights alone (`torch.save(model.state_dict(), …)`) and give `--arch`, or, if you made the "
            "file yourself, add `--trust-pickle`",
        )
    allowed = [_allowed(name) for name in wanted]
    try:
        if trust_pickle and refused:
            return torch.load(file, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals([a for a in allowed if a is not None]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if trust_pickle:
            return torch.load(file, map_location="cpu", weights_only=False)
        first = str(error).strip().splitlines()[-1][:200]
        raise UntrustedPickle(
            f"{file} holds more than torch's restricted reader builds: {first}",
            classes=wanted,
            hint="save the weights alone and give `--arch`, or, if you made the file yourself, add `--trust-pickle`",
        ) from error
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{file} needs code that is not here: {error}",
            hint="run where its package can be imported, or give `--arch`",
        ) from error


def _broken(file: Path, error: Exception) -> CheckpointError:
    said = (str(error).strip().splitlines() or [""])[0][:160]
    why = f": {said}" if len(said) > 20 else ""  # an unpickler's bare number tells nobody anything
    return CheckpointError(
        f"{file} is not a checkpoint that can be read, or is cut short{why}",
        hint="give a file that `torch.save` wrote, or .safetensors",
    )


def _allowed(name: str) -> Any:
    """The object that `name` is, where it may be built; `None` where it may not."""
    home, _, leaf = name.rpartition(".")
    if name in HELPERS:
        known = {"collections": collections, "functools": functools}
        return getattr(known.get(home) or importlib.import_module(home), leaf, None)
    if not f"{home}.".startswith(PACKAGES):
        return None
    try:
        found = getattr(importlib.import_module(home), leaf, None)
    except ImportError:
        return None
    ours = isinstance(found, type) and issubclass(found, nn.Module) and f"{found.__module__}.".startswith(PACKAGES)
    return found if ours else None


def read_pickle_bytes(held: bytes, *, where: str) -> Any:
    """As `read_pickle`, of what lies inside another file; `where` says in which."""
    import io

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(held), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UntrustedPickle(f"{where} is a pickle that could run code", classes=()) from error
