"""How fast training batches are made on this machine, and where the time goes."""

from __future__ import annotations

import contextlib
import cProfile
import inspect
import pstats
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lgjax.data import batch, images, masks, prompts, rounds
from lgjax.data.batch import SampleMaker
from lgjax.data.pipeline import Counted, Mixture, batches
from lgjax.data.schema import Record

PARTS = {
    "decode the picture": images.load_image,
    "grounding view": images.square_canvas,
    "CLIP view": images.clip_crop,
    "masks": masks.on_canvas,
    "draw prompts": prompts.draw_click,
    "write the rounds": rounds.rounds_of,
    "tokens and labels": batch.encode,
}


class Rate(NamedTuple):
    """Rows and batches per second over all that ran, and bytes of one batch."""

    rows: float
    batches: float
    num_bytes: int


def part_times(maker: SampleMaker, records: Sequence[Record], count: int) -> dict[str, float]:
    """Milliseconds a sample for each of `PARTS`, for fetching the record, and for "the rest".

    One thread; their sum is the time of a sample. Samples that cannot be made count with what they took.
    """
    fetch = 0.0
    profiler = cProfile.Profile()
    for i in range(count):
        start = time.perf_counter()
        record = records[i % len(records)]
        fetch += time.perf_counter() - start
        profiler.enable()
        with contextlib.suppress(ValueError, OSError):
            maker(record, np.random.default_rng(i))
        profiler.disable()
    found = pstats.Stats(profiler)
    cumulative = {key: values[3] for key, values in found.stats.items()}  # pyright: ignore[reportAttributeAccessIssue]
    out = {"fetch the record": fetch}
    for name, function in PARTS.items():
        code = inspect.unwrap(function).__code__
        out[name] = cumulative.get((code.co_filename, code.co_firstlineno, code.co_name), 0.0)
    out["the rest"] = found.total_tt - sum(out.values()) + fetch  # pyright: ignore[reportAttributeAccessIssue]
    return {name: 1000 * seconds / count for name, seconds in out.items()}


def throughput(mixture: Mixture, maker: SampleMaker, workers: int, seconds: float) -> Rate:
    """Make batches for about `seconds` after the first two, with `workers` processes (0: threads)."""
    data = Counted(batches(mixture, maker.config, maker.tokenizer, seed=0, workers=workers))
    # the first ones wait for processes to start
    first = [next(data) for _ in range(max(2, 2 * workers))][-1]
    start, count, passed = time.perf_counter(), 0, 0.0
    while passed < seconds:
        next(data)
        count, passed = count + 1, time.perf_counter() - start
    data.close()
    num_bytes = sum(array.nbytes for array in _arrays(first))
    return Rate(count * mixture.rows / passed, count / passed, num_bytes)


def _arrays(value: object) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    return [array for part in value for array in _arrays(part)] if isinstance(value, tuple) else []
