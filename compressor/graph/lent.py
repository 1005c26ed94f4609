"""Use a caller's module, or torch itself, in another state for a while, and restore its state afterwards."""

from __future__ import annotations

import builtins
import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.fx.config
from torch import Tensor, nn

from compressor.graph.copies import converted
from compressor.graph.shape_kernels import quantisation_by_shapes


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module in eval mode; restore the mode of every submodule at the end."""
    modes = [
        (layer, layer.training) for layer in nn.Module.modules(module)
    ]  # a class may define a `modules` of its own
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextlib.contextmanager
def state_kept(module: nn.Module) -> Iterator[None]:
    """Undo at the end what forward passes write: into buffers, attributes, and lists and dicts in attributes."""
    layers = list(nn.Module.modules(module))
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    attributes = [(layer, dict(vars(layer))) for layer in layers]
    kept = [value for _, before in attributes for value in before.values() if type(value) in (dict, list)]
    contents = [(value, value.copy()) for value in kept]
    try:
        yield
    finally:
        for layer, had in attributes:
            vars(layer).clear()
            vars(layer).update(had)
        for value, content in contents:
            value.clear()
            value.update(content) if isinstance(value, dict) else value.extend(content)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def without_values(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose tensors have shapes but no values (torch's `meta` device) and take no memory."""
    return converted(module, lambda tensor: tensor.to("meta"), trainable=False).to("meta").eval()


def last_to_run(module: nn.Module, layers: Iterable[str], example_inputs: Sequence[Tensor]) -> str | None:
    """Return the name of the layer that runs last in a forward pass, of those named; `None` if none of them runs."""
    ran: list[str] = []
    hooks = [module.get_submodule(n).register_forward_pre_hook(lambda *_, name=n: ran.append(name)) for n in layers]
    try:
        with evaluating(module), torch.no_grad():
            module(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Run `nn.MultiheadAttention` without its fused kernel, which hides its projections from tracing."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Use one thread, so that equal computations add in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def lengths_left_open() -> Iterator[None]:
    """Let `len(x)` of a tensor be its symbolic first size, and not the example's number of images, while exporting.

    Python converts what `__len__` returns to a number, so only a replaced `len` can stay symbolic.
    """
    plain = builtins.len

    def length(value: Any) -> Any:
        return value.shape[0] if isinstance(value, Tensor) and value.ndim else plain(value)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Run torch's exporters without progress, warnings, logs and printed graphs; attention takes its plain path.

    The exporters also do not record the stack trace of each operator: it takes an eighth of their time, and nothing
    reads it.
    """
    before = logging.root.manager.disable
    config: Any = torch.fx.config
    traced = getattr(config, "do_not_emit_stack_traces", None)  # torch 2.9 has no such setting
    logging.disable(logging.CRITICAL)
    try:
        if traced is not None:
            config.do_not_emit_stack_traces = True
        with (
            plain_attention(),
            quantisation_by_shapes(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if traced is not None:
            config.do_not_emit_stack_traces = traced
