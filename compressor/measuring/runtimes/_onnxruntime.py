"""Shared by the onnxruntime runtimes: sessions with their threads, and the providers that their nodes really ran on."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressor.errors import RuntimeUnavailable
from compressor.files.leftovers import temporary
from compressor.measuring.runtimes import NodeTime


def open_session(model: nn.Module | Path, *, provider: str, threads: int, profile: Path | None = None) -> Any:
    """Return a session on `provider`, with `threads` threads within an operator and none to run operators side by side.

    With `profile`, it writes each node's provider to a file with that prefix. Refused: a file that does not load, a
    session with another provider than the requested one.
    """
    import onnxruntime

    if isinstance(model, nn.Module):
        raise TypeError("onnxruntime runs an ONNX file, not a module")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # the warning that matters, a fall-back, is checked below
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    session = onnxruntime.InferenceSession(str(model), options, providers=[provider])
    providers = session.get_providers()
    if providers[0] != provider:
        raise RuntimeUnavailable(
            f"onnxruntime was asked for {provider} and gives {providers[0]}",
            hint="are its libraries there? onnxruntime-gpu needs the CUDA and cuDNN that it was built for",
        )
    return session


def feed(session: Any, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Return copies of the inputs by name."""
    wanted = session.get_inputs()
    if len(wanted) != len(inputs):
        raise RuntimeUnavailable(f"the ONNX file takes {len(wanted)} inputs, not {len(inputs)}")
    return {one.name: t.detach().cpu().numpy().copy() for one, t in zip(wanted, inputs, strict=True)}


def nodes_by_provider(
    model: nn.Module | Path, inputs: Sequence[Tensor], *, provider: str, threads: int
) -> dict[str, int]:
    """Return how many nodes ran on each provider in one profiled call of a separate session."""
    with temporary("onnxruntime") as folder:
        session = open_session(model, provider=provider, threads=threads, profile=Path(folder) / "profile")
        session.run(None, feed(session, inputs))
        return count_nodes(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")))


def profiled(
    model: nn.Module | Path, inputs: Sequence[Tensor], *, provider: str, threads: int, warmup: int, calls: int
) -> list[NodeTime]:
    """Return the nodes' times from onnxruntime's own profiler, which counts in microseconds."""
    with temporary("onnxruntime") as folder:
        session = open_session(model, provider=provider, threads=threads, profile=Path(folder) / "profile")
        own = feed(session, inputs)
        for _ in range(warmup + calls):
            session.run(None, own)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return node_times(events, warmup=warmup)


def node_times(events: Sequence[Mapping[str, Any]], *, warmup: int) -> list[NodeTime]:
    """Return the kernels of an onnxruntime profile by node, without each one's first `warmup` calls.

    The profiler truncates to microseconds, which loses half of one on average.
    """
    kernels: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and "provider" in event.get("args", {}):
            kernels.setdefault(event["name"], []).append(event)
    return [
        NodeTime(
            name=name,
            kind=events_of_node[0]["args"]["op_name"],
            samples_ns=tuple(int(e["dur"]) * 1000 + 500 for e in events_of_node[warmup:]),
            bytes=sum(
                int(events_of_node[0]["args"].get(f"{part}_size", 0)) for part in ("activation", "parameter", "output")
            ),
            provider=events_of_node[0]["args"]["provider"],
        )
        for name, events_of_node in kernels.items()
        if len(events_of_node) > warmup
    ]


def count_nodes(events: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of nodes by provider in an onnxruntime profile; a node's kernel is one event of category
    `Node`.
    """
    kernels = [e for e in events if e.get("cat") == "Node" and "provider" in e.get("args", {})]
    return dict(collections.Counter(e["args"]["provider"] for e in kernels))
