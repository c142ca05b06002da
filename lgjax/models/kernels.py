"""Kernels in every stored form: floats, packed into few bytes, with low-rank changes.

`quantize` rounds to 8 or 4 bits; `lay_out_for_cpu`, at loading, gives matrices without loss the form that
CPUs read fastest. `lgjax.models.matmul` multiplies with all of them.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Shaped

Bits = Literal[4, 8]
GROUP = 64  # inputs that share a step of 4 bits
INPUTS = {"uint8": 2, "int32": 4, "uint32": 8}  # of a stored value; other types hold one each
LARGE = 2**20  # a float32 kernel of so many entries is multiplied faster by CPUs if it is stored by outputs


class Packed(NamedTuple):
    """A frozen kernel of i inputs and o outputs in few bytes.

    values: uint16 [i, o] are the bits of bfloat16 numbers; int8 [i, o] are whole steps of the scale, -127 to
    127; uint8 [i / 2, o] are two steps of 4 bits, -7 to 7, kept as 1 to 15: of a group of inputs the first
    half lies in the low bits, the second in the high ones. Words are what CPUs read: int32 [i / 4, o] hold
    four steps of 8 bits, uint32 [i / 8, o] eight of 4 bits, the first part of a group (of all inputs, for 8
    bits) lowest; half the range is added to all but the highest, which keeps its sign. scale: one for each
    group of inputs and each output (a table has one for each row instead); None for bits.
    """

    values: Shaped[Array, "*layers held o"]
    scale: Float32[Array, "*layers groups o2"] | None


class LayerOf(NamedTuple):
    """One layer of a packed kernel of several, which a loop over layers reads where it lies."""

    stack: Packed
    number: Int[Array, ""] | int


class Transposed(NamedTuple):
    """A kernel of floats that is stored by outputs, as PyTorch stores it."""

    values: Float[Array, "*layers o i"]


class LowRank(NamedTuple):
    """A kernel base + down @ up: a base that stays as it is and a trained change of few ranks.

    Source: LoRA (Hu et al. 2021), section 4.1, with alpha = r.
    """

    base: Float[Array, "*layers i o"] | Packed | LayerOf | Transposed
    down: Float[Array, "*layers i r"]
    up: Float[Array, "*layers r o"]


FORMS = (Packed, LayerOf, Transposed, LowRank)
Kernel = Float[Array, "*layers i o"] | Packed | LayerOf | Transposed | LowRank


def lay_out_for_cpu(params: dict[str, Any]) -> dict[str, Any]:
    """Give the matrices of a parameter dict the form that CPUs read fastest; returns the same dict.

    Leaves named `kernel` of rank 2 or 3 (stacked layers), bases of such kernels with a low-rank change, and
    `embed_tokens`: bfloat16 becomes `Packed` bits, kernels in whole steps become words, and large float32
    kernels `Transposed`. Nothing is lost. In place and one by one, so that never more than one matrix is held
    twice; all other leaves stay as they are. Source: spec/performance_notes.md 6.
    """
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            lay_out_for_cpu(leaf)
        elif name == "embed_tokens":
            params[name] = _bits(leaf)
        elif name == "kernel":
            own = isinstance(leaf, LowRank)
            params[name] = leaf._replace(base=_laid_out(leaf.base)) if own else _laid_out(leaf)
    return params


def _laid_out(kernel: Any) -> Any:
    if isinstance(kernel, Packed):
        return _words(kernel)
    if isinstance(kernel, Transposed):
        return kernel
    large = kernel.ndim in (2, 3) and kernel.shape[-2] * kernel.shape[-1] >= LARGE
    return Transposed(_swapped(kernel)) if large and kernel.dtype == jnp.float32 else _bits(kernel)


@jax.jit
def _swapped(kernel: Float[Array, "*layers i o"]) -> Float[Array, "*layers o i"]:
    return jnp.swapaxes(kernel, -1, -2)


def _bits(kernel: Any) -> Any:
    if isinstance(kernel, Packed) or kernel.ndim not in (2, 3) or kernel.dtype != jnp.bfloat16:
        return kernel
    return Packed(jnp.asarray(np.asarray(kernel).view(np.uint16)), None)  # a bitcast under jit would copy


def _words(kernel: Packed) -> Packed:
    """A packed kernel in whole steps as words, if these divide among its inputs."""
    if kernel.values.dtype in (jnp.int8, jnp.uint8) and shape_of(kernel)[-2] % INPUTS["int32"] == 0:
        return _joined_to_words(kernel)
    return kernel


@jax.jit
def _joined_to_words(packed: Packed) -> Packed:
    assert packed.scale is not None
    bits, dtype = (8, jnp.int32) if packed.values.dtype == jnp.int8 else (4, jnp.uint32)
    *layers, groups, outputs = packed.scale.shape
    held = steps_of(packed.values.reshape(*layers, groups, -1, outputs))
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
    if isinstance(kernel, LayerOf):
        return shape_of(kernel.stack)[1:]
    if isinstance(kernel, Packed):
        *layers, height, outputs = kernel.values.shape
        return (*layers, height * INPUTS.get(kernel.values.dtype.name, 1), outputs)
    if isinstance(kernel, Transposed):
        *layers, outputs, inputs = kernel.values.shape
        return (*layers, inputs, outputs)
    return kernel.shape


def outputs_of(kernel: Float[Array, "i o"] | Transposed, first: int, end: int) -> Any:
    """Return the kernel of the outputs `first` to `end` - 1 alone, in the same form."""
    if isinstance(kernel, Transposed):
        return Transposed(kernel.values[first:end])
    return kernel[:, first:end]


def widen(packed: Packed) -> Float32[Array, "*layers i o"]:
    """Return the float32 numbers of a packed kernel."""
    wide = jnp.concatenate(wide_parts(packed), axis=-2)
    return wide.reshape(*wide.shape[:-3], -1, wide.shape[-1])


def wide_parts(packed: Packed) -> list[Float32[Array, "*layers groups i2 o"]]:
    """The numbers of all inputs of each group, or of bytes of 4 bits the first halves, then the second."""
    groups = groups_of(packed)
    *layers, height, outputs = packed.values.shape
    parts = steps_of(packed.values.reshape(*layers, groups, height // groups, outputs))
    return parts if packed.scale is None else [part * packed.scale[..., None, :] for part in parts]


def steps_of(values: Shaped[Array, "*lead rows o"]) -> list[Float32[Array, "*lead inputs o"]]:
    """The numbers of stored values: of words all, in the order of the inputs; of bytes of 4 bits first those
    of the low bits, then those of the high ones."""
    if values.dtype == jnp.uint16:
        return [jax.lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)]
    if values.dtype == jnp.uint8:
        return [half.astype(jnp.float32) - 8 for half in (values & 15, values >> 4)]
    if is_word(values.dtype):
        bits = 32 // INPUTS[values.dtype.name]
        signs = sum(1 << place for place in range(bits - 1, 31, bits))  # of all parts but the highest
        left = jnp.arange(32 - bits, -1, -bits)[:, None, None]  # brings each part to the highest place
        parts = ((jax.lax.bitcast_convert_type(values, jnp.int32) ^ signs)[..., None, :, :] << left) >> (
            32 - bits
        )
        return [parts.reshape(*values.shape[:-2], -1, values.shape[-1]).astype(jnp.float32)]
    return [values.astype(jnp.float32)]


def is_word(dtype: DTypeLike) -> bool:
    return INPUTS.get(np.dtype(dtype).name, 1) > 2


def groups_of(packed: Packed) -> int:
    return 1 if packed.scale is None else packed.scale.shape[-2]


def dense(kernel: Kernel) -> Float32[Array, "*layers i o"]:
    """Return a kernel of any form as one float32 array, a low-rank change added to its base."""
    if isinstance(kernel, LowRank):
        return dense(kernel.base) + jnp.matmul(kernel.down, kernel.up, precision="highest")
    if isinstance(kernel, LayerOf):
        return widen(jax.tree.map(lambda part: part[kernel.number], kernel.stack))
    if isinstance(kernel, Packed):
        return widen(kernel)
    stored = jnp.swapaxes(kernel.values, -1, -2) if isinstance(kernel, Transposed) else kernel
    return stored.astype(jnp.float32)


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
