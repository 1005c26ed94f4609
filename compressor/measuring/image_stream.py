"""Time ONNX files in turns on a stream of images, one image at a time: for networks with early exits.

The latency of such a network depends on the image. So a timed call is a pass over several images, the same for each
candidate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from compressor.measuring.runtimes._onnxruntime import feed, open_session
from compressor.measuring.runtimes.onnxruntime_cpu import PROVIDER
from compressor.measuring.turns import Call, Clock, Measurement, Turn, pace, take_turns

SECONDS = 20.0


def timed_on_images(
    files: Mapping[str, Path],
    images: Sequence[Tensor],
    *,
    threads: int,
    seconds: float = SECONDS,
    blocks: int | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Measurement]:
    """Return the latencies of the files on onnxruntime's CPU provider, measured in turns for about so many seconds.

    `images` are inputs `[1, ...]`; a measurement's batch size is their number, although each runs by itself. The first
    file, which should be the slowest, decides the size of blocks.
    """
    turns = {name: _turn(file, images, threads=threads) for name, file in files.items()}
    rhythm = pace(next(iter(turns.values())), candidates=len(turns), seconds=seconds, blocks=blocks, clock=clock)
    return take_turns(
        turns, blocks=rhythm.blocks, calls_per_block=rhythm.calls_per_block, warmup=rhythm.warmup,
        batch_size=len(images), seed=seed, clock=clock,
    )  # fmt: skip


def _turn(file: Path, images: Sequence[Tensor], *, threads: int) -> Turn:
    @contextmanager
    def ready() -> Iterator[Call]:
        session = open_session(file, provider=PROVIDER, threads=threads)
        feeds = [feed(session, (image,)) for image in images]

        def through() -> None:
            for one in feeds:
                session.run(None, one)

        yield through

    return ready
