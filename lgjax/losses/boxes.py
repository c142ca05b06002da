"""Overlap of boxes. Source: spec/grounding_model.md 9; spec/visual_prompts.md 7.4."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-6


def _areas(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return sides[..., 0] * sides[..., 1]


def iou(a: Float[Array, "*#b 4"], b: Float[Array, "*#b 4"]) -> tuple[jax.Array, jax.Array]:
    """Intersection over union, and the union, of boxes (x0, y0, x1, y1); shapes broadcast."""
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    sides = jnp.maximum(high - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    union = _areas(a) + _areas(b) - shared
    return shared / (union + EPSILON), union


def generalized_iou(a: Float[Array, "*#b 4"], b: Float[Array, "*#b 4"]) -> Float[Array, "*b"]:
    """IoU less the empty share of the smallest box around both, in [-1, 1]; shapes broadcast.

    Source: Rezatofighi et al. 2019, with the original's 1e-6 in both denominators.
    """
    overlap, union = iou(a, b)
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    sides = jnp.maximum(high - low, 0)
    hull = sides[..., 0] * sides[..., 1]
    return overlap - (hull - union) / (hull + EPSILON)
