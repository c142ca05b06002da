"""Fresh parameters for measurements: made in a moment, the same in every process, ours and PyTorch's."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from lgjax.bench.cases import Dtype
from lgjax.config import ModelConfig
from lgjax.convert import keys
from lgjax.convert.lazy import LazyTensor
from lgjax.convert.packed import forms_of, pack, unpack
from lgjax.convert.store import flattened, nested
from lgjax.models.kernels import lay_out_for_cpu
from lgjax.models.llama import stack_packed
from lgjax.models.llava_grounding import abstract_params

_DRAWN = 1_000_003  # a prime: rows of matrices, whose widths are no multiples of it, all differ


@functools.cache
def _noise() -> Float32[np.ndarray, " n"]:
    return np.random.default_rng(0).standard_normal(_DRAWN, np.float32)


def _value(path: str, shape: tuple[int, ...]) -> Float32[np.ndarray, "*shape"]:
    """Normal values that keep activations near 1: a piece of the drawn ones that depends on the path."""
    noise = np.roll(_noise(), zlib.crc32(path.encode()) % _DRAWN)
    if len(shape) < 2:
        scale, shift = 0.1, float(path.endswith("scale"))
    else:
        scale, shift = float(np.prod(shape[:-1])) ** -0.5 if path.endswith("kernel") else 0.5, 0.0
    return np.resize(noise * np.float32(scale) + np.float32(shift), shape)


def _leaves(config: ModelConfig, *parts: str) -> dict[str, LazyTensor]:
    """The parameters of parts ("clip", "llama", ...) by path, each made when it is asked for."""
    return {
        path: LazyTensor(leaf.shape, np.dtype(np.float32), functools.partial(_value, path, leaf.shape))
        for path, leaf in flattened(abstract_params(config)).items()
        if path.split("/")[0] in parts
    }


def parameters(config: ModelConfig, *parts: str, dtype: Dtype = "float32") -> dict[str, Any]:
    """Parameters of parts as the engine takes them from a checkpoint that was converted to `dtype`.

    On CPUs in the form that these read. What int8 and int4 leave unpacked is float32.
    """
    leaves = _leaves(config, *parts)
    if dtype in ("int8", "int4"):
        forms = forms_of(leaves, dtype)
        packed = {path: jnp.asarray(leaf.load()) for path, leaf in pack(leaves, forms).items()}
        made = nested(unpack(packed, forms))
    else:
        made = nested({path: jnp.asarray(leaf.load(), dtype) for path, leaf in leaves.items()})
    if jax.default_backend() == "cpu":
        lay_out_for_cpu(made)
        if "llama" in parts:
            stack_packed(made["llama"])
    return made


def checkpoint_tensors(config: ModelConfig, part: str) -> Iterator[tuple[str, Float32[np.ndarray, "*shape"]]]:
    """The same values under the names and with the axes of PyTorch's checkpoint, one after the other."""
    for path, leaf in _leaves(config, part).items():
        key, layout = keys.checkpoint_key(path)
        yield key, np.ascontiguousarray(keys.to_checkpoint(leaf.load(), layout))


def num_bytes(*trees: Any) -> float:
    """Bytes of the arrays of trees."""
    return float(sum(leaf.nbytes for leaf in jax.tree.leaves(trees)))
