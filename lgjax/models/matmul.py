"""Products with kernels of every stored form (`lgjax.models.kernels`).

XLA for CPU turns a whole bfloat16 or int8 kernel into a float32 copy before it multiplies, and training keeps
the copies for the way back: 27 GB for a 7B model. Packed kernels escape that: for many rows a loop widens
some outputs at a time; few rows are read one by one, and each sums some inputs at a time, widened in
registers alone. They are frozen: gradients pass through them, none reaches them. Other platforms widen inside
the product. Kernels of floats use the plain product, and those that are stored by outputs the order of
factors in which XLA for CPU is fastest.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Shaped

from lgjax.models.kernels import (
    GROUP,
    INPUTS,
    Kernel,
    LayerOf,
    LowRank,
    Packed,
    Transposed,
    dense,
    groups_of,
    is_word,
    shape_of,
    steps_of,
    wide_parts,
)

MATVEC_ROWS = 8  # input rows unrolled in one step when `x` has a single row: as many as a cache has ways
WORD_ROWS = 4  # the same of words, four or eight inputs each: two are read slower, eight compile longer
SHARES = 16  # parts of the inputs, each summed on its own, that cores may share out among them then
ONE_BY_ONE = 4  # rows up to so many, twice as many of words, are read faster one after the other
BLOCK = 128  # outputs widened at once otherwise; the float32 block stays small
FEW_ROWS = 128  # up to so many, a kernel stored by outputs goes first in the product


def matmul(x: Float[Array, "*batch i"], kernel: Kernel) -> Float[Array, "*batch o"]:
    """Return x @ kernel in the dtype of `x`, the kernel of one layer.

    Packed kernels are summed in float32 and are constants.
    """
    if isinstance(kernel, (Packed, LayerOf)):
        return _frozen(x, kernel)
    if x.ndim > 2:  # on CPUs the gradient of a product with several batch axes copies that of its output
        y = matmul(x.reshape(-1, x.shape[-1]), kernel)
        return y.reshape(*x.shape[:-1], y.shape[-1])
    if isinstance(kernel, LowRank):
        change, base = matmul(matmul(x, kernel.down), kernel.up), kernel.base
        packed = isinstance(base, (Packed, LayerOf))
        return _frozen(x, base, change) if packed else matmul(x, base) + change
    if isinstance(kernel, Transposed):
        return matmul_transposed(x, kernel.values)
    return jnp.matmul(x, kernel.astype(x.dtype))


def matmul_transposed(
    x: Float[Array, "*batch i"], table: Float[Array, "o i"] | Packed
) -> Float[Array, "*batch o"]:
    """Return x @ table.T in the dtype of `x`, table [out, in], e.g. a tied embedding."""
    if isinstance(table, Packed):
        return _frozen(x, table, table=True)
    rows, table = x.reshape(-1, x.shape[-1]), table.astype(x.dtype)
    product = _few_rows if len(rows) <= FEW_ROWS else _many_rows
    return product(rows, table).reshape(*x.shape[:-1], len(table))


def _few_rows(x: Float[Array, "m i"], table: Float[Array, "o i"]) -> Float[Array, "m o"]:
    def table_first(x, table):
        # without the barrier XLA turns the product round, and for CPUs that takes two to three times as long
        vectors = x[0] if len(x) == 1 else x.T  # a vector takes less than a matrix of one column
        return jax.lax.optimization_barrier(table @ vectors).T.reshape(len(x), len(table))

    return jax.lax.platform_dependent(x, table, cpu=table_first, default=_many_rows)


def _many_rows(x: Float[Array, "m i"], table: Float[Array, "o i"]) -> Float[Array, "m o"]:
    return jnp.matmul(x, table.T)


@functools.partial(jax.jit, static_argnames="table")  # layers of one shape are traced once
def _frozen(x: Array, kernel: Packed | LayerOf, start: Array | None = None, table: bool = False) -> Array:
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


def _zeros(x: Array, kernel: Packed | LayerOf, how: _Product) -> Array:
    shape = x.shape[0], shape_of(kernel)[0 if how.table != how.back else 1]

    def made_of(x):
        # XLA for CPU fills plain zeros of all layers before the first, and holds them until needed
        return jnp.broadcast_to(jnp.minimum(jnp.abs(x[:, :1]), 0), shape)

    return jax.lax.platform_dependent(x, cpu=made_of, default=lambda x: jnp.zeros(shape, jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _add_product(start, x, kernel: Packed | LayerOf, how: _Product):
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


def _add_whole(start, x, kernel: Packed | LayerOf, how: _Product):
    wide = dense(kernel).astype(how.dtype)
    wide = wide.T if how.table != how.back else wide
    return start + jnp.matmul(x.astype(how.dtype), wide, preferred_element_type=jnp.float32)


def _add_in_blocks(start, x, kernel: Packed | LayerOf, how: _Product):
    """Widen `BLOCK` outputs at a time; for few rows, each a few inputs at a time, and nothing in memory."""
    if isinstance(kernel, Packed):  # here, not before: what a scan keeps for the way back would be a copy
        kernel = LayerOf(jax.tree.map(lambda part: part[None], kernel), 0)
    at_once = ONE_BY_ONE * (2 if is_word(kernel.stack.values.dtype) else 1)
    if 1 <= len(x) <= at_once and not (how.table or how.back):
        return start + jax.lax.map(lambda row: _single_row(row[None], kernel)[0], x)
    out = shape_of(kernel)[0 if how.table else 1]
    block = min(BLOCK, out)
    full = out // block
    inputs = None if how.back else _split(x, kernel)

    def add(y, first, size):
        def cut(array):
            return jax.lax.dynamic_slice_in_dim(array, first, size, 1)

        def part_of(stack):
            _, height, width = stack.shape
            place, sizes = ((first, 0), (size, width)) if how.table else ((0, first), (height, size))
            return jax.lax.dynamic_slice(stack, (kernel.number, *place), (1, *sizes))[0]

        wide = [part.reshape(-1, part.shape[-1]) for part in wide_parts(jax.tree.map(part_of, kernel.stack))]
        wide = [part.T if how.table != how.back else part for part in wide]
        if inputs is None:
            return [sums + cut(x) @ part for sums, part in zip(y, wide, strict=True)]
        # a product for each half: to put the halves in turns takes longer than the product with few rows
        added = sum((part @ half for part, half in zip(inputs, wide, strict=True)), cut(y[0]))
        return [jax.lax.dynamic_update_slice_in_dim(y[0], added, first, 1)]

    y = _split(start, kernel) if how.back else [start]
    y = jax.lax.fori_loop(0, full, lambda s, y: add(y, s * block, block), y)
    y = add(y, full * block, out - full * block) if full * block < out else y
    return _join(y)


def _split(x: Float32[Array, "m i"], kernel: LayerOf) -> list[Float32[Array, "m i2"]]:
    """Inputs in the order in which `wide_parts` has them."""
    if kernel.stack.values.dtype != jnp.uint8:
        return [x]
    groups = x.reshape(len(x), -1, 2, GROUP // 2)
    return [groups[:, :, half].reshape(len(x), -1) for half in (0, 1)]


def _join(parts: list[Float32[Array, "m i2"]]) -> Float32[Array, "m i"]:
    """The way back from `_split`."""
    if len(parts) == 1:
        return parts[0]
    groups = [part.reshape(len(part), -1, GROUP // len(parts)) for part in parts]
    return jnp.stack(groups, 2).reshape(len(parts[0]), -1)


def _single_row(x: Float32[Array, "1 i"], kernel: LayerOf) -> Float32[Array, "1 o"]:
    """Return x @ kernel in steps of a few rows of values of each share; the last may have fewer."""
    (held, scale), layer = kernel
    layers, height, outputs = held.shape
    count = x.shape[1] // height
    grouped = scale is not None and scale.shape[1] > 1  # a step is a part of a group
    rows = WORD_ROWS if is_word(held.dtype) else MATVEC_ROWS
    group = GROUP // count if grouped else 2 * rows  # at least two steps, so that XLA keeps the loop
    shares = 1 if height % group else math.gcd(height // group, SHARES)
    length = height // shares
    values = held.reshape(layers, shares, length, outputs)
    x = x.reshape(groups_of(kernel.stack), count, -1).swapaxes(0, 1).reshape(count, shares, length)
    places, added = _places(held.dtype)
    excess = (x * added[:, None, None]).sum(0)
    x = x / places[:, None, None]

    def add(y, first, rows, excess):
        x_part = jax.lax.dynamic_slice_in_dim(x, first, rows, axis=2)
        # a slice for each row, and sums, not a dot: XLA fuses them into one pass over the bytes
        terms = [
            steps * x_part[part, :, j, None]
            for j in range(rows)
            for part, steps in enumerate(_raised(_row(values, layer, first + j)))
        ]
        part = sum(terms[::2]) + sum(terms[1::2])
        part = part - excess if added.any() else part
        if scale is None or not grouped:
            return y + part
        return y + part * _row(scale.reshape(layers, shares, -1, outputs), layer, first // group)

    rows = min(rows, length)
    steps, left = divmod(length, rows)
    excesses = excess[:, : steps * rows].reshape(shares, steps, rows).sum(2)[None, ..., None]
    y = jnp.zeros((shares, outputs))
    y = jax.lax.fori_loop(0, steps, lambda s, y: add(y, s * rows, rows, _row(excesses, 0, s)), y)
    y = add(y, length - left, left, excess[:, -left:].sum(1, keepdims=True)) if left else y
    y = y.sum(0, keepdims=True)
    return y if grouped or scale is None else y * scale[layer]


def _raised(values: Shaped[Array, "*shape"]) -> list[Float32[Array, "*shape"]]:
    """The numbers of stored values, by parts; those of words as they lie there, which a mask gives alone."""
    if not is_word(values.dtype):
        return steps_of(values)
    count, word = INPUTS[values.dtype.name], jax.lax.bitcast_convert_type(values, jnp.int32)
    bits = 32 // count
    masks = np.asarray([((1 << bits) - 1) << (bits * place) for place in range(count)], np.uint32)
    return [(word & mask).astype(jnp.float32) for mask in masks.view(np.int32)]


def _places(dtype: DTypeLike) -> tuple[Float32[np.ndarray, " count"], Float32[np.ndarray, " count"]]:
    """By how much `_raised` multiplies the steps of each part, and what was added to them before."""
    count = INPUTS.get(np.dtype(dtype).name, 1)
    if not is_word(dtype):
        return np.ones(count, np.float32), np.zeros(count, np.float32)
    bits, places = 32 // count, np.arange(count)
    added = np.where(places < count - 1, 1 << (bits - 1), 0)
    return np.exp2(bits * places).astype(np.float32), added.astype(np.float32)


def _row(
    array: Shaped[Array, "layers shares rows o"], layer: Array | int, number: Array | int
) -> Shaped[Array, "shares o"]:
    _, shares, _, outputs = array.shape
    return jax.lax.dynamic_slice(array, (layer, 0, number, 0), (1, shares, 1, outputs))[0, :, 0]
