"""Kernels in every stored form, and what they are in float64 by numpy alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lgjax.models.matmul import LowRank, Packed, bfloat16_bits, quantize

FORMS = {
    "float32": lambda w: w,
    "bfloat16": lambda w: w.astype(jnp.bfloat16),
    "bits": lambda w: bfloat16_bits({"kernel": w.astype(jnp.bfloat16)})["kernel"],
    "int8": quantize,
    "int4": lambda w: quantize(w, 4),
}
PACKED = ("bits", "int8", "int4")


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def exact(kernel) -> np.ndarray:
    """A kernel of any form in float64, [*layers, i, o]."""
    if isinstance(kernel, LowRank):
        return exact(kernel.base) + np.asarray(kernel.down, np.float64) @ np.asarray(kernel.up, np.float64)
    if not isinstance(kernel, Packed):
        return np.asarray(kernel).astype(np.float64)
    values = np.asarray(kernel.values)
    if kernel.scale is None:
        return values.view(ml_dtypes.bfloat16).astype(np.float64)
    scale = np.asarray(kernel.scale, np.float64)
    if values.dtype == np.int8:
        return values * scale
    *layers, height, outputs = values.shape
    out = np.zeros((*layers, 2 * height, outputs))
    size = 2 * height // scale.shape[-2]
    for i in range(2 * height):
        group, place = divmod(i, size)
        byte = values[..., group * size // 2 + place % (size // 2), :].astype(np.int64)
        steps = byte % 16 if place < size // 2 else byte // 16
        out[..., i, :] = (steps - 8) * scale[..., group, :]
    return out


def assert_product(got, *factors) -> None:
    """`got` equals the product of float64 matrices up to the rounding of its terms."""
    want, size = (np.linalg.multi_dot(parts) for parts in (factors, [np.abs(part) for part in factors]))
    assert (np.abs(np.asarray(got) - want) <= 2e-6 * size + 1e-7).all()
