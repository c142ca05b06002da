"""Masks at points: bilinear sampling, and points where a mask is least sure of itself.

Points are (x, y) in [0, 1] of the map. Source: PointRend; spec/grounding_model.md 9, 10.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped, UInt32

NUM_POINTS = 12544
OVERSAMPLE = 3
IMPORTANCE = 0.75


@dataclasses.dataclass(frozen=True)
class RandomPoints:
    """Uniformly random points that belong to a sample, an output and an object, wherever these stand.

    key: of this step; sample_ids: [b], which sample each row is; so neither the order of rows nor padding
    changes the points of any object. num_points: of one mask. Outputs go by their numbers.
    """

    key: jax.Array
    sample_ids: UInt32[Array, " b"]
    num_points: int = NUM_POINTS

    def matching(self, output: Int[Array, ""]) -> Float[Array, "b n 2"]:
        """Points of each image for the matching costs of an output, shared by its masks."""
        keys = self._keys("matching", output)
        return jax.vmap(lambda key: jax.random.uniform(key, (self.num_points, 2)))(keys)

    def losses(self, output: Int[Array, ""], queries: Int[Array, "b t"]) -> tuple[jax.Array, jax.Array]:
        """Points [b, t, m, 2] to choose the uncertain ones from, and [b, t, k, 2] to take as they are."""
        return self.of_objects("loss", output, queries.shape[1])

    def of_objects(self, use: str, output: Int[Array, ""], count: int) -> tuple[jax.Array, jax.Array]:
        """The same for `count` objects of each image."""
        extra = self.num_points - int(IMPORTANCE * self.num_points)
        over = OVERSAMPLE * self.num_points

        def draw(key: jax.Array, number: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(key, number), (over + extra, 2))

        rows = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(self._keys(use, output), jnp.arange(count))
        return rows[:, :, :over], rows[:, :, over:]

    def _keys(self, use: str, output: Int[Array, ""]) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(self.key, zlib.crc32(use.encode())), output)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, self.sample_ids)


def sample(maps: Shaped[Array, "*b h w"], points: Float[Array, "*b n 2"]) -> Float[Array, "*b n"]:
    """Values of maps at points, bilinear between cell centres and zero outside (align_corners=False).

    Gradients flow into the maps, not into the points.
    """
    *batch, height, width = maps.shape
    return _corners(maps.reshape(*batch, -1), (height, width), points, _take)


def sample_rows(maps: Float[Array, "b h w c"], points: Float[Array, "b n 2"]) -> Float[Array, "b n c"]:
    """All channels of a map at points that they share."""
    b, h, w, c = maps.shape
    return _corners(maps.reshape(b, h * w, c), (h, w), points, _take_rows)


def _take(flat: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.take_along_axis(flat, index, axis=-1).astype(jnp.float32) * weight


def _take_rows(flat: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.take_along_axis(flat, index[..., None], axis=-2) * weight[..., None]


def _corners(
    flat: jax.Array, size: tuple[int, int], points: jax.Array, take: Callable[..., jax.Array]
) -> jax.Array:
    height, width = size
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    out = None
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = left + dx, top + dy
        weight = (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row))
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        value = take(flat, index.astype(jnp.int32), jnp.where(inside, weight, 0))
        out = value if out is None else out + value
    assert out is not None
    return out


def uncertain_points(
    logits: Float[Array, "*b h w"],
    over: Float[Array, "*b m 2"],
    extra: Float[Array, "*b k 2"],
    num_uncertain: int,
) -> Float[Array, "*b n 2"]:
    """Choose the points of a mask loss: those of `over` with the smallest |logit|, and all of `extra`.

    `num_uncertain` are chosen; n is that many and k. Their order means nothing. No gradients.
    Source: PointRend section 3.2.
    """
    values = -jnp.abs(sample(jax.lax.stop_gradient(logits), over))
    _, chosen = jax.lax.top_k(values, num_uncertain)
    return jnp.concatenate([jnp.take_along_axis(over, chosen[..., None], axis=-2), extra], axis=-2)
