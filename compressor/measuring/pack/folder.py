"""A folder that measures on a machine without torch: ONNX files, one script, and its results.

The script (`compressor/measuring/pack/script.py`, copied as `bench.py`) needs onnxruntime and numpy. It measures in
turns as `compress bench` does, and with `--networks` also what a latency table needs. `compress bench --read` and
`compress measure-table --read` read its measured.json.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compressor.channels.groups import trace
from compressor.checkpoint import forms
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.errors import ArtifactError
from compressor.files.atomic import write_text
from compressor.files.json_files import read_json, write_json
from compressor.files.leftovers import PART, beside
from compressor.files.schema import check
from compressor.measuring.candidates import candidates_of, with_onnx
from compressor.measuring.runtimes import NodeTime, load
from compressor.measuring.setting import row_of
from compressor.measuring.tables.measured import Drawn, drawn_of, drawn_widths, table_of
from compressor.measuring.tables.networks import by_operator, networks_of
from compressor.measuring.tables.table import LatencyTable, Target
from compressor.measuring.turns import CONFIDENCE, Measurement, caveats_of, speedup
from compressor.progress import Say, quiet
from compressor.results.timing import Bench, TimedRow
from compressor.surgery.masks import WeightMask

SCRIPT = Path(__file__).with_name("script.py")
PROVIDERS = {"CPUExecutionProvider": "onnxruntime-cpu", "CUDAExecutionProvider": "onnxruntime-cuda"}
README = """# {name}: measure me here

This folder needs onnxruntime and numpy, nothing else:

    pip install numpy onnxruntime
    python bench.py

It times {candidates} in turns, for about {seconds:.0f} seconds a batch size, and writes measured.json.
With `--networks` it also times {networks} networks of drawn widths, which makes a latency table. Take it back:

    compress bench --read measured.json
    compress measure-table {name} --pack {folder} --read measured.json --out target.json
    compress prune {name} --speedup 2 --table target.json
"""


def write_pack(
    folder: Path,
    small: Checkpoint,
    dense: Checkpoint,
    *,
    mask: WeightMask | None = None,
    batches: Sequence[int],
    threads: int | None,
    seed: int = 0,
    say: Say = quiet,
) -> int:
    """Write the folder; return the number of its files. Refused: an existing folder, a network without ONNX export."""
    if folder.exists():
        raise ArtifactError(f"{folder} is there already", hint="use another folder, or remove that one")
    with _building(folder) as part:
        (part / "networks").mkdir()
        candidates = with_onnx(candidates_of(small, dense, mask=mask), small, dense, part, say=say)
        say("writing the latency table's networks")
        networks = _write_networks(dense, part, batch=batches[0], seed=seed)
        inputs = _inputs(part / "dense.onnx", dense)
        listed = [
            {
                "candidate": str(c.name),
                "file": c.onnx.file.name,
                "file_bytes": c.onnx.file.stat().st_size,
                "params": c.params,
                "macs": c.macs,
            }
            for c in candidates.all
            if c.onnx is not None
        ]
        spec = {
            "schema": 1, "name": dense.name, "threads": threads, "batches": list(batches), "inputs": inputs,
            "candidates": listed, "networks": networks,
        }  # fmt: skip
        write_json(part / "pack.json", spec)
        shutil.copyfile(SCRIPT, part / "bench.py")
        readme = README.format(
            name=dense.name, candidates=", ".join(str(c["candidate"]) for c in listed), seconds=8.0,
            networks=len(networks["files"]), folder=folder.name,
        )  # fmt: skip
        write_text(part / "README.md", readme)
        return sum(1 for p in part.rglob("*") if p.is_file())


@contextlib.contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder`, which gets its name when the block succeeds, and is removed otherwise."""
    part = beside(folder, PART)
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(folder)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {folder}: {error.strerror or error}", hint="free some space, or use another folder"
        ) from error
    finally:
        if part.exists():
            shutil.rmtree(part, ignore_errors=True)


def _write_networks(dense: Checkpoint, part: Path, *, batch: int, seed: int) -> dict[str, Any]:
    """Write the networks at random widths; return what a table of their times needs."""
    traced = trace(dense.module, dense.example_inputs)
    with networks_of(dense.module, traced, dense.example_inputs, load("onnxruntime-cpu"), batch=batch) as networks:
        rows = drawn_widths(networks.sizes, seed=seed, few=not networks.quick)
        names: list[str] = []
        owners: list[dict[str, str]] = []  # one for all if they are one graph at other widths
        for k, (_, row) in enumerate(rows):
            names.append(f"networks/{k:02d}.onnx")
            file = networks.at(row)
            assert isinstance(file, Path)
            shutil.copyfile(file, part / names[-1])
            if not owners or not networks.quick:
                owners.append(dict(networks.owners(file) or {}))
        drawn = drawn_of(networks, rows)
        return {
            "batch": batch,
            "files": names,
            "aligns": list(drawn.aligns),
            "reads": drawn.reads.tolist(),
            "writes": drawn.writes.tolist(),
            "keys": list(drawn.keys),
            "tensors": [o.tensor for o in networks.operators],
            "signature": drawn.signature,
            "owners": owners,
        }


def _inputs(file: Path, dense: Checkpoint) -> list[dict[str, Any]]:
    import onnx

    proto = onnx.load(str(file), load_external_data=False)
    return [
        {"name": one.name, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch."), **range_of(t)}
        for one, t in zip(proto.graph.input, dense.example_inputs, strict=True)
    ]


def range_of(example: Tensor) -> dict[str, Any]:
    """Return the range of integers: a token number must be below the vocabulary's size."""
    if example.is_floating_point() or example.is_complex() or not example.numel():
        return {}
    return {"range": [int(example.min()), int(example.max()) + 1]}


def bench_of_pack(measured: Mapping[str, Any], *, where: str) -> Bench:
    """Return the `bench` section of an artifact's results from a pack's measurement. Refused: anything else."""
    check(
        measured,
        forms.MEASURED,
        where=f"{where} is not what a pack measured",
        hint="it is the measured.json that the pack's `python bench.py` writes",
    )
    try:
        runtime = PROVIDERS.get(measured["provider"], str(measured["provider"]))
        rows: list[TimedRow] = []
        caveats: list[str] = []
        for batch in dict.fromkeys(int(row["batch"]) for row in measured["rows"]):
            mine = [row for row in measured["rows"] if row["batch"] == batch]
            measurements = {
                str(row["candidate"]): Measurement(
                    name=str(row["candidate"]),
                    batch_size=batch,
                    samples_ns=tuple(tuple(map(int, block)) for block in row["samples_ns"]),
                )
                for row in mine
            }
            null = (
                speedup(measurements["dense"], measurements["dense again"]) if "dense again" in measurements else None
            )
            setting = f"{runtime}, batch {batch}"
            caveats += [str(c) for c in caveats_of(tuple(measurements.values()), null=null, where=setting)]
            rows += [
                row_of(
                    measurements[str(row["candidate"])],
                    None if row["candidate"] == "dense" else measurements["dense"],
                    runtime=runtime,
                    provider=str(measured["provider"]),
                    file_bytes=row["file_bytes"],
                    params=row["params"],
                    macs=row["macs"],
                    dense_macs=mine[0]["macs"],
                )
                for row in mine
            ]
        environment = {
            "cpu": measured["hardware"],
            "onnxruntime": measured["onnxruntime"],
            "python": measured["python"],
            "platform": measured["platform"],
            "threads": measured["threads"],
        }
        return Bench(
            environment=environment,
            threads=int(measured["threads"]),
            blocks=min(row.blocks or 0 for row in rows),
            batches=tuple(dict.fromkeys(row.batch for row in rows)),
            confidence=CONFIDENCE,
            seed=0,
            rows=tuple(rows),
            caveats=tuple(caveats),
            notes=(f"measured on another machine, by a pack: {measured['hardware']}",),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{where} is not what a pack measured: {type(error).__name__}: {error}",
            hint="it is the measured.json that the pack's `python bench.py` writes",
        ) from error


def table_of_pack(folder: Path, measured: Mapping[str, Any]) -> LatencyTable:
    """Return the latency table of a pack measured with `--networks`; `folder` is the pack. Refused: anything else."""
    plain = read_json(folder / "pack.json")
    check(plain, forms.PACK, where=str(folder / "pack.json"), hint="`compress bench --pack` writes it")
    spec = plain["networks"]
    check(
        measured,
        forms.MEASURED,
        where="this is not what the pack's networks took",
        hint="`python bench.py --networks` writes it there",
    )
    try:
        networks = measured["networks"]
        owners = spec["owners"] if len(spec["owners"]) > 1 else spec["owners"] * len(networks["profiles"])
        times_ns = np.stack(
            [
                _quickest(rounds, spec["tensors"], mine)
                for rounds, mine in zip(networks["profiles"], owners, strict=True)
            ]
        )
        drawn = Drawn(
            aligns=tuple(spec["aligns"]),
            reads=np.array(spec["reads"]),
            writes=np.array(spec["writes"]),
            keys=tuple(spec["keys"]),
            signature=spec["signature"],
        )
        target = Target(
            runtime=PROVIDERS.get(measured["provider"], str(measured["provider"])),
            batch=int(spec["batch"]),
            threads=int(measured["threads"]),
            hardware=str(measured["hardware"]),
            version=str(measured["onnxruntime"]),
        )
        walls = {int(k): float(v) for k, v in networks["walls"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"this is not what the pack's networks took: {type(error).__name__}: {error}",
            hint="run the pack with `python bench.py --networks`",
        ) from error
    return table_of(drawn, target, times_ns, walls)


def _quickest(rounds: Sequence[Any], tensors: Sequence[str], owners: Mapping[str, str]) -> Any:
    """The time of each operator in its quickest round: nanoseconds `[operators]`."""
    times = [[NodeTime(name=n, kind=k, samples_ns=tuple(samples)) for n, k, samples in nodes] for nodes in rounds]
    return np.min([by_operator(nodes, tensors, owners) for nodes in times], axis=0)
