"""What this machine can do at best, as far as its libraries show it: the ceiling that figures are held to."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lgjax.bench.cases import Sizes

TRIALS = 5
SLOW = 2e9  # operations a second; in float32 a core does tens of times as many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceilings:
    """The best of several trials on some cores.

    copy: bytes a second that are read and written together; read: bytes a second that are read; float32,
    bfloat16: operations a second of a matrix product by library (bfloat16: its inputs).
    """

    cores: int
    platform: str
    copy: float
    read: float
    float32: dict[str, float]
    bfloat16: dict[str, float]

    def rate(self, dtype: str) -> float:
        """Operations a second of the library that is best at products of this type."""
        return max((self.float32 if dtype == "float32" else self.bfloat16).values())


def ceilings(cores: int, sizes: Sizes) -> Ceilings:
    """Measure the device that jax takes: of a CPU as many cores as this process is bound to."""
    import jax

    backend, side, num_bytes = jax.default_backend(), sizes.machine_side, sizes.machine_bytes
    copy, read = _memory_of_cores(cores, num_bytes) if backend == "cpu" else _memory_of_device(num_bytes)
    float32, bfloat16 = {"jax": _jax_rate(side, "float32")}, {"jax": _jax_rate(side, "bfloat16")}
    if backend == "cpu":
        float32["numpy"] = _numpy_rate(side)
        if importlib.util.find_spec("torch") is not None:
            float32["torch"] = _torch_rate(side, "float32", cores)
            bfloat16["torch"] = _torch_rate(side, "bfloat16", cores)
    return Ceilings(cores=cores, platform=backend, copy=copy, read=read, float32=float32, bfloat16=bfloat16)


def described() -> dict[str, Any]:
    """Processor, memory and system, for the record."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def best(run: Callable[[], Any], trials: int = TRIALS) -> float:
    """Fewest seconds of several trials, after one to warm up."""
    run()
    found = []
    for _ in range(trials):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _memory_of_cores(cores: int, num_bytes: int) -> tuple[float, float]:
    """Bytes a second of copying and of reading by as many threads; numpy lets them run side by side.

    Reading is the better of the largest of all values and a product of a matrix and a vector.
    """
    source, target = np.ones(num_bytes // 4, np.float32), np.zeros(num_bytes // 4, np.float32)
    pieces = list(zip(np.array_split(source, cores), np.array_split(target, cores), strict=True))
    with ThreadPoolExecutor(cores) as pool:
        copied = best(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pieces)))
        seen = best(lambda: list(pool.map(lambda pair: pair[0].max(), pieces)))
    matrix, vector = source.reshape(-1, 4096), np.ones(4096, np.float32)
    seen = min(seen, best(lambda: matrix @ vector))
    return 2 * source.nbytes / copied, source.nbytes / seen


def _memory_of_device(num_bytes: int) -> tuple[float, float]:
    import jax
    import jax.numpy as jnp

    source = jnp.ones(num_bytes // 4, jnp.float32)
    plus_one, largest = jax.jit(lambda x: x + 1), jax.jit(jnp.max)
    copied = best(lambda: plus_one(source).block_until_ready())
    seen = best(lambda: largest(source).block_until_ready())
    return 2 * source.nbytes / copied, source.nbytes / seen


def _rate(side: int, run: Callable[[], Any]) -> float:
    return 2 * side**3 / best(run)


def _numpy_rate(side: int) -> float:
    matrix = np.ones((side, side), np.float32)
    out = np.empty_like(matrix)
    return _rate(side, lambda: np.matmul(matrix, matrix, out=out))


def _jax_rate(side: int, dtype: str) -> float:
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((side, side), dtype)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    return _rate(side, lambda: multiply(matrix, matrix).block_until_ready())


def _torch_rate(side: int, dtype: str, cores: int) -> float:
    import torch

    def rate(side: int) -> float:
        matrix = torch.ones((side, side), dtype=getattr(torch, dtype))
        out = torch.empty_like(matrix)
        return _rate(side, lambda: torch.matmul(matrix, matrix, out=out))

    torch.set_num_threads(cores)
    small = rate(max(side // 8, 128))
    # without instructions for bfloat16 the whole size would take torch many minutes
    return rate(side) if small > SLOW else small
