"""Multi-scale deformable attention: row gathers in a scan over (level, point) pairs, and their gradient."""

from __future__ import annotations

import functools
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lgjax.models.layers import Linear, xavier
from lgjax.models.position import LevelSizes, level_starts

Rows = jax.Array


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
    _, queries, _, levels, points, _ = locations.shape
    if tokens != sum(h * w for h, w in level_sizes) or levels != len(level_sizes):
        raise ValueError(f"value has {tokens} tokens in {levels} levels, level_sizes are {level_sizes}")
    scale = np.asarray([(w, h) for h, w in level_sizes], np.float32)[:, None, :]
    pixels = locations.astype(jnp.float32) * scale - 0.5
    count = b * queries * heads
    xy = pixels.transpose(3, 4, 5, 0, 1, 2).reshape(levels * points, 2, count)
    flat_weights = weights.astype(jnp.float32).transpose(3, 4, 0, 1, 2).reshape(levels * points, count)
    rows = value.astype(jnp.float32).reshape(b * tokens * heads, channels)
    out = cast(jax.Array, _sample(rows, xy, flat_weights, level_sizes, heads, (b, queries)))
    return out.reshape(b, queries, heads * channels)


def _offset_bias(heads: int, levels: int, points: int):
    """Fresh sampling offsets: head k looks in direction 2 pi k / heads, point p at distance p + 1."""
    angle = 2 * np.pi * np.arange(heads) / heads
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    direction /= np.abs(direction).max(-1, keepdims=True)
    bias = direction[:, None, None] * (np.arange(points) + 1)[None, None, :, None]
    flat = np.broadcast_to(bias, (heads, levels, points, 2)).reshape(-1)
    return lambda key, shape, dtype=jnp.float32: jnp.asarray(flat, dtype).reshape(shape)


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
        values = linear(width, ("hidden", "hidden"), kernel_init=xavier, name="value_proj")(value)
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
        sampled = multi_scale_deformable_attention(
            values.reshape(b, -1, heads, width // heads),
            locations,
            weights.reshape(b, q, heads, levels, points),
            level_sizes,
        )
        return linear(width, ("hidden", "hidden"), kernel_init=xavier, name="output_proj")(sampled)
