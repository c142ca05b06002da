"""How a piece of work is timed, and what is made of the seconds."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Output = list[float] | list[int] | list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of work that was done.

    what: its sizes, in a line; output: what it gave, to be compared; flops: the operations that it needs, and
    num_bytes: what must pass between memory and cores at least (weights, inputs, results), None where nobody
    knows; computes: the number type of its products; handled: what it got through, such as tokens; compiles:
    the first time makes programs for the others.
    """

    what: str
    output: Output = dataclasses.field(default_factory=list)
    flops: float | None = None
    num_bytes: float | None = None
    computes: Literal["float32", "bfloat16"] = "float32"
    handled: Mapping[str, float] = dataclasses.field(default_factory=dict)
    compiles: bool = True


class Work(NamedTuple):
    """Work that is ready to be done again and again.

    seconds: does it once and says how long it took, see `timed`; facts: those of the last time.
    """

    seconds: Callable[[], float]
    facts: Callable[[], Facts]


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """A function that runs `run`, which returns when its work is done, and says how many seconds it took."""

    def seconds() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return seconds


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and most of several values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How our time stands to theirs in each turn: below 1 ours is shorter.

    What slows a machine down for a while slows both of a pair, so that their ratio is steadier than times.
    """
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])


def best_seconds(
    flops: float | None, num_bytes: float | None, rate: float, bandwidth: float
) -> tuple[float, Literal["products", "memory"]] | None:
    """The shortest time in which a machine could do it, and which of its two limits that is.

    rate: operations a second, bandwidth: bytes a second that it was seen to reach.
    """
    found: list[tuple[float, Literal["products", "memory"]]] = []
    if flops is not None:
        found.append((flops / rate, "products"))
    if num_bytes is not None:
        found.append((num_bytes / bandwidth, "memory"))
    return max(found, default=None)


def disagreement(ours: Output, theirs: Output) -> float:
    """How far outputs lie apart: of numbers with a fraction the largest difference as a share of the largest
    value (1 where one is no number), of ids and texts the share that differs."""
    if len(ours) != len(theirs):
        return 1.0
    if ours and all(isinstance(value, float) for value in (*ours, *theirs)):
        mine, other = np.asarray(ours), np.asarray(theirs)
        if not np.isfinite([mine, other]).all():
            return 1.0
        apart, largest = np.abs(mine - other).max(), np.abs(other).max()
        return float(apart / largest) if largest else float(apart > 0)
    return sum(a != b for a, b in zip(ours, theirs, strict=True)) / max(len(ours), 1)


def peak_memory() -> int:
    """Most bytes of memory that this process has held at once."""
    try:
        lines = Path("/proc/self/status").read_text().split("\n")
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
