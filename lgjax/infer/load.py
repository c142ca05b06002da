"""From a checkpoint folder, or the name of a preset, to a model that can answer."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.resources
import os
import sys
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from lgjax import config as configs
from lgjax.convert import fingerprint, meta, store, verify
from lgjax.infer.request import Model
from lgjax.models.kernels import lay_out_for_cpu
from lgjax.models.llama import stack_packed
from lgjax.models.llava_grounding import init_params, logical_axes
from lgjax.parallel.rules import shardings
from lgjax.text.tokenizer import Tokenizer

DEBUG, TINY = "debug", "tiny"
NEEDED = ("clip", "projector", "llama")


_THRESHOLD = "jax_persistent_cache_min_compile_time_secs"
_LONG = 1.0  # seconds of compiling that leave much behind


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, the small ones, too: an answer needs many of them.

    Another place or threshold that jax was told of stays.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "lgjax" / "jax"))
    if jax.config.values[_THRESHOLD] == 1.0:  # jax's default
        jax.config.update(_THRESHOLD, 0.0)


def load_model(source: str | Path, *, dtype: str = "auto", mesh: jax.sharding.Mesh | None = None) -> Model:
    """Load a checkpoint folder, "tiny" (the model of the package, which knows drawn things), or "debug":
    fresh random weights, for trying the plumbing.

    See `GroundedChat.load` for dtype and mesh.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: an unknown dtype, a checkpoint of parts only, or tokens or outputs other than recorded.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype '{dtype}' is none of auto, float32, bfloat16")
    use_compilation_cache()
    _trim_after_compiling()
    if str(source) == DEBUG and not Path(source).exists():
        return debug_model(mesh)
    folder = folder_of(source)
    if not folder.exists():
        raise FileNotFoundError(
            f"no checkpoint folder '{source}'; without one there are '{TINY}' and '{DEBUG}'"
        )
    found = meta.read(folder)
    store.check_files(folder, found)
    if missing := [part for part in NEEDED if part not in found.parts]:
        raise ValueError(
            f"{folder} holds only {', '.join(found.parts)}; to chat it also needs {', '.join(missing)}"
        )
    tokenizer = Tokenizer.load(folder / store.TOKENIZER)
    if found.tokens is not None:
        verify.verify_tokens(tokenizer, found.tokens)
    chosen = choose_dtype(found, mesh) if dtype == "auto" else np.dtype(dtype)
    checkpoint = store.load(folder, dtype=chosen, mesh=mesh)
    fingerprint.verify_fingerprint(checkpoint.params, checkpoint.config, found.fingerprint)
    on_cpu = jax.default_backend() == "cpu"
    params = checkpoint.params
    _trim_memory()
    if on_cpu and mesh is None:
        # in these forms CPUs read and multiply fastest, and compile one packed layer for all
        lay_out_for_cpu(params)
        stack_packed(params["llama"])
    _trim_memory()
    compute = jnp.dtype(jnp.float32) if on_cpu else chosen
    config = _without_missing(checkpoint.config, found.parts)
    return Model(config, params, tokenizer, compute, compute, mesh)


def folder_of(source: str | Path) -> Path:
    """Where a checkpoint lies: "tiny" in the package, unless there is a folder of that name."""
    if str(source) == TINY and not Path(source).exists():
        return Path(str(importlib.resources.files("lgjax") / "assets" / TINY))
    return Path(source)


def choose_dtype(found: meta.Meta, mesh: jax.sharding.Mesh | None) -> np.dtype:
    """bfloat16 on accelerators; on CPUs float32 where what is not packed fits into half the free memory."""
    if jax.default_backend() != "cpu":
        return np.dtype(jnp.bfloat16)
    counts = [pair for part in found.dtypes.values() for pair in part.items()]
    numbers = sum(count for kind, count in counts if kind not in get_args(meta.Form))
    return np.dtype(np.float32) if 4 * numbers < free_memory() / 2 else np.dtype(jnp.bfloat16)


def free_memory() -> int:
    """Bytes that a process may still take; half of the memory where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _trim_memory() -> None:
    """Give the system what was freed: glibc keeps 2 GB of reading a 7B model, or of compiling it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@functools.cache  # jax keeps a listener for good
def _trim_after_compiling() -> None:
    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and duration_secs > _LONG:
            _trim_memory()

    jax.monitoring.register_event_duration_secs_listener(listen)


def _without_missing(config: configs.ModelConfig, parts: tuple[str, ...]) -> configs.ModelConfig:
    absent = {part: None for part in ("grounding", "prompt") if part not in parts}
    return dataclasses.replace(config, **absent)


def debug_model(mesh: jax.sharding.Mesh | None = None) -> Model:
    """The preset `debug`: fresh weights of seed 0, and the tokenizer of 803 ids that the package ships."""
    config = configs.debug()
    shipped = importlib.resources.files("lgjax") / "assets" / "debug_tokenizer.model"
    with importlib.resources.as_file(shipped) as file:
        tokenizer = Tokenizer.from_model_file(file)
    compute = jnp.dtype(jnp.float32)
    params = init_params(config, 0)
    if mesh is not None:
        params = jax.device_put(params, shardings(params, logical_axes(config), mesh))
    return Model(config, params, tokenizer, compute, compute, mesh)
