"""Matrix products with kernels of every stored form: floats, packed into few bytes, with low-rank changes.

XLA for CPU turns a whole bfloat16 or int8 kernel into a float32 copy before it multiplies, and training keeps
the copies for the way back: 27 GB for a 7B model. Packed kernels escape that: for many rows a loop widens
some outputs at a time, for a single row it sums some inputs at a time, widened in registers alone. They are
frozen: gradients pass through them, none reaches them. `bfloat16_bits` packs bfloat16 without loss (a view,
outside jit: inside, a bitcast copies), `quantize` rounds to 8 or 4 bits. Other platforms widen inside the
product; kernels of floats use the plain product everywhere.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Shaped

Bits = Literal[4, 8]
GROUP = 64  # inputs that share a step of 4 bits
MATVEC_ROWS = 16  # input rows unrolled in one step when `x` has a single row
SHARES = 8  # parts of the outputs that cores may share out among them then
BLOCK = 256  # outputs widened at once otherwise; the float32 block stays small


class Packed(NamedTuple):
    """A frozen kernel of i inputs and o outputs in few bytes.

    values: uint16 [i, o] are the bits of bfloat16 numbers; int8 [i, o] are whole steps of the scale, -127 to
    127; uint8 [i / 2, o] are two steps of 4 bits, -7 to 7, kept as 1 to 15: of a group of inputs the first
    half lies in the low bits, the second in the high ones. scale: one for each group of inputs and each
    output (a table has one for each row instead); None for bits.
    """

    values: Shaped[Array, "*layers bytes o"]
    scale: Float32[Array, "*layers groups o2"] | None


class LowRank(NamedTuple):
    """A kernel base + down @ up: a base that stays as it is and a trained change of few ranks.

    Source: LoRA (Hu et al. 2021), section 4.1, with alpha = r.
    """

    base: Float[Array, "*layers i o"] | Packed
    down: Float[Array, "*layers i r"]
    up: Float[Array, "*layers r o"]


Kernel = Float[Array, "*layers i o"] | Packed | LowRank


def bfloat16_bits(params: dict[str, Any]) -> dict[str, Any]:
    """Pack the bfloat16 matrices of a parameter dict without loss, for CPUs; returns the same dict.

    Leaves named `kernel` of rank 2 or 3 (stacked layers), bases of such kernels with a low-rank change, and
    `embed_tokens` become `Packed`, in place and one by one, so that never more than one matrix is held twice;
    all other leaves stay as they are. Source: spec/performance_notes.md 6.
    """
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            bfloat16_bits(leaf)
        elif name in ("kernel", "embed_tokens"):
            params[name] = leaf._replace(base=_bits(leaf.base)) if isinstance(leaf, LowRank) else _bits(leaf)
    return params


def _bits(kernel: Any) -> Any:
    if isinstance(kernel, Packed) or kernel.ndim not in (2, 3) or kernel.dtype != jnp.bfloat16:
        return kernel
    return Packed(jnp.asarray(np.asarray(kernel).view(np.uint16)), None)


@functools.partial(jax.jit, static_argnames="bits")
def quantize(kernel: Float[Array, "*layers i o"], bits: Bits = 8) -> Packed:
    """Return the nearest kernel of whole steps.

    The largest entry of a group is 127 steps of 8 bits, where a group is all inputs of an output, or 7 steps
    of 4 bits, where it is `GROUP` inputs. No entry moves by more than half a step; zeros stay zeros.

    Raises:
        ValueError: 4 bits of inputs that are no multiple of `GROUP`.
    """
    *layers, inputs, outputs = kernel.shape
    if bits == 4 and inputs % GROUP:
        raise ValueError(f"{inputs} inputs do not divide into groups of {GROUP} that share a step of 4 bits")
    groups, most = (1, 127) if bits == 8 else (inputs // GROUP, 7)
    wide = kernel.astype(jnp.float32).reshape(*layers, groups, -1, outputs)
    scale = jnp.maximum(jnp.abs(wide).max(-2) / most, jnp.finfo(jnp.float32).tiny)
    steps = jnp.round(wide / scale[..., None, :]).astype(jnp.int8)
    if bits == 4:
        low, high = jnp.split((steps + 8).astype(jnp.uint8), 2, axis=-2)
        steps = low | high << 4
    return Packed(steps.reshape(*layers, -1, outputs), scale)


@jax.jit
def quantize_table(table: Float[Array, "rows d"]) -> Packed:
    """Return the nearest table in steps of 8 bits, with a scale of its own for each row."""
    values, scale = quantize(table.T)
    return Packed(values.T, scale.T)


def shape_of(kernel: Kernel) -> tuple[int, ...]:
    """Shape [*layers, i, o] of a kernel of any form."""
    if isinstance(kernel, LowRank):
        return shape_of(kernel.base)
    if isinstance(kernel, Packed):
        *layers, height, outputs = kernel.values.shape
        return (*layers, height * (2 if kernel.values.dtype == jnp.uint8 else 1), outputs)
    return kernel.shape


def widen(packed: Packed) -> Float32[Array, "*layers i o"]:
    """Return the float32 numbers of a packed kernel."""
    groups = 1 if packed.scale is None else packed.scale.shape[-2]
    *layers, height, outputs = packed.values.shape
    parts = _steps(packed.values.reshape(*layers, groups, height // groups, outputs))
    wide = jnp.concatenate(parts, axis=-2)
    if packed.scale is not None:
        wide = wide * packed.scale[..., None, :]
    return wide.reshape(*layers, -1, outputs)


def _steps(values: Shaped[Array, "*shape"]) -> list[Float32[Array, "*shape"]]:
    """The numbers of stored values; of 4 bits those of the first half of a group, then of the second."""
    if values.dtype == jnp.uint16:
        return [jax.lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)]
    if values.dtype == jnp.uint8:
        return [half.astype(jnp.float32) - 8 for half in (values & 15, values >> 4)]
    return [values.astype(jnp.float32)]


def dense(kernel: Kernel) -> Float32[Array, "*layers i o"]:
    """Return a kernel of any form as one float32 array, a low-rank change added to its base."""
    if isinstance(kernel, LowRank):
        return dense(kernel.base) + jnp.matmul(kernel.down, kernel.up, precision="highest")
    return widen(kernel) if isinstance(kernel, Packed) else kernel.astype(jnp.float32)


def low_rank(
    kernel: Kernel, rank: int, key: jax.Array
) -> tuple[Float32[Array, "*layers i r"], Float32[Array, "*layers r o"]]:
    """Return (down, up) where training of `LowRank(kernel, down, up)` starts: random and zero, no change yet.

    Down is uniform within 1 / sqrt(i), as the weights of a fresh linear layer are.

    Raises:
        ValueError: a rank that the kernel cannot have.
    """
    *layers, i, o = shape_of(kernel)
    if not 1 <= rank <= min(i, o):
        raise ValueError(f"rank {rank} for a kernel [{i}, {o}]: choose 1 to {min(i, o)}")
    down = jax.random.uniform(key, (*layers, i, rank), minval=-1.0, maxval=1.0) * i**-0.5
    return down, jnp.zeros((*layers, rank, o))


def matmul(x: Float[Array, "*batch i"], kernel: Kernel) -> Float[Array, "*batch o"]:
    """Return x @ kernel in the dtype of `x`; packed kernels are summed in float32 and are constants."""
    if isinstance(kernel, LowRank):
        rows = x.reshape(-1, x.shape[-1])  # the gradient of a product over two axes copies `x` on CPUs
        change = matmul(matmul(rows, kernel.down), kernel.up)
        base = kernel.base
        y = _frozen(rows, base, change) if isinstance(base, Packed) else matmul(rows, base) + change
        return y.reshape(*x.shape[:-1], y.shape[-1])
    return _frozen(x, kernel) if isinstance(kernel, Packed) else jnp.matmul(x, kernel.astype(x.dtype))


def matmul_transposed(
    x: Float[Array, "*batch i"], table: Float[Array, "o i"] | Packed
) -> Float[Array, "*batch o"]:
    """Return x @ table.T in the dtype of `x`, table [out, in], e.g. a tied embedding."""
    if isinstance(table, Packed):
        return _frozen(x, table, table=True)
    return jnp.matmul(x, table.astype(x.dtype).T)


def _frozen(x: Array, kernel: Packed, start: Array | None = None, table: bool = False) -> Array:
    """Return start + x @ kernel, or x @ kernel.T of a table, in the dtype of `x`."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    how = _Product(x.dtype, table, back=False)
    start = _zeros(rows, kernel, how) if start is None else start.astype(jnp.float32)
    y: Array = _add_product(start, rows, kernel, how)
    return y.reshape(*x.shape[:-1], y.shape[-1]).astype(x.dtype)


class _Product(NamedTuple):
    """How a product is taken: the dtype of platforms other than CPUs; the outputs of a `table` are its first
    axis; the way `back` goes from outputs to inputs."""

    dtype: DTypeLike
    table: bool
    back: bool


def _zeros(x: Array, kernel: Packed, how: _Product) -> Array:
    return jnp.zeros((x.shape[0], shape_of(kernel)[0 if how.table != how.back else 1]), jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _add_product(start, x, kernel: Packed, how: _Product):
    """start [m, o] + x [m, i] @ kernel in float32, or start [m, i] + x [m, o] @ kernel.T on the way back.

    With a derivative of its own: autodiff of the loop would keep every widened block for the way back.
    """
    blocks, whole = (functools.partial(add, how=how) for add in (_add_in_blocks, _add_whole))
    return jax.lax.platform_dependent(start, x, kernel, cpu=blocks, default=whole)


def _forward(start, x, kernel, how):
    return _add_product(start, x, kernel, how), kernel


def _backward(how, kernel, gradient):
    back = how._replace(back=not how.back)
    return gradient, _add_product(_zeros(gradient, kernel, back), gradient, kernel, back), None


_add_product.defvjp(_forward, _backward)


def _add_whole(start, x, kernel: Packed, how: _Product):
    wide = widen(kernel).astype(how.dtype)
    wide = wide.T if how.table != how.back else wide
    return start + jnp.matmul(x.astype(how.dtype), wide, preferred_element_type=jnp.float32)


def _add_in_blocks(start, x, kernel: Packed, how: _Product):
    """Widen `BLOCK` outputs at a time; for a single row, a few inputs at a time, and nothing in memory."""
    if x.shape[0] == 1 and not (how.table or how.back):
        return start + _single_row(x, kernel)
    axis = 0 if how.table else 1
    out = kernel.values.shape[axis]
    block = min(BLOCK, out)
    full = out // block

    def add(y, first, size):
        def cut(array, axis=axis):
            return jax.lax.dynamic_slice_in_dim(array, first, size, axis)

        wide = widen(jax.tree.map(cut, kernel))
        wide = wide.T if how.table != how.back else wide
        if how.back:
            return y + cut(x, 1) @ wide
        return jax.lax.dynamic_update_slice_in_dim(y, cut(y, 1) + x @ wide, first, 1)

    y = jax.lax.fori_loop(0, full, lambda s, y: add(y, s * block, block), start)
    return add(y, full * block, out - full * block) if full * block < out else y


def _single_row(x: Float32[Array, "1 i"], kernel: Packed) -> Float32[Array, "1 o"]:
    """Return x @ kernel, a group or `MATVEC_ROWS` rows of values at a time; the last step may have fewer."""
    height, outputs = kernel.values.shape
    halves = x.shape[1] // height
    grouped = halves > 1  # 4 bits: a step is a group, which has its own scale
    rows = GROUP // 2 if grouped else min(MATVEC_ROWS, height)
    # XLA shares out the first of two axes among the cores, but never a single one
    shape = (SHARES, -1) if outputs % SHARES == 0 else (1, outputs)

    def row(array, number):
        return jax.lax.dynamic_slice_in_dim(array, number, 1).reshape(shape)

    def product(first, count):
        x_part = jax.lax.dynamic_slice_in_dim(x[0], first * halves, count * halves).reshape(halves, count)
        # a slice for each row, and sums, not a dot: XLA fuses them into one pass over the bytes
        terms = [
            steps * x_part[half, j]
            for j in range(count)
            for half, steps in enumerate(_steps(row(kernel.values, first + j)))
        ]
        return sum(terms[::2]) + sum(terms[1::2])

    def step(s, y):
        part = product(s * rows, rows)
        return y + (part * row(kernel.scale, s) if grouped else part)

    y = jax.lax.fori_loop(0, height // rows, step, jnp.zeros((1, outputs)).reshape(shape))
    y = y + product(height - height % rows, height % rows) if height % rows else y
    y = y.reshape(1, outputs)
    return y if grouped or kernel.scale is None else y * kernel.scale
