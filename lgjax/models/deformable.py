"""Multi-scale deformable attention: row gathers in a scan over (level, point) pairs, and their gradient.

Samples are linear in what they are taken of, so values may be projected before or after: all tokens once
for many queries, what few queries have read for these.
"""

from __future__ import annotations

import functools
import math
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lgjax.models.kernels import dense
from lgjax.models.layers import Linear, param, xavier
from lgjax.models.matmul import matmul
from lgjax.models.position import LevelSizes, level_starts

Rows = jax.Array

READ = 16  # multiply-adds of a product in the time of reading one number of a row, forward and back


def _corners(xy: Rows, size: Rows, start: Rows, num_heads: int, row_base: Rows) -> tuple[Rows, Rows, Rows]:
    """Row indices [4, R], the bilinear fractions [2, R] and the inside flags [4, R] of sampling points.

    xy [2, R] in pixels of the level (centre of cell 0 at 0); size = (height, width).
    """
    low = jnp.floor(xy)
    fraction = xy - low
    x0, y0 = low.astype(jnp.int32)
    height, width = size
    indices, inside = [], []
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x, y = x0 + dx, y0 + dy
        inside.append((x >= 0) & (x < width) & (y >= 0) & (y < height))
        cell = start + jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
        indices.append(row_base + cell * num_heads)
    return jnp.stack(indices), fraction, jnp.stack(inside)


def _corner_weights(fraction: Rows, weight: Rows, inside: Rows) -> Rows:
    fx, fy = fraction
    corner = jnp.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx])
    return jnp.where(inside, corner * weight, 0.0)


def _steps(xy: Rows, weights: Rows, level_sizes: LevelSizes, points: int) -> tuple:
    """The scanned inputs: one entry for each (level, point)."""
    sizes = np.repeat(np.asarray(level_sizes, np.int32), points, axis=0)
    starts = np.repeat(np.asarray(level_starts(level_sizes), np.int32), points)
    return xy, weights, jnp.asarray(sizes), jnp.asarray(starts)


def _gather(rows: Rows, index: Rows) -> Rows:
    return rows.at[index].get(mode="promise_in_bounds")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _sample(
    rows: Rows, xy: Rows, weights: Rows, level_sizes: LevelSizes, num_heads: int, row_base: tuple[int, int]
) -> Rows:
    """Weighted sum of samples: rows [b*tokens*heads, c], xy [L*P, 2, R], weights [L*P, R] -> [R, c]."""
    base = _row_base(row_base, num_heads, rows.shape[0])

    def step(total: Rows, inputs: tuple) -> tuple[Rows, None]:
        xy_i, weight, size, start = inputs
        index, fraction, inside = _corners(xy_i, size, start, num_heads, base)
        # without the barrier XLA computes the index arithmetic again for every channel
        index, corner = jax.lax.optimization_barrier((index, _corner_weights(fraction, weight, inside)))
        for k in range(4):
            total = total + _gather(rows, index[k]) * corner[k][:, None]
        return total, None

    points = xy.shape[0] // len(level_sizes)
    total = jnp.zeros((xy.shape[2], rows.shape[1]), rows.dtype)
    return jax.lax.scan(step, total, _steps(xy, weights, level_sizes, points))[0]


def _row_base(row_base: tuple[int, int], num_heads: int, num_rows: int) -> Rows:
    """First row of each sampled row: batch offset plus head. row_base = (batch, queries)."""
    batch, queries = row_base
    offset = np.arange(batch, dtype=np.int32)[:, None, None] * (num_rows // batch)
    base = offset + np.arange(num_heads, dtype=np.int32)
    return jnp.asarray(np.broadcast_to(base, (batch, queries, num_heads)).reshape(-1))


def _sample_forward(rows, xy, weights, level_sizes, num_heads, row_base):
    return _sample(rows, xy, weights, level_sizes, num_heads, row_base), (rows, xy, weights)


def _sample_backward(level_sizes, num_heads, row_base, saved, grad):
    rows, xy, weights = saved
    base = _row_base(row_base, num_heads, rows.shape[0])

    def step(grad_rows: Rows, inputs: tuple) -> tuple[Rows, tuple[Rows, Rows]]:
        xy_i, weight, size, start = inputs
        index, fraction, inside = _corners(xy_i, size, start, num_heads, base)
        corner, pull = jax.vjp(lambda f, w: _corner_weights(f, w, inside), fraction, weight)
        index, corner = jax.lax.optimization_barrier((index, corner))
        grad_corner = jnp.stack([jnp.einsum("rc,rc->r", _gather(rows, index[k]), grad) for k in range(4)])
        for k in range(4):
            grad_rows = grad_rows.at[index[k]].add(grad * corner[k][:, None], mode="promise_in_bounds")
        return grad_rows, pull(grad_corner)

    points = xy.shape[0] // len(level_sizes)
    grad_rows, (grad_xy, grad_weights) = jax.lax.scan(
        step, jnp.zeros_like(rows), _steps(xy, weights, level_sizes, points)
    )
    return grad_rows, grad_xy, grad_weights


_sample.defvjp(_sample_forward, _sample_backward)


def multi_scale_deformable_attention(
    value: Float[Array, "b tokens heads c"],
    locations: Float[Array, "b q heads levels points 2"],
    weights: Float[Array, "b q heads levels points"],
    level_sizes: LevelSizes,
) -> Float[Array, "b q heads*c"]:
    """Sample `value` bilinearly at `locations` and add up with `weights`, all in float32.

    locations are (x, y) in [0, 1] of each level, zero outside the map (align_corners=False).
    Source: Deformable DETR, eq. 3; spec/grounding_model.md 4.3.

    Raises:
        ValueError: `value` does not hold as many tokens as `level_sizes` say.
    """
    b, tokens, heads, channels = value.shape
    queries = locations.shape[1]
    xy, flat_weights = _flat(tokens, locations, weights, level_sizes)
    rows = value.astype(jnp.float32).reshape(b * tokens * heads, channels)
    out = cast(jax.Array, _sample(rows, xy, flat_weights, level_sizes, heads, (b, queries)))
    return out.reshape(b, queries, heads * channels)


def sample_then_project(
    tokens: Float[Array, "b tokens i"],
    kernel: Float[Array, "i o"],
    bias: Float[Array, " o"],
    locations: Float[Array, "b q heads levels points 2"],
    weights: Float[Array, "b q heads levels points"],
    level_sizes: LevelSizes,
) -> Float[Array, "b q o"]:
    """`multi_scale_deformable_attention` of the values tokens @ kernel + bias, without making all of them.

    Raises:
        ValueError: there are not as many tokens as `level_sizes` say.
    """
    (b, count, width), (_, queries, heads, *_) = tokens.shape, locations.shape
    xy, flat_weights = _flat(count, locations, weights, level_sizes)

    def sample(rows: Rows) -> Rows:
        # every head reads the same rows
        out = cast(jax.Array, _sample(rows, xy, flat_weights, level_sizes, 1, (b, queries * heads)))
        return out.reshape(b * queries, heads, -1)

    read = sample(tokens.astype(jnp.float32).reshape(b * count, width))
    inside = sample(jnp.ones((b * count, 1)))  # what lies outside a map has no bias either
    by_head = kernel.astype(jnp.float32).reshape(width, heads, -1)
    out = jnp.einsum("nhi,ihc->nhc", read, by_head) + inside * bias.reshape(heads, -1)
    return out.reshape(b, queries, -1)


def projects_after(queries: int, tokens: int, width: int, samples: int) -> bool:
    """Whether queries with `samples` each read so little that values are best projected afterwards."""
    return READ * queries * samples * 4 <= tokens * width


def _flat(
    tokens: int,
    locations: Float[Array, "b q heads levels points 2"],
    weights: Float[Array, "b q heads levels points"],
    level_sizes: LevelSizes,
) -> tuple[Float[Array, "steps 2 rows"], Float[Array, "steps rows"]]:
    """Pixels and weights as `_sample` has them."""
    b, queries, heads, levels, points, _ = locations.shape
    if tokens != sum(h * w for h, w in level_sizes) or levels != len(level_sizes):
        raise ValueError(f"value has {tokens} tokens in {levels} levels, level_sizes are {level_sizes}")
    scale = np.asarray([(w, h) for h, w in level_sizes], np.float32)[:, None, :]
    pixels = locations.astype(jnp.float32) * scale - 0.5
    steps, count = levels * points, b * queries * heads
    xy = pixels.transpose(3, 4, 5, 0, 1, 2).reshape(steps, 2, count)
    return xy, weights.astype(jnp.float32).transpose(3, 4, 0, 1, 2).reshape(steps, count)


def _offset_bias(heads: int, levels: int, points: int):
    """Fresh sampling offsets: head k looks in direction 2 pi k / heads, point p at distance p + 1."""
    angle = 2 * np.pi * np.arange(heads) / heads
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    direction /= np.abs(direction).max(-1, keepdims=True)
    bias = direction[:, None, None] * (np.arange(points) + 1)[None, None, :, None]
    flat = np.broadcast_to(bias, (heads, levels, points, 2)).reshape(-1)
    return lambda key, shape, dtype=jnp.float32: jnp.asarray(flat, dtype).reshape(shape)


class SampledValues(nn.Module):
    """What queries read of a linear layer's outputs, which are the values of all heads."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        locations: Float[Array, "b q heads levels points 2"],
        weights: Float[Array, "b q heads levels points"],
        level_sizes: LevelSizes,
    ) -> Float[Array, "b q c"]:
        (b, count, width), (_, queries, heads, *_) = tokens.shape, locations.shape
        kernel = param(self, "kernel", xavier, ("hidden", "hidden"), (width, width))
        bias = param(self, "bias", nn.initializers.zeros_init(), ("hidden",), (width,)).astype(self.dtype)
        tokens, where = tokens.astype(self.dtype), (locations, weights, level_sizes)
        if projects_after(queries, count, width, math.prod(weights.shape[2:])):
            return sample_then_project(tokens, dense(kernel), bias, *where)
        values = matmul(tokens, kernel) + bias
        return multi_scale_deformable_attention(values.reshape(b, count, heads, -1), *where)


class DeformableAttention(nn.Module):
    """Deformable attention with its four projections. Source: spec/grounding_model.md 4.3."""

    num_heads: int
    num_levels: int
    num_points: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b q c"],
        reference: Float[Array, "#b q #l k"],
        value: Float[Array, "b n c"],
        level_sizes: LevelSizes,
    ) -> Float[Array, "b q c"]:
        """`reference` is (x, y) or (cx, cy, w, h) in [0, 1], one for every level or one for all."""
        b, q, width = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        linear = functools.partial(Linear, dtype=self.dtype)
        zeros = nn.initializers.zeros_init()
        offsets = linear(
            heads * levels * points * 2,
            ("hidden", "samples"),
            kernel_init=zeros,
            bias_init=_offset_bias(heads, levels, points),
            name="sampling_offsets",
        )(query)
        scores = linear(
            heads * levels * points, ("hidden", "samples"), kernel_init=zeros, name="attention_weights"
        )(query)
        offsets = offsets.astype(jnp.float32).reshape(b, q, heads, levels, points, 2)
        weights = jax.nn.softmax(scores.astype(jnp.float32).reshape(b, q, heads, levels * points))
        reference = reference[:, :, None, :, None]  # heads and points share it
        if reference.shape[-1] == 2:
            sizes = np.asarray([(w, h) for h, w in level_sizes], np.float32)[:, None, :]
            locations = reference + offsets / sizes
        else:
            locations = reference[..., :2] + offsets / points * reference[..., 2:] * 0.5
        weights = weights.reshape(b, q, heads, levels, points)
        sampled = SampledValues(self.dtype, name="value_proj")(value, locations, weights, level_sizes)
        return linear(width, ("hidden", "hidden"), kernel_init=xavier, name="output_proj")(sampled)
