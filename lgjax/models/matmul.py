"""Matrix products, and bfloat16 weights that a CPU can read without making float32 copies of them.

XLA for CPU turns every bfloat16 weight into a float32 copy before it multiplies; a 7B model then needs 40 GB.
Weights kept as their raw bits (uint16) escape that: a loop reads a few rows, widens them in registers and
accumulates in float32. `bfloat16_bits` makes that form (a view, outside jit: inside, a bitcast copies).
Every other dtype and platform uses the plain product.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt16

MATVEC_ROWS = 16  # input rows unrolled in one step when `x` has a single row
BLOCK_ROWS = 256  # input rows widened at once otherwise; the float32 block stays small


def bfloat16_bits(params: dict[str, Any]) -> dict[str, Any]:
    """Turn the bfloat16 matrices of a parameter dict into raw bits, for CPU inference; returns the same dict.

    Leaves named `kernel` of rank 2 and `embed_tokens` become uint16 arrays of the same shape, in place and
    one by one, so that never more than one matrix is held twice; all other leaves stay as they are.
    Source: spec/performance_notes.md 6.
    """
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            bfloat16_bits(leaf)
        elif name in ("kernel", "embed_tokens") and leaf.ndim == 2 and leaf.dtype == jnp.bfloat16:
            params[name] = jnp.asarray(np.asarray(leaf).view(np.uint16))
    return params


def widen(bits: UInt16[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the float32 values of raw bfloat16 bits."""
    return jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)


def matmul(
    x: Float[Array, "*batch i"], kernel: Float[Array, "i o"] | UInt16[Array, "i o"]
) -> Float[Array, "*batch o"]:
    """Return x @ kernel in the dtype of `x`; raw bfloat16 bits are accumulated in float32."""
    if kernel.dtype != jnp.uint16:
        return jnp.matmul(x, kernel.astype(x.dtype))
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    y = _single_row(rows, kernel) if rows.shape[0] == 1 else _blocks(rows, kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[1]).astype(x.dtype)


def matmul_transposed(
    x: Float[Array, "*batch i"], table: Float[Array, "o i"] | UInt16[Array, "o i"]
) -> Float[Array, "*batch o"]:
    """Return x @ table.T in the dtype of `x`, table [out, in], e.g. a tied embedding."""
    if table.dtype != jnp.uint16:
        return jnp.matmul(x, table.astype(x.dtype).T)
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    out = table.shape[0]
    block = min(BLOCK_ROWS, out)
    full = out // block

    def step(s, y):
        part = widen(jax.lax.dynamic_slice_in_dim(table, s * block, block))
        return jax.lax.dynamic_update_slice_in_dim(y, rows @ part.T, s * block, 1)

    y = jax.lax.fori_loop(0, full, step, jnp.zeros((rows.shape[0], out), jnp.float32))
    if full * block < out:
        y = y.at[:, full * block :].set(rows @ widen(table[full * block :]).T)
    return y.reshape(*x.shape[:-1], out).astype(x.dtype)


def _single_row(x: Float[Array, "1 i"], bits: UInt16[Array, "i o"]) -> Float[Array, "1 o"]:
    def multiply(x_part, block):
        # separate products and sums: XLA fuses them into one pass over the block, a dot would not
        terms = [widen(block[j])[None] * x_part[:, j : j + 1] for j in range(block.shape[0])]
        even, odd = sum(terms[::2]), sum(terms[1::2])
        return even + odd

    return _accumulate(x, bits, MATVEC_ROWS, multiply)


def _blocks(x: Float[Array, "m i"], bits: UInt16[Array, "i o"]) -> Float[Array, "m o"]:
    return _accumulate(x, bits, BLOCK_ROWS, lambda x_part, block: x_part @ widen(block))


def _accumulate(x, bits, rows: int, multiply):
    """Sum `multiply(x[:, part], bits[part])` over parts of `rows` input rows; the last may be shorter."""
    rows = min(rows, x.shape[1])
    full = x.shape[1] // rows

    def step(s, y):
        x_part = jax.lax.dynamic_slice_in_dim(x, s * rows, rows, 1)
        return y + multiply(x_part, jax.lax.dynamic_slice_in_dim(bits, s * rows, rows))

    y = jax.lax.fori_loop(0, full, step, jnp.zeros((x.shape[0], bits.shape[1]), jnp.float32))
    if full * rows < x.shape[1]:
        y = y + multiply(x[:, full * rows :], bits[full * rows :])
    return y
