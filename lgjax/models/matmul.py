"""Matrix products with kernels of every stored form: floats, packed into few bytes, with low-rank changes.

XLA for CPU turns a whole bfloat16 or int8 kernel into a float32 copy before it multiplies, and training keeps
the copies for the way back: 27 GB for a 7B model. Packed kernels escape that: for many rows a loop widens
some outputs at a time, for a single row it sums some inputs at a time, widened in registers alone. They are
frozen: gradients pass through them, none reaches them. `quantize` rounds to 8 or 4 bits; `pack_for_cpu`, at
loading, gives bfloat16 and whole steps without loss the form that a CPU reads fastest. Other platforms widen
inside the product. Kernels of floats use the plain product, but for a single float32 row on CPUs, where XLA
walks down the columns of a large kernel.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Shaped

Bits = Literal[4, 8]
GROUP = 64  # inputs that share a step of 4 bits
INPUTS = {"uint8": 2, "int32": 4, "uint32": 8}  # of a stored value; other types hold one each
MATVEC_ROWS = 8  # input rows unrolled in one step when `x` has a single row: as many as a cache has ways
WORD_ROWS = 4  # the same of words, four or eight inputs each: two are read slower, eight compile longer
SHARES = 16  # parts of the inputs, each summed on its own, that cores may share out among them then
MATVEC_SIZE = 2**21  # entries of a float32 kernel from which on this beats the dot of XLA for CPU
BLOCK = 128  # outputs widened at once otherwise; the float32 block stays small


class Packed(NamedTuple):
    """A frozen kernel of i inputs and o outputs in few bytes.

    values: uint16 [i, o] are the bits of bfloat16 numbers; int8 [i, o] are whole steps of the scale, -127 to
    127; uint8 [i / 2, o] are two steps of 4 bits, -7 to 7, kept as 1 to 15: of a group of inputs the first
    half lies in the low bits, the second in the high ones. Words are what CPUs read: int32 [i / 4, o] hold
    four steps of 8 bits, uint32 [i / 8, o] eight of 4 bits, the first part of a group (of all inputs, for 8
    bits) lowest; half the range is added to all but the highest, which keeps its sign. scale: one for each
    group of inputs and each output (a table has one for each row instead); None for bits. (A float32 kernel
    takes this form, with itself as values, only to be multiplied by a single row.)
    """

    values: Shaped[Array, "*layers held o"]
    scale: Float32[Array, "*layers groups o2"] | None


class LowRank(NamedTuple):
    """A kernel base + down @ up: a base that stays as it is and a trained change of few ranks.

    Source: LoRA (Hu et al. 2021), section 4.1, with alpha = r.
    """

    base: Float[Array, "*layers i o"] | Packed
    down: Float[Array, "*layers i r"]
    up: Float[Array, "*layers r o"]


Kernel = Float[Array, "*layers i o"] | Packed | LowRank


def pack_for_cpu(params: dict[str, Any]) -> dict[str, Any]:
    """Give the matrices of a parameter dict the form that CPUs read fastest; returns the same dict.

    Leaves named `kernel` of rank 2 or 3 (stacked layers), bases of such kernels with a low-rank change, and
    `embed_tokens`: bfloat16 becomes `Packed` bits, and kernels in whole steps become words. Nothing is lost.
    In place and one by one, so that never more than one matrix is held twice; all other leaves stay as they
    are. Source: spec/performance_notes.md 6.
    """
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            pack_for_cpu(leaf)
        elif name in ("kernel", "embed_tokens"):
            pack = _bits if name == "embed_tokens" else lambda kernel: _words(_bits(kernel))
            params[name] = leaf._replace(base=pack(leaf.base)) if isinstance(leaf, LowRank) else pack(leaf)
    return params


def _bits(kernel: Any) -> Any:
    if isinstance(kernel, Packed) or kernel.ndim not in (2, 3) or kernel.dtype != jnp.bfloat16:
        return kernel
    return Packed(jnp.asarray(np.asarray(kernel).view(np.uint16)), None)  # a bitcast under jit would copy


def _words(kernel: Any) -> Any:
    """A packed kernel in whole steps as words, if these divide among its inputs."""
    inputs = shape_of(kernel)[-2] if isinstance(kernel, Packed) else 0
    if inputs and kernel.values.dtype in (jnp.int8, jnp.uint8) and inputs % INPUTS["int32"] == 0:
        return _joined_to_words(kernel)
    return kernel


@jax.jit
def _joined_to_words(packed: Packed) -> Packed:
    assert packed.scale is not None
    bits, dtype = (8, jnp.int32) if packed.values.dtype == jnp.int8 else (4, jnp.uint32)
    *layers, groups, outputs = packed.scale.shape
    held = _steps(packed.values.reshape(*layers, groups, -1, outputs))
    parts = [
        part.astype(jnp.int32) for steps in held for part in jnp.split(steps, 32 // bits // len(held), -2)
    ]
    word = parts.pop() << (32 - bits)
    for place, part in enumerate(parts):
        word |= (part + (1 << (bits - 1))) << (bits * place)
    word = jax.lax.bitcast_convert_type(word, dtype)
    return Packed(word.reshape(*layers, -1, outputs), packed.scale)


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
        return (*layers, height * INPUTS.get(kernel.values.dtype.name, 1), outputs)
    return kernel.shape


def widen(packed: Packed) -> Float32[Array, "*layers i o"]:
    """Return the float32 numbers of a packed kernel."""
    wide = jnp.concatenate(_wide_parts(packed), axis=-2)
    return wide.reshape(*wide.shape[:-3], -1, wide.shape[-1])


def _wide_parts(packed: Packed) -> list[Float32[Array, "*layers groups i2 o"]]:
    """The numbers of all inputs of each group, or of bytes of 4 bits the first halves, then the second."""
    groups = _groups(packed)
    *layers, height, outputs = packed.values.shape
    parts = _steps(packed.values.reshape(*layers, groups, height // groups, outputs))
    return parts if packed.scale is None else [part * packed.scale[..., None, :] for part in parts]


def _steps(values: Shaped[Array, "*lead rows o"]) -> list[Float32[Array, "*lead inputs o"]]:
    """The numbers of stored values: of words all, in the order of the inputs; of bytes of 4 bits first those
    of the low bits, then those of the high ones."""
    if values.dtype == jnp.uint16:
        return [jax.lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)]
    if values.dtype == jnp.uint8:
        return [half.astype(jnp.float32) - 8 for half in (values & 15, values >> 4)]
    if _is_word(values.dtype):
        bits = 32 // INPUTS[values.dtype.name]
        signs = sum(1 << place for place in range(bits - 1, 31, bits))  # of all parts but the highest
        left = jnp.arange(32 - bits, -1, -bits)[:, None, None]  # brings each part to the highest place
        parts = ((jax.lax.bitcast_convert_type(values, jnp.int32) ^ signs)[..., None, :, :] << left) >> (
            32 - bits
        )
        return [parts.reshape(*values.shape[:-2], -1, values.shape[-1]).astype(jnp.float32)]
    return [values.astype(jnp.float32)]


def _is_word(dtype: DTypeLike) -> bool:
    return INPUTS.get(np.dtype(dtype).name, 1) > 2


def _groups(packed: Packed) -> int:
    return 1 if packed.scale is None else packed.scale.shape[-2]


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
    """Return x @ kernel in the dtype of `x`, the kernel of one layer.

    Packed kernels are summed in float32 and are constants.
    """
    if isinstance(kernel, Packed):
        return _frozen(x, kernel)
    if x.ndim > 2:  # on CPUs the gradient of a product with several batch axes copies that of its output
        y = matmul(x.reshape(-1, x.shape[-1]), kernel)
        return y.reshape(*x.shape[:-1], y.shape[-1])
    if isinstance(kernel, LowRank):
        change, base = matmul(matmul(x, kernel.down), kernel.up), kernel.base
        return _frozen(x, base, change) if isinstance(base, Packed) else matmul(x, base) + change
    kernel = kernel.astype(x.dtype)
    if x.size != x.shape[-1] or x.dtype != jnp.float32 or kernel.size < MATVEC_SIZE:
        return jnp.matmul(x, kernel)
    return _float_row(x, kernel)


@jax.custom_jvp  # autodiff of the loop would copy the kernel
@jax.jit
def _float_row(x: Float32[Array, "*ones i"], kernel: Float32[Array, "i o"]) -> Float32[Array, "*ones o"]:
    def in_steps(x, kernel):
        return _single_row(x.reshape(1, -1), Packed(kernel, None)).reshape(*x.shape[:-1], -1)

    return jax.lax.platform_dependent(x, kernel, cpu=in_steps, default=jnp.matmul)


_float_row.defjvps(
    lambda x_dot, y, x, kernel: jnp.matmul(x_dot, kernel),
    lambda kernel_dot, y, x, kernel: jnp.matmul(x, kernel_dot),
)


def matmul_transposed(
    x: Float[Array, "*batch i"], table: Float[Array, "o i"] | Packed
) -> Float[Array, "*batch o"]:
    """Return x @ table.T in the dtype of `x`, table [out, in], e.g. a tied embedding."""
    if isinstance(table, Packed):
        return _frozen(x, table, table=True)
    return jnp.matmul(x, table.astype(x.dtype).T)


@functools.partial(jax.jit, static_argnames="table")  # layers of one shape are traced once
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
    shape = x.shape[0], shape_of(kernel)[0 if how.table != how.back else 1]

    def made_of(x):
        # XLA for CPU fills plain zeros of all layers before the first, and holds them until needed
        return jnp.broadcast_to(jnp.minimum(jnp.abs(x[:, :1]), 0), shape)

    return jax.lax.platform_dependent(x, cpu=made_of, default=lambda x: jnp.zeros(shape, jnp.float32))


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
    inputs = None if how.back else _split(x, kernel)

    def add(y, first, size):
        def cut(array, axis=axis):
            return jax.lax.dynamic_slice_in_dim(array, first, size, axis)

        wide = [part.reshape(-1, part.shape[-1]) for part in _wide_parts(jax.tree.map(cut, kernel))]
        wide = [part.T if how.table != how.back else part for part in wide]
        if inputs is None:
            return [sums + cut(x, 1) @ part for sums, part in zip(y, wide, strict=True)]
        # a product for each half: to put the halves in turns takes longer than the product with few rows
        added = sum((part @ half for part, half in zip(inputs, wide, strict=True)), cut(y[0], 1))
        return [jax.lax.dynamic_update_slice_in_dim(y[0], added, first, 1)]

    y = _split(start, kernel) if how.back else [start]
    y = jax.lax.fori_loop(0, full, lambda s, y: add(y, s * block, block), y)
    y = add(y, full * block, out - full * block) if full * block < out else y
    return _join(y)


def _split(x: Float32[Array, "m i"], kernel: Packed) -> list[Float32[Array, "m i2"]]:
    """Inputs in the order in which `_wide_parts` has them."""
    if kernel.values.dtype != jnp.uint8:
        return [x]
    groups = x.reshape(len(x), -1, 2, GROUP // 2)
    return [groups[:, :, half].reshape(len(x), -1) for half in (0, 1)]


def _join(parts: list[Float32[Array, "m i2"]]) -> Float32[Array, "m i"]:
    """The way back from `_split`."""
    if len(parts) == 1:
        return parts[0]
    groups = [part.reshape(len(part), -1, GROUP // len(parts)) for part in parts]
    return jnp.stack(groups, 2).reshape(len(parts[0]), -1)


def _single_row(x: Float32[Array, "1 i"], kernel: Packed) -> Float32[Array, "1 o"]:
    """Return x @ kernel in steps of a few rows of values of each share; the last may have fewer."""
    height, outputs = kernel.values.shape
    count = x.shape[1] // height
    grouped = kernel.scale is not None and kernel.scale.shape[0] > 1  # a step is a part of a group
    rows = WORD_ROWS if _is_word(kernel.values.dtype) else MATVEC_ROWS
    group = GROUP // count if grouped else 2 * rows  # at least two steps, so that XLA keeps the loop
    shares = 1 if height % group else math.gcd(height // group, SHARES)
    length = height // shares
    values = kernel.values.reshape(shares, length, outputs)
    scale = kernel.scale.reshape(shares, -1, outputs) if grouped and kernel.scale is not None else None
    x = x.reshape(_groups(kernel), count, -1).swapaxes(0, 1).reshape(count, shares, length)
    places, added = _places(kernel.values.dtype)
    excess = (x * added[:, None, None]).sum(0)
    x = x / places[:, None, None]

    def add(y, first, rows, excess):
        x_part = jax.lax.dynamic_slice_in_dim(x, first, rows, axis=2)
        # a slice for each row, and sums, not a dot: XLA fuses them into one pass over the bytes
        terms = [
            steps * x_part[part, :, j, None]
            for j in range(rows)
            for part, steps in enumerate(_raised(_row(values, first + j)))
        ]
        part = sum(terms[::2]) + sum(terms[1::2])
        part = part - excess if added.any() else part
        return y + (part if scale is None else part * _row(scale, first // group))

    rows = min(rows, length)
    steps, left = divmod(length, rows)
    excesses = excess[:, : steps * rows].reshape(shares, steps, rows).sum(2)[..., None]
    y = jnp.zeros((shares, outputs))
    y = jax.lax.fori_loop(0, steps, lambda s, y: add(y, s * rows, rows, _row(excesses, s)), y)
    y = add(y, length - left, left, excess[:, -left:].sum(1, keepdims=True)) if left else y
    y = y.sum(0, keepdims=True)
    return y if grouped or kernel.scale is None else y * kernel.scale


def _raised(values: Shaped[Array, "*shape"]) -> list[Float32[Array, "*shape"]]:
    """The numbers of stored values, by parts; those of words as they lie there, which a mask gives alone."""
    if not _is_word(values.dtype):
        return _steps(values)
    count, word = INPUTS[values.dtype.name], jax.lax.bitcast_convert_type(values, jnp.int32)
    bits = 32 // count
    masks = np.asarray([((1 << bits) - 1) << (bits * place) for place in range(count)], np.uint32)
    return [(word & mask).astype(jnp.float32) for mask in masks.view(np.int32)]


def _places(dtype: DTypeLike) -> tuple[Float32[np.ndarray, " count"], Float32[np.ndarray, " count"]]:
    """By how much `_raised` multiplies the steps of each part, and what was added to them before."""
    count = INPUTS.get(np.dtype(dtype).name, 1)
    if not _is_word(dtype):
        return np.ones(count, np.float32), np.zeros(count, np.float32)
    bits, places = 32 // count, np.arange(count)
    added = np.where(places < count - 1, 1 << (bits - 1), 0)
    return np.exp2(bits * places).astype(np.float32), added.astype(np.float32)


def _row(array: Shaped[Array, "shares rows o"], number: Array | int) -> Shaped[Array, "shares o"]:
    return jax.lax.dynamic_slice_in_dim(array, number, 1, axis=1)[:, 0]
