"""A network that `torch.export.save` wrote (`.pt2`): its program becomes a plain module.

The file is an archive of JSON and raw tensors, but may hold pickles as well (example inputs, odd tensors, objects), and
torch's reader runs whatever those say. So each is read by torch's restricted unpickler first; a file that asks for more
is refused unless the user trusts it.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import CheckpointError, UntrustedPickle
from compressor.mended import program_of_file
from compressor.outputs import outputs_of, tensors_in


def read_exported(path: Path, *, trust_pickle: bool = False) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The program at `path` as a module, and the inputs that it was exported with, if they are there.

    One that was exported in training mode comes back in eval mode. Refused: a file that could run code, one that this
    torch cannot read, one for batches of a fixed size above one.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no exported program: it is not an archive", hint="fetch or export it again")
    if not trust_pickle:
        _check_pickles(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of itself
            found = torch.export.load(path)
    except Exception as error:
        # the reader follows the file's own bytes, and raises whatever they lead it to
        said = str(error).splitlines()[0][:200] if str(error) else ""
        raise CheckpointError(
            f"{path} is an exported program that this torch cannot read: {type(error).__name__}: {said}",
            hint=f"export it again with torch {torch.__version__.partition('+')[0]}",
        ) from error
    program = program_of_file(found)
    given = tuple(tensors_in(found.example_inputs[0])) if found.example_inputs else ()
    single = tuple(t[:1] for t in given)
    try:
        outputs_of(program, single)
    except (RuntimeError, IndexError, ValueError, AssertionError) as error:
        raise CheckpointError(
            f"{path} was exported for batches of {len(given[0])} alone",
            hint="export it with an open batch: `dynamic_shapes=({0: torch.export.Dim.AUTO},)`, or for one image",
        ) from error
    return program, single


def _check_pickles(path: Path) -> None:
    """Refuses an archive in which anything but JSON and the raw tensors that its lists name does not load safely."""
    with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
        names = archive.namelist()
        raw: set[str] = set()
        for name in names:
            if name.endswith("_config.json"):
                listed = json.loads(archive.read(name)).get("config", {}).values()
                raw |= {e["path_name"] for e in listed if isinstance(e, dict) and e.get("use_pickle") is False}
        for name in names:
            leaf = name.rpartition("/")[2]
            if name.endswith(".json") or "/data/" not in name or leaf in raw:
                continue
            try:
                warnings.simplefilter("ignore")  # its notice about pickle protocols: the refusal says more
                torch.load(io.BytesIO(archive.read(name)), weights_only=True, map_location="cpu")
            except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
                raise UntrustedPickle(
                    f"{path} holds a pickle that could run code: {leaf}",
                    classes=(),
                    hint="`--trust-pickle` reads it, if you know where it comes from",
                ) from error
