"""What the onnxruntime runtimes share: sessions with their threads set, and what their nodes really ran on."""

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
    """A session on `provider`, with `threads` to compute one operator with and none to run operators side by side.

    Refused: a file that does not load, a session that got another provider than the one asked for. With `profile`, it
    writes what each node ran on to a file of that prefix.
    """
    import onnxruntime

    if isinstance(model, nn.Module):
        raise TypeError("onnxruntime runs an ONNX file, not a module")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what matters of its warnings, a fall-back, is asked for below
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    session = onnxruntime.InferenceSession(str(model), options, providers=[provider])
    given = session.get_providers()
    if given[0] != provider:
        raise RuntimeUnavailable(
            f"onnxruntime was asked for {provider} and gives {given[0]}",
            hint="are its libraries there? onnxruntime-gpu needs the CUDA and cuDNN that it was built for",
        )
    return session


def feed(session: Any, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The inputs by name, in memory of their own."""
    wanted = session.get_inputs()
    if len(wanted) != len(inputs):
        raise RuntimeUnavailable(f"the ONNX file takes {len(wanted)} inputs, not {len(inputs)}")
    return {one.name: t.detach().cpu().numpy().copy() for one, t in zip(wanted, inputs, strict=True)}


def nodes_by_provider(
    model: nn.Module | Path, inputs: Sequence[Tensor], *, provider: str, threads: int
) -> dict[str, int]:
    """How many nodes ran on each provider in one profiled call of a session of its own."""
    with temporary("onnxruntime") as folder:
        session = open_session(model, provider=provider, threads=threads, profile=Path(folder) / "profile")
        session.run(None, feed(session, inputs))
        return count_nodes(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")))


def profiled(
    model: nn.Module | Path, inputs: Sequence[Tensor], *, provider: str, threads: int, warmup: int, calls: int
) -> list[NodeTime]:
    """What onnxruntime's own profiler says of each node; it counts in microseconds."""
    with temporary("onnxruntime") as folder:
        session = open_session(model, provider=provider, threads=threads, profile=Path(folder) / "profile")
        own = feed(session, inputs)
        for _ in range(warmup + calls):
            session.run(None, own)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return node_times(events, warmup=warmup)


def node_times(events: Sequence[Mapping[str, Any]], *, warmup: int) -> list[NodeTime]:
    """The kernels of an onnxruntime profile by node, without each one's first `warmup` calls.

    The profiler cuts off what a microsecond does not hold, which is half of one in the mean.
    """
    kernels: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and "provider" in event.get("args", {}):
            kernels.setdefault(event["name"], []).append(event)
    return [
        NodeTime(
            name=name,
            kind=found[0]["args"]["op_name"],
            samples_ns=tuple(int(e["dur"]) * 1000 + 500 for e in found[warmup:]),
            bytes=sum(int(found[0]["args"].get(f"{part}_size", 0)) for part in ("activation", "parameter", "output")),
            provider=found[0]["args"]["provider"],
        )
        for name, found in kernels.items()
        if len(found) > warmup
    ]


def count_nodes(events: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Nodes by provider in an onnxruntime profile; each node's kernel is one event of the category `Node`."""
    kernels = [e for e in events if e.get("cat") == "Node" and "provider" in e.get("args", {})]
    return dict(collections.Counter(e["args"]["provider"] for e in kernels))
