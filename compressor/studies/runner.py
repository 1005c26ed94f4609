"""Run a study: every cell without a result, in parallel processes; each result is a file of its own.

A cell runs after the cells that it needs. Weights for later cells are in a file next to the cell's result. A study can
be stopped at any time and continues where it stopped: a finished cell never runs again.
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
from compressor.children import without_working_folder
from compressor.data.splits import Data
from compressor.environment import cores, environment
from compressor.errors import StudyError
from compressor.files.atomic import save_tensors, whole
from compressor.files.json_files import read_json, write_json
from compressor.files.leftovers import sweep
from compressor.files.schema import check
from compressor.progress import Say, quiet
from compressor.studies import papers as studies
from compressor.studies.study import Cell, Scale, StudyResults

DataSource = Callable[[], Data]
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """The argument of the callback after each cell: the cell, its result, and the numbers of finished and all cells."""

    cell: Cell
    row: Mapping[str, Any]
    done: int
    total: int


class Folder:
    """The folder of a study's cells: `KEY.json` is a result, `KEY.safetensors` holds tensors for later cells."""

    def __init__(self, path: Path, data: Data, *, say: Say = quiet) -> None:
        self.path, self.data, self.say = path, data, say
        self._cell: Cell | None = None

    def file(self, cell: Cell) -> Path:
        """Return the file of a cell's result, which exists once the cell has finished."""
        return self.path / f"{cell.key}.json"

    def done(self, cell: Cell) -> bool:
        """Return true if the cell has finished."""
        return self.file(cell).exists()

    def result_of(self, cell: Cell) -> Mapping[str, Any]:
        """Return a finished cell's result; refused: a result on other data, a file that cannot be read."""
        plain = read_json(self.file(cell), refusal=StudyError, hint=f"delete {self.file(cell)}: it is computed again")
        check(plain, forms.CELL, where=str(self.file(cell)), hint="delete it: it is computed again", refusal=StudyError)
        if plain.get("data") != self.data.to_json():
            raise StudyError(
                f"{self.file(cell)} is a result on other data",
                hint="give the same `--data`, or another folder: `--out`",
            )
        row: Mapping[str, Any] = plain["result"]
        return row

    def state_of(self, cell: Cell) -> dict[str, torch.Tensor]:
        """Return the tensors that a finished cell has kept; refused: a missing or damaged file."""
        file = self.path / f"{cell.key}.safetensors"
        if not file.exists():
            raise StudyError(
                f"{file} is missing, and other cells start from it",
                hint=f"delete {self.file(cell)}: both are computed again",
            )
        try:
            state: dict[str, torch.Tensor] = load_file(file)
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
            raise StudyError(
                f"{file} is not a complete safetensors file: {error}",
                hint=f"delete it and {self.file(cell)}: both are computed again",
            ) from error
        return state

    def keep(self, state: Mapping[str, torch.Tensor]) -> None:
        """Write the running cell's tensors, for later cells."""
        assert self._cell is not None
        with whole(self.path / f"{self._cell.key}.safetensors") as part:
            save_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, part)

    @property
    def state_file(self) -> Path:
        """The file for the state of the running cell's training; it is deleted when the cell has finished."""
        assert self._cell is not None
        return self.path / f"{self._cell.key}.state"

    def run(self, cell: Cell) -> Mapping[str, Any]:
        """Run one cell, write its result and return it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._cell = cell
        start, processor = time.monotonic(), time.process_time()
        row = dict(studies.load(cell.study).run(cell, self))
        plain = {
            "schema": SCHEMA,
            "cell": cell.to_json(),
            "result": row,
            "seconds": round(time.monotonic() - start, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
            "data": self.data.to_json(),
            "environment": environment(),
        }
        write_json(self.file(cell), plain)
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
) -> StudyResults:
    """Run the cells of a study that have no result in `folder`, and return the results of all cells.

    Every process calls `source` for the data (with several `jobs` it must be picklable). `seeds` limits the number of
    replicates. Refused: fewer than one job, results on other data in the folder.
    """
    if jobs < 1:
        raise StudyError(f"the number of jobs is {jobs}", hint="use one for each free core: `--jobs 2`")
    cells = in_order(c for c in studies.load(name).cells(scale) if seeds is None or c.seed < seeds)
    if not cells:
        raise StudyError(f"no cell of `{name}` is selected", hint="choose at least one seed: `--seeds 1`")
    data = source()
    place = Folder(folder, data, say=say)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[Cell, Mapping[str, Any]] = {cell: place.result_of(cell) for cell in cells if place.done(cell)}
    missing = [cell for cell in cells if cell not in rows]
    processes = min(jobs, max(1, len(missing)))
    runs = _here(missing, place) if jobs == 1 else _in_processes(missing, source, folder, jobs=processes)
    for cell, row in runs:
        rows[cell] = row
        if finished is not None:
            finished(Progressed(cell=cell, row=row, done=len(rows), total=len(cells)))
    return StudyResults(rows={cell: rows[cell] for cell in cells})


def results_to_json(name: str, scale: Scale, results: StudyResults, *, data: Data, command: str) -> dict[str, Any]:
    """Return a study's results as plain values: the claims with their verdicts, the plots, and every cell."""
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
    """Return every cell once, each after the cells that it needs."""
    ordered: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        if cell.key not in ordered:
            for needed in cell.needs:
                add(needed)
            ordered[cell.key] = cell

    for cell in cells:
        add(cell)
    return tuple(ordered.values())


def _here(cells: Sequence[Cell], place: Folder) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    """Run the cells in this process, and yield each with its result."""
    for cell in cells:
        place.say(cell.key)
        yield cell, place.run(cell)


def _in_processes(
    cells: Sequence[Cell], source: DataSource, folder: Path, *, jobs: int
) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    """Run ready cells in `jobs` processes that share the cores; an interruption ends all of them at once."""
    threads = max(1, cores() // jobs)
    waiting, running = list(cells), dict[Future[Mapping[str, Any]], Cell]()
    missing = {cell.key for cell in cells}
    stack = contextlib.ExitStack()
    stack.enter_context(without_working_folder())  # the pool starts processes later, when it needs them
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
        sweep(folder)  # remove their unfinished files
        raise
    finally:
        stack.close()
    pool.shutdown()


_place: Folder | None = None  # the folder of a worker process


def _begin(source: DataSource, folder: Path, threads: int) -> None:
    """Prepare a worker process; its parent handles interruptions."""
    global _place
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    _place = Folder(folder, source())


def _run_in_process(cell: Cell) -> Mapping[str, Any]:
    assert _place is not None
    return _place.run(cell)
