"""Position codes, reference points and anchors; what depends on a size alone is a numpy constant."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LevelSizes = tuple[tuple[int, int], ...]  # (height, width) of each feature level


def _divisors(features: int) -> np.ndarray:
    return 10000.0 ** (2 * (np.arange(features) // 2) / features)


def _interleaved(angles: np.ndarray) -> np.ndarray:
    codes = np.empty(angles.shape, np.float64)
    codes[..., 0::2], codes[..., 1::2] = np.sin(angles[..., 0::2]), np.cos(angles[..., 1::2])
    return codes


@functools.cache
def sine_position_map(height: int, width: int, features: int) -> np.ndarray:
    """Sine code of a map, float32 [height * width, features]: first half codes y, second half x.

    The coordinate of cell i is (i + 1) / (size + 1e-6) * 2 pi. Source: spec/grounding_model.md 4.1.
    """
    half = features // 2
    y = (np.arange(height) + 1) / (height + 1e-6) * 2 * math.pi
    x = (np.arange(width) + 1) / (width + 1e-6) * 2 * math.pi
    code_y = _interleaved(y[:, None] / _divisors(half))
    code_x = _interleaved(x[:, None] / _divisors(half))
    code = np.concatenate(
        [
            np.broadcast_to(code_y[:, None], (height, width, half)),
            np.broadcast_to(code_x[None], (height, width, half)),
        ],
        axis=-1,
    )
    return code.reshape(height * width, features).astype(np.float32)


@functools.cache
def cell_centres(level_sizes: LevelSizes) -> np.ndarray:
    """Centres (x, y) in [0, 1] of all cells, levels concatenated, float32 [tokens, 2]."""
    centres = []
    for height, width in level_sizes:
        y, x = np.meshgrid(
            (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
        )
        centres.append(np.stack([x, y], -1).reshape(-1, 2))
    return np.concatenate(centres).astype(np.float32)


@functools.cache
def anchor_logits(level_sizes: LevelSizes) -> np.ndarray:
    """Inverse-sigmoid anchors (cx, cy, w, h) of all cells, float32 [tokens, 4]; +inf marks an invalid cell.

    Level l has anchors of side 0.05 * 2^l; a cell is valid when all four numbers lie strictly within
    (0.01, 0.99). Source: spec/grounding_model.md 5.2.
    """
    sides = [np.full(h * w, 0.05 * 2.0**level, np.float32) for level, (h, w) in enumerate(level_sizes)]
    side = np.concatenate(sides)[:, None]
    anchors = np.concatenate([cell_centres(level_sizes), side, side], -1)
    valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdims=True)
    safe = np.where(valid, anchors, np.float32(0.5))
    return np.where(valid, np.log(safe / (1 - safe)), np.float32(np.inf)).astype(np.float32)


def sine_box_code(boxes: Float[Array, "*b q 4"], features: int) -> Float[Array, "*b q f"]:
    """Sine code of (cx, cy, w, h) boxes in [0, 1]: `features` numbers for each of cy, cx, w, h in turn.

    `features` is even: sines and cosines take turns.

    Source: spec/grounding_model.md 5.3.
    """
    divisors = jnp.asarray(_divisors(features)[::2], jnp.float32)  # a sine and a cosine share each
    ordered = jnp.stack([boxes[..., 1], boxes[..., 0], boxes[..., 2], boxes[..., 3]], -1)
    angles = ordered[..., None] * (2 * math.pi) / divisors
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(*boxes.shape[:-1], 4 * features)


def inverse_sigmoid(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(x / (1 - x)) with x clipped to [0, 1] and both parts to at least 1e-5."""
    x = jnp.clip(x, 0.0, 1.0)
    return jnp.log(jnp.maximum(x, 1e-5) / jnp.maximum(1 - x, 1e-5))


def cxcywh_to_xyxy(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """Turn (cx, cy, w, h) into (x0, y0, x1, y1)."""
    centre, size = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([centre - size / 2, centre + size / 2], -1)


def resize_bilinear(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b h2 w2 c"]:
    """Bilinear resize with half-pixel centres and edge clamping (align_corners=False), no antialiasing."""
    for axis, (old, new) in ((1, (x.shape[1], height)), (2, (x.shape[2], width))):
        if old == new:
            continue
        centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, None)
        low = np.minimum(np.floor(centre).astype(np.int32), old - 1)
        high = np.minimum(low + 1, old - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = new
        fraction = jnp.asarray((centre - low).astype(np.float32).reshape(shape))
        below, above = jnp.take(x, low, axis), jnp.take(x, high, axis)
        x = below * (1 - fraction) + above * fraction
    return x


def level_starts(level_sizes: LevelSizes) -> tuple[int, ...]:
    """Index of the first token of each level in the concatenated sequence."""
    return tuple(int(n) for n in np.cumsum([0] + [h * w for h, w in level_sizes[:-1]]))


def split_levels(tokens: Float[Array, "b n c"], level_sizes: LevelSizes) -> list[jax.Array]:
    """Cut concatenated tokens into maps [b, h, w, c], one for each level."""
    maps, start = [], 0
    for height, width in level_sizes:
        part = jax.lax.slice_in_dim(tokens, start, start + height * width, axis=1)
        maps.append(part.reshape(tokens.shape[0], height, width, tokens.shape[2]))
        start += height * width
    return maps
