"""A caller's module, or torch itself, used in another state for a while and given back as it was."""

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
    """Eval mode; every submodule has its own mode back at the end."""
    modes = [(layer, layer.training) for layer in nn.Module.modules(module)]  # a class may have its own `modules`
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextlib.contextmanager
def state_kept(module: nn.Module) -> Iterator[None]:
    """What forward passes write into buffers, attributes, and lists and dicts in attributes is undone at the end."""
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
        for value, held in contents:
            value.clear()
            value.update(held) if isinstance(value, dict) else value.extend(held)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def without_values(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose tensors have shapes and no values (torch's `meta` device): it takes no memory."""
    return converted(module, lambda tensor: tensor.to("meta"), trainable=False).to("meta").eval()


def last_to_run(module: nn.Module, layers: Iterable[str], example_inputs: Sequence[Tensor]) -> str | None:
    """Which of the named layers runs last in a forward pass; `None` where none does."""
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
    """`nn.MultiheadAttention` without its fused kernel, which hides its projections from whoever looks inside."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """One thread, so that sums are taken in the same order wherever the same is computed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def lengths_left_open() -> Iterator[None]:
    """`len(x)` of a tensor is its first size, as exporters know it, and not the number of images in the example.

    Python makes a number of whatever `__len__` returns, so that nothing but another `len` leaves it open.
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
    """The exporters of torch without progress, warnings, logs and printed graphs; attention takes its plain path.

    Nor do they note who called each operator: that takes an eighth of their time, and nobody reads it.
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
