"""Run a study: every cell that has no result yet, in parallel processes; each result is a file of its own.

A cell runs when those that it needs have finished. What it needs to hand on are its weights, in a file beside its
result. Stopped at any time, a study goes on where it was: a finished cell never runs again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from compressor.checkpoint import forms
from compressor.checkpoint.artifacts import read_json, write_json
from compressor.children import without_working_folder
from compressor.data.splits import Data
from compressor.environment import cores, environment
from compressor.errors import StudyError
from compressor.files.atomic import save_tensors, whole
from compressor.files.leftovers import sweep
from compressor.files.schema import check
from compressor.progress import Say, quiet
from compressor.studies import papers as studies
from compressor.studies.study import Cell, Results, Scale

DataSource = Callable[[], Data]
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """What a caller is told when a cell has finished: which, what it said, and how many there are."""

    cell: Cell
    row: Mapping[str, Any]
    done: int
    total: int


class Folder:
    """Where a study's cells lie: `KEY.json` is a result, `KEY.safetensors` what was kept for others."""

    def __init__(self, path: Path, data: Data, *, say: Say = quiet) -> None:
        self.path, self.data, self.say = path, data, say
        self._cell: Cell | None = None

    def file(self, cell: Cell) -> Path:
        """Where a cell's result lies, or will."""
        return self.path / f"{cell.key}.json"

    def done(self, cell: Cell) -> bool:
        """Whether it has finished."""
        return self.file(cell).exists()

    def result_of(self, cell: Cell) -> Mapping[str, Any]:
        """What a finished cell said. Refused: a result on other data, or that cannot be read."""
        found = read_json(self.file(cell), refusal=StudyError, hint=f"delete {self.file(cell)}: it is made again")
        check(found, forms.CELL, where=str(self.file(cell)), hint="delete it: it is made again", refusal=StudyError)
        if found.get("data") != self.data.to_json():
            raise StudyError(
                f"{self.file(cell)} is a result on other data",
                hint="give the same `--data`, or another folder: `--out`",
            )
        row: Mapping[str, Any] = found["result"]
        return row

    def state_of(self, cell: Cell) -> dict[str, torch.Tensor]:
        """The tensors that a finished cell has kept."""
        file = self.path / f"{cell.key}.safetensors"
        if not file.exists():
            raise StudyError(
                f"{file} is gone, and others start from it", hint=f"delete {self.file(cell)}: it is made again"
            )
        try:
            state: dict[str, torch.Tensor] = load_file(file)
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
            raise StudyError(
                f"{file} is not a complete safetensors file: {error}",
                hint=f"delete it and {self.file(cell)}: both are made again",
            ) from error
        return state

    def keep(self, state: Mapping[str, torch.Tensor]) -> None:
        """Keep the running cell's tensors for others."""
        assert self._cell is not None
        with whole(self.path / f"{self._cell.key}.safetensors") as part:
            save_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, part)

    @property
    def state_file(self) -> Path:
        """Where the running cell may keep what its training needs to go on; gone when it has finished."""
        assert self._cell is not None
        return self.path / f"{self._cell.key}.state"

    def run(self, cell: Cell) -> Mapping[str, Any]:
        """Run one cell and write its result."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._cell = cell
        start, processor = time.monotonic(), time.process_time()
        row = dict(studies.load(cell.study).run(cell, self))
        told = {
            "schema": SCHEMA,
            "cell": cell.to_json(),
            "result": row,
            "seconds": round(time.monotonic() - start, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
            "data": self.data.to_json(),
            "environment": environment(),
        }
        write_json(self.file(cell), told)
        with contextlib.suppress(FileNotFoundError):
            self.state_file.unlink()
        self._cell = None
        return row


def run_study(
    name: str,
    scale: Scale,
    source: DataSource,
    folder: Path,
    *,
    jobs: int = 1,
    seeds: int | None = None,
    say: Say = quiet,
    finished: Callable[[Progressed], None] | None = None,
) -> Results:
    """The results of all cells of a study; those that lie in `folder` are not run again.

    `source` gives the data, in every process anew (it must be picklable where `jobs` is more than one). `seeds` runs
    fewer replicates than the scale says. Refused: fewer than one job, data of another run in the folder.
    """
    if jobs < 1:
        raise StudyError(f"{jobs} jobs", hint="one for each core that may be busy: `--jobs 2`")
    cells = in_order(c for c in studies.load(name).cells(scale) if seeds is None or c.seed < seeds)
    if not cells:
        raise StudyError(f"no cell is left of `{name}`", hint="ask for at least one seed: `--seeds 1`")
    data = source()
    place = Folder(folder, data, say=say)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[Cell, Mapping[str, Any]] = {cell: place.result_of(cell) for cell in cells if place.done(cell)}
    left = [cell for cell in cells if cell not in rows]
    runs = _here(left, place) if jobs == 1 else _in_processes(left, source, folder, jobs=min(jobs, max(1, len(left))))
    for cell, row in runs:
        rows[cell] = row
        if finished is not None:
            finished(Progressed(cell=cell, row=row, done=len(rows), total=len(cells)))
    return Results(rows={cell: rows[cell] for cell in cells})


def told(name: str, scale: Scale, results: Results, *, data: Data, command: str) -> dict[str, Any]:
    """A study's results as plain values: the claims with their verdicts, the plots, and every cell."""
    study = studies.load(name)
    return {
        "schema": SCHEMA,
        "study": name,
        "title": study.TITLE,
        "about": (study.__doc__ or "").strip(),
        "scale": str(scale),
        "data": data.to_json(),
        "claims": [claim.to_json() for claim in study.verdict(results)],
        "plots": [plot.to_json() for plot in study.plots(results)],
        "cells": [{**cell.to_json(), "key": cell.key, "result": dict(row)} for cell, row in results],
        "environment": environment(),
        "command": command,
    }


def in_order(cells: Iterator[Cell] | Sequence[Cell]) -> tuple[Cell, ...]:
    """Every cell once, after those that it needs."""
    found: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        if cell.key not in found:
            for needed in cell.needs:
                add(needed)
            found[cell.key] = cell

    for cell in cells:
        add(cell)
    return tuple(found.values())


def _here(cells: Sequence[Cell], place: Folder) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    for cell in cells:
        place.say(cell.key)
        yield cell, place.run(cell)


def _in_processes(
    cells: Sequence[Cell], source: DataSource, folder: Path, *, jobs: int
) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    """Ready cells in `jobs` processes that share the cores; an interruption ends them at once."""
    threads = max(1, cores() // jobs)
    waiting, running = list(cells), dict[Future[Mapping[str, Any]], Cell]()
    missing = {cell.key for cell in cells}
    stack = contextlib.ExitStack()
    stack.enter_context(without_working_folder())  # the pool starts its processes as it needs them
    pool = ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(source, folder, threads)
    )
    before = set(multiprocessing.active_children())
    try:
        while waiting or running:
            for cell in [c for c in waiting if not any(n.key in missing for n in c.needs)]:
                if len(running) < jobs:
                    waiting.remove(cell)
                    running[pool.submit(_run_in_process, cell)] = cell
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                row = future.result()
                missing.discard(cell.key)
                yield cell, row
    except BaseException:
        ours = set(multiprocessing.active_children()) - before
        for process in ours:
            process.terminate()  # a cell writes whole files only
        pool.shutdown(wait=False, cancel_futures=True)
        for process in ours:
            process.join(timeout=10)
        sweep(folder)  # what they were about to write
        raise
    finally:
        stack.close()
    pool.shutdown()


_place: Folder | None = None  # of a process that does nothing else


def _begin(source: DataSource, folder: Path, threads: int) -> None:
    """Make a fresh process ready; the interruption is its parent's to handle."""
    global _place
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    _place = Folder(folder, source())


def _run_in_process(cell: Cell) -> Mapping[str, Any]:
    assert _place is not None
    return _place.run(cell)
