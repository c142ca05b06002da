"""Matrix products with kernels of every stored form: floats, raw bfloat16 bits, int8, low-rank changes.

XLA for CPU turns a whole bfloat16 or int8 kernel into a float32 copy before it multiplies, and training keeps
the copies for the way back: 27 GB for a 7B model. Kernels stored as raw bits (uint16) or int8 escape that: a
loop widens a few channels at a time and sums in float32. They are frozen: gradients pass through them, none
reaches them. `bfloat16_bits` makes raw bits (a view, outside jit: inside, a bitcast copies), `quantize` makes
int8. Other platforms widen inside the product; kernels of floats use the plain product everywhere.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Shaped, UInt16

MATVEC_ROWS = 16  # input rows unrolled in one step when `x` has a single row
BLOCK = 256  # output channels widened at once otherwise; the float32 block stays small


class Int8(NamedTuple):
    """A frozen kernel of whole steps: values (int8) * scale, one scale for each output channel."""

    values: Int[Array, "*layers i o"]
    scale: Float32[Array, "*layers o"]


class LowRank(NamedTuple):
    """A kernel base + down @ up: a base that stays as it is and a trained change of few ranks.

    `base` comes first: flax compares the first leaf of a parameter with the shape that the module wants.
    Source: LoRA (Hu et al. 2021), section 4.1, with alpha = r.
    """

    base: Float[Array, "*layers i o"] | UInt16[Array, "*layers i o"] | Int8
    down: Float[Array, "*layers i r"]
    up: Float[Array, "*layers r o"]


Plain = Float[Array, "*layers i o"] | UInt16[Array, "*layers i o"]
Frozen = UInt16[Array, "n m"] | Int8


def bfloat16_bits(params: dict[str, Any]) -> dict[str, Any]:
    """Turn the bfloat16 matrices of a parameter dict into raw bits, for CPUs; returns the same dict.

    Leaves named `kernel` of rank 2 or 3 (stacked layers), bases of such kernels with a low-rank change, and
    `embed_tokens` become uint16 arrays of the same shape, in place and one by one, so that never more than
    one matrix is held twice; all other leaves stay as they are. Source: spec/performance_notes.md 6.
    """
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            bfloat16_bits(leaf)
        elif name in ("kernel", "embed_tokens"):
            params[name] = leaf._replace(base=_bits(leaf.base)) if isinstance(leaf, LowRank) else _bits(leaf)
    return params


def _bits(kernel: Any) -> Any:
    if isinstance(kernel, Int8) or kernel.ndim not in (2, 3) or kernel.dtype != jnp.bfloat16:
        return kernel
    return jnp.asarray(np.asarray(kernel).view(np.uint16))


def widen(stored: Shaped[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Return the float32 values of an array of numbers, or of raw bfloat16 bits (uint16)."""
    if stored.dtype != jnp.uint16:
        return stored.astype(jnp.float32)
    return jax.lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)


@jax.jit
def quantize(kernel: Plain) -> Int8:
    """Return the nearest int8 kernel: the largest entry of an output channel is 127 steps of its scale.

    No entry moves by more than half a step. Channels of zeros stay zeros.
    """
    wide = widen(kernel)
    scale = jnp.maximum(jnp.abs(wide).max(-2) / 127, jnp.finfo(jnp.float32).tiny)
    return Int8(jnp.round(wide / scale[..., None, :]).astype(jnp.int8), scale)


def dense(kernel: Plain | Int8 | LowRank) -> Float32[Array, "*layers i o"]:
    """Return a kernel of any form as one float32 array, a low-rank change added to its base."""
    if isinstance(kernel, LowRank):
        return dense(kernel.base) + jnp.matmul(kernel.down, kernel.up, precision="highest")
    if isinstance(kernel, Int8):
        return widen(kernel.values) * kernel.scale[..., None, :]
    return widen(kernel)


def low_rank(
    kernel: Plain | Int8, rank: int, key: jax.Array
) -> tuple[Float32[Array, "*layers i r"], Float32[Array, "*layers r o"]]:
    """Return (down, up) where training of `LowRank(kernel, down, up)` starts: random and zero, no change yet.

    Down is uniform within 1 / sqrt(i), as the weights of a fresh linear layer are.

    Raises:
        ValueError: a rank that the kernel cannot have.
    """
    *layers, i, o = _values(kernel).shape
    if not 1 <= rank <= min(i, o):
        raise ValueError(f"rank {rank} for a kernel [{i}, {o}]: choose 1 to {min(i, o)}")
    down = jax.random.uniform(key, (*layers, i, rank), minval=-1.0, maxval=1.0) * i**-0.5
    return down, jnp.zeros((*layers, rank, o))


def matmul(
    x: Float[Array, "*batch i"], kernel: Float[Array, "i o"] | UInt16[Array, "i o"] | Int8 | LowRank
) -> Float[Array, "*batch o"]:
    """Return x @ kernel in the dtype of `x`; raw bits and int8 are summed in float32 and are constants."""
    if isinstance(kernel, LowRank):
        base = kernel.base
        rows = x.reshape(-1, x.shape[-1])  # the gradient of a product over two axes copies `x` on CPUs
        change = matmul(matmul(rows, kernel.down), kernel.up)
        frozen = isinstance(base, Int8) or base.dtype == jnp.uint16
        y = _frozen(rows, base, change) if frozen else matmul(rows, base) + change
        return y.reshape(*x.shape[:-1], y.shape[-1])
    if isinstance(kernel, Int8) or kernel.dtype == jnp.uint16:
        return _frozen(x, kernel)
    return jnp.matmul(x, kernel.astype(x.dtype))


def matmul_transposed(
    x: Float[Array, "*batch i"], table: Float[Array, "o i"] | UInt16[Array, "o i"]
) -> Float[Array, "*batch o"]:
    """Return x @ table.T in the dtype of `x`, table [out, in], e.g. a tied embedding."""
    if table.dtype == jnp.uint16:
        return _frozen(x, table, transposed=True)
    return jnp.matmul(x, table.astype(x.dtype).T)


def _values(kernel: Plain | Int8) -> Array:
    return kernel.values if isinstance(kernel, Int8) else kernel


def _frozen(x: Array, kernel: Frozen, start: Array | None = None, transposed: bool = False) -> Array:
    """Return start + x @ kernel, or x @ kernel.T, in the dtype of `x`."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    start = _zeros(rows, kernel, transposed) if start is None else start.astype(jnp.float32)
    y: Array = _add_product(start, rows, kernel, x.dtype, transposed)
    return y.reshape(*x.shape[:-1], y.shape[-1]).astype(x.dtype)


def _zeros(rows, kernel: Frozen, transposed: bool):
    return jnp.zeros((rows.shape[0], _values(kernel).shape[0 if transposed else 1]), jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _add_product(start, x, kernel: Frozen, dtype: DTypeLike, transposed: bool):
    """start [m, o] + x [m, i] @ kernel in float32; other platforms than CPUs multiply in `dtype`.

    With a derivative of its own: autodiff of the loop would keep every widened block for the way back.
    """
    blocks = functools.partial(_add_in_blocks, transposed=transposed)
    whole = functools.partial(_add_whole, dtype=dtype, transposed=transposed)
    return jax.lax.platform_dependent(start, x, kernel, cpu=blocks, default=whole)


def _forward(start, x, kernel, dtype, transposed):
    return _add_product(start, x, kernel, dtype, transposed), kernel


def _backward(dtype, transposed, kernel, gradient):
    zeros = _zeros(gradient, kernel, not transposed)
    return gradient, _add_product(zeros, gradient, kernel, dtype, not transposed), None


_add_product.defvjp(_forward, _backward)


def _add_whole(start, x, kernel: Frozen, dtype: DTypeLike, transposed: bool):
    def product(x, values):
        values = (values.T if transposed else values).astype(dtype)
        return jnp.matmul(x.astype(dtype), values, preferred_element_type=jnp.float32)

    if not isinstance(kernel, Int8):
        return start + product(x, widen(kernel))
    if transposed:
        return start + product(x * kernel.scale, kernel.values)
    return start + product(x, kernel.values) * kernel.scale


def _add_in_blocks(start, x, kernel: Frozen, transposed: bool):
    """Widen `BLOCK` output channels at a time; for a single row, a few input channels at a time."""
    if x.shape[0] == 1 and not transposed:
        y = _single_row(x, _values(kernel))
        return start + (y * kernel.scale if isinstance(kernel, Int8) else y)
    out = start.shape[1]
    block = min(BLOCK, out)
    full = out // block

    def add(y, first, size):
        def cut(array, axis):
            return jax.lax.dynamic_slice_in_dim(array, first, size, axis)

        wide = widen(cut(_values(kernel), 0 if transposed else 1))
        if isinstance(kernel, Int8):
            wide = wide * (kernel.scale if transposed else cut(kernel.scale, 0))
        part = cut(y, 1) + x @ (wide.T if transposed else wide)
        return jax.lax.dynamic_update_slice_in_dim(y, part, first, 1)

    y = jax.lax.fori_loop(0, full, lambda s, y: add(y, s * block, block), start)
    return add(y, full * block, out - full * block) if full * block < out else y


def _single_row(x: Float32[Array, "1 i"], stored: Shaped[Array, "i o"]) -> Float32[Array, "1 o"]:
    """Return x @ stored, `MATVEC_ROWS` input rows at a time; the last step may have fewer."""
    rows = min(MATVEC_ROWS, x.shape[1])
    full = x.shape[1] // rows

    def product(x_part, block):
        # separate products and sums: XLA fuses them into one pass over the block, a dot would not
        terms = [widen(block[j])[None] * x_part[:, j : j + 1] for j in range(block.shape[0])]
        even, odd = sum(terms[::2]), sum(terms[1::2])
        return even + odd

    def step(s, y):
        x_part = jax.lax.dynamic_slice_in_dim(x, s * rows, rows, 1)
        return y + product(x_part, jax.lax.dynamic_slice_in_dim(stored, s * rows, rows))

    y = jax.lax.fori_loop(0, full, step, jnp.zeros((1, stored.shape[1]), jnp.float32))
    if full * rows < x.shape[1]:
        y = y + product(x[:, full * rows :], stored[full * rows :])
    return y
