"""Kernels in every stored form, and what they are in float64 by numpy alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lgjax.models.kernels import LowRank, Packed, Transposed, lay_out_for_cpu, quantize

FORMS = {
    "float32": lambda w: w,
    "transposed": lambda w: Transposed(jnp.swapaxes(w, -1, -2)),
    "bfloat16": lambda w: w.astype(jnp.bfloat16),
    "bits": lambda w: lay_out_for_cpu({"kernel": w.astype(jnp.bfloat16)})["kernel"],
    "int8": quantize,
    "int4": lambda w: quantize(w, 4),
    "words of int8": lambda w: lay_out_for_cpu({"kernel": quantize(w)})["kernel"],
    "words of int4": lambda w: lay_out_for_cpu({"kernel": quantize(w, 4)})["kernel"],
}
PACKED = ("bits", "int8", "int4", "words of int8", "words of int4")


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def exact(kernel) -> np.ndarray:
    """A kernel of any form in float64, [*layers, i, o]."""
    if isinstance(kernel, LowRank):
        return exact(kernel.base) + np.asarray(kernel.down, np.float64) @ np.asarray(kernel.up, np.float64)
    if isinstance(kernel, Transposed):
        return np.swapaxes(exact(kernel.values), -1, -2)
    if not isinstance(kernel, Packed):
        return np.asarray(kernel).astype(np.float64)
    values = np.asarray(kernel.values)
    if kernel.scale is None:
        return values.view(ml_dtypes.bfloat16).astype(np.float64)
    scale = np.asarray(kernel.scale, np.float64)
    if values.dtype == np.int8:
        return values * scale
    count = {"uint8": 2, "int32": 4, "uint32": 8}[values.dtype.name]
    base = {"uint8": 16, "int32": 256, "uint32": 16}[values.dtype.name]
    *layers, height, outputs = values.shape
    out = np.zeros((*layers, count * height, outputs))
    size = count * height // scale.shape[-2]
    for i in range(count * height):
        group, place = divmod(i, size)
        part, row = divmod(place, size // count)
        word = values[..., group * size // count + row, :].astype(np.int64)
        steps = word // base**part % base  # digits of a number, the highest with its own sign in words
        signed = count > 2 and part == count - 1
        steps = np.where(steps < base // 2, steps, steps - base) if signed else steps - base // 2
        out[..., i, :] = steps * scale[..., group, :]
    return out


def assert_product(got, *factors) -> None:
    """`got` equals the product of float64 matrices up to the rounding of its terms."""
    want, size = (np.linalg.multi_dot(parts) for parts in (factors, [np.abs(part) for part in factors]))
    assert (np.abs(np.asarray(got) - want) <= 2e-6 * size + 1e-7).all()
