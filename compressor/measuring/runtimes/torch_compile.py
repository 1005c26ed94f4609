"""PyTorch's compiler: the module through `torch.compile`, on the CPU."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from compressor.measuring.runtimes import Memory, Prepared, Reads
from compressor.measuring.runtimes._torch import device_of, own_copy, torch_threads

READS = Reads.MODULE
MEMORY = Memory.UNKNOWN_COMPILER
HELD = True  # compiling takes seconds to minutes
COMPILERS = ("g++", "clang++", "c++", "cl")


def unavailable() -> str | None:
    """Why nothing can be compiled here."""
    if not hasattr(torch, "compile") or sys.platform == "emscripten":
        return "this build of torch cannot compile"
    wanted = (os.environ["CXX"].split()[0],) if os.environ.get("CXX", "").strip() else COMPILERS
    if not any(map(shutil.which, wanted)):
        return f"torch.compile needs a C++ compiler, and there is none of {', '.join(wanted)}"
    return None


@contextmanager
def prepare(model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int) -> Iterator[Prepared]:
    """A copy of the module, compiled for inputs of these very shapes and for so many threads.

    Where the network cannot be captured as one graph, its parts are compiled between pieces of plain Python, and a note
    says so.
    """
    module, own = own_copy(model, inputs)
    notes: tuple[str, ...] = ()
    with torch_threads(threads):
        try:
            run = _compiled(module, own, whole=True)
        except torch._dynamo.exc.TorchDynamoException as error:
            run = _compiled(module, own, whole=False)
            notes = (f"not one graph, parts run uncompiled: {str(error).strip().splitlines()[0]}",)
        yield Prepared(run=run, provider=device_of(run()), notes=notes)


def _compiled(module: nn.Module, own: list[Tensor], *, whole: bool) -> Callable[[], object]:
    """One compiled forward pass, which has run once."""

    def forward(*tensors: Tensor) -> Any:
        return module(*tensors)

    # Dynamo keeps what it compiled with the code object, tries one entry after the other at each call, and gives up
    # after eight: networks that share their code would slow one another down. So each gets code of its own.
    code = forward.__code__.replace(co_name=f"forward_{id(module)}")
    separate = FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
    compiled = torch.compile(separate, fullgraph=whole, dynamic=False)

    def run() -> object:
        with torch.no_grad():
            return compiled(*own)

    run()
    return run
