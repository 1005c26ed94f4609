"""Time the dense and a small network on one runtime in turns: the measurement behind a speed-up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from compressor.graph.input_spec import random_like
from compressor.measuring.runtimes import usable
from compressor.measuring.turns import Measurement, pace, take_turns


def timed_in_turns(
    dense: nn.Module | Path,
    small: nn.Module | Path,
    example_inputs: Sequence[Tensor],
    *,
    runtime: str,
    batch: int,
    threads: int,
    seconds: float,
    seed: int = 0,
) -> tuple[Measurement, Measurement]:
    """Return both networks' latencies on a runtime, measured in turns for about so many seconds."""
    (chosen,) = usable((runtime,))
    inputs = tuple(random_like(example_inputs, batch=batch, seed=0))
    turns = {name: chosen.turn(model, inputs, threads=threads) for name, model in (("dense", dense), ("small", small))}
    rhythm = pace(turns["dense"], candidates=2, seconds=seconds, blocks=None)
    measured = take_turns(
        turns, blocks=rhythm.blocks, calls_per_block=rhythm.calls_per_block, warmup=rhythm.warmup, batch_size=batch,
        seed=seed,
    )  # fmt: skip
    return measured["dense"], measured["small"]
