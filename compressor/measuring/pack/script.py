"""Times what lies beside it in turns, on a machine with onnxruntime and numpy alone.

    python bench.py                     # dense, masked and small, as `compress bench` would
    python bench.py --networks          # the latency table's networks too: for `compress prune --table`
    python bench.py --provider CUDAExecutionProvider --threads 4 --batch 1,16

Writes measured.json, which `compress bench --read` and `compress measure-table --read` take in.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import random
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np
import onnxruntime

HERE = pathlib.Path(__file__).parent
BLOCK_NS, WARMUP_NS = 40_000_000, 10_000_000


def session_of(file: pathlib.Path, arguments: argparse.Namespace, profile: pathlib.Path | None = None) -> Any:
    """Return a session with its threads set; exits if it has another provider than the requested one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    session = onnxruntime.InferenceSession(str(file), options, providers=[arguments.provider])
    if session.get_providers()[0] != arguments.provider:
        sys.exit(f"error: asked for {arguments.provider}, got {session.get_providers()[0]}")
    return session


def inputs_of(spec: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return random inputs, the same in every run; integers lie in the example's range."""
    draw = np.random.default_rng(0)
    inputs: dict[str, Any] = {}
    for one in spec["inputs"]:
        shape = [batch, *one["shape"][1:]]
        if one["dtype"] == "float32":
            inputs[one["name"]] = draw.standard_normal(shape).astype(np.float32)
        else:
            low, below = one.get("range", (0, 2))
            inputs[one["name"]] = draw.integers(low, below, shape).astype(one["dtype"])
    return inputs


def timed(session: Any, inputs: dict[str, Any], warmup: int, calls: int) -> list[int]:
    """Return the nanoseconds of single calls, after some uncounted ones."""
    for _ in range(warmup):
        session.run(None, inputs)
    samples = []
    for _ in range(calls):
        started = time.perf_counter_ns()
        session.run(None, inputs)
        samples.append(time.perf_counter_ns() - started)
    return samples


def pace(
    file: pathlib.Path, inputs: dict[str, Any], arguments: argparse.Namespace, count: int, seconds: float
) -> tuple[int, int, int]:
    """Return blocks of about 40 ms, and as many rounds as fit."""
    started = time.perf_counter_ns()
    session = session_of(file, arguments)
    session.run(None, inputs)
    ready = time.perf_counter_ns() - started
    call = max(1, min(timed(session, inputs, 1, 3)))
    calls = min(200, max(3, round(BLOCK_NS / call)))
    warmup = min(20, max(2, round(WARMUP_NS / call)))
    rounds = int(seconds * 1e9 / (count * (ready + (calls + warmup) * call)))
    return warmup, calls, min(30, max(8, rounds))


def candidates(spec: dict[str, Any], arguments: argparse.Namespace, draw: random.Random) -> list[dict[str, Any]]:
    """Time every candidate in turns at every batch size; return rows with all samples."""
    rows: list[dict[str, Any]] = []
    for batch in arguments.batch:
        inputs = inputs_of(spec, batch)
        files = {c["candidate"]: HERE / c["file"] for c in spec["candidates"]}
        warmup, calls, rounds = pace(files["dense"], inputs, arguments, len(files), arguments.seconds)
        samples: dict[str, list[list[int]]] = {name: [] for name in files}
        order = list(files)
        for done in range(rounds):
            draw.shuffle(order)
            for name in order:
                session = session_of(files[name], arguments)
                samples[name].append(timed(session, inputs, warmup, calls))
                del session
            print(f"\rbatch {batch}: round {done + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        rows += [{**c, "batch": batch, "samples_ns": samples[c["candidate"]]} for c in spec["candidates"]]
    return rows


def networks(spec: dict[str, Any], arguments: argparse.Namespace, draw: random.Random) -> dict[str, Any]:
    """Time the operators of the drawn networks, and some whole networks: the data of a latency table."""
    batch = spec["networks"]["batch"]
    inputs = inputs_of(spec, batch)
    files = [HERE / name for name in spec["networks"]["files"]]
    call = statistics.median(timed(session_of(files[0], arguments), inputs, 1, 3))
    calls, warmup = min(60, max(1, round(25e6 / call))), min(10, max(1, round(8e6 / call)))
    profiles: list[list[Any]] = [[] for _ in files]
    walls: dict[int, list[float]] = {}
    order = list(range(len(files)))
    for done in range(arguments.rounds):
        draw.shuffle(order)
        for k in order:
            if k % 2 == 0:
                session = session_of(files[k], arguments)
                walls.setdefault(k, []).append(statistics.median(timed(session, inputs, warmup, calls)))
                del session
            with tempfile.TemporaryDirectory() as folder:
                session = session_of(files[k], arguments, pathlib.Path(folder) / "profile")
                timed(session, inputs, warmup, calls)
                events = json.loads(pathlib.Path(session.end_profiling()).read_text(encoding="utf-8"))
            profiles[k].append(kernels(events, warmup))
        print(f"\rnetworks: round {done + 1} of {arguments.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {"profiles": profiles, "walls": {str(k): min(v) for k, v in walls.items()}}


def kernels(events: list[dict[str, Any]], warmup: int) -> list[Any]:
    """Return name, kind and nanoseconds of every node, in the order of the forward pass."""
    samples_of: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and "provider" in event.get("args", {}):
            samples_of.setdefault((event["name"], event["args"]["op_name"]), []).append(event["dur"] * 1000 + 500)
    return [[name, kind, samples[warmup:]] for (name, kind), samples in samples_of.items() if len(samples) > warmup]


def processor() -> str:
    """Return the processor's name, with its vector instructions."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = set(fields.get("flags", "").split())
    vectors = next((v for v in ("avx512f", "avx2") if v in flags), None)
    return name if vectors is None else f"{name} ({vectors})"


def main() -> None:
    """Measure, and write measured.json."""
    spec = json.loads((HERE / "pack.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="CPUExecutionProvider")
    parser.add_argument("--threads", type=int, default=spec["threads"] or os.cpu_count())
    parser.add_argument("--batch", default=",".join(map(str, spec["batches"])))
    parser.add_argument("--seconds", type=float, default=8.0, help="for each batch size")
    parser.add_argument("--networks", action="store_true", help="measure the latency table's networks too")
    parser.add_argument("--rounds", type=int, default=3, help="over those networks")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "measured.json")
    arguments = parser.parse_args()
    arguments.batch = [int(b) for b in arguments.batch.split(",")]
    draw = random.Random(0)
    measured = {
        "schema": 1,
        "name": spec["name"],
        "provider": arguments.provider,
        "threads": arguments.threads,
        "hardware": processor(),
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "rows": candidates(spec, arguments, draw),
    }
    if arguments.networks:
        measured["networks"] = networks(spec, arguments, draw)
    part = arguments.out.with_suffix(".part")
    part.write_text(json.dumps(measured), encoding="utf-8")
    part.replace(arguments.out)
    for row in measured["rows"]:
        mine = [s for block in row["samples_ns"] for s in block]
        print(f"batch {row['batch']:>3}  {row['candidate']:<16} {statistics.median(mine) / 1e6:9.3f} ms")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
