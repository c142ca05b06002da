"""Overlap of boxes in float64; boxes are (x0, y0, x1, y1), continuous coordinates (no pixel is added)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

Boxes = Float[np.ndarray, "_ 4"]


def box_iou(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]) -> Float64[np.ndarray, "n m"]:
    """Intersection over union of every box of `a` with every one of `b`; 0 where a box has no area."""
    shared, union, _ = _areas(a, b)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def box_giou(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]) -> Float64[np.ndarray, "n m"]:
    """Generalised intersection over union, in [-1, 1]. Source: Rezatofighi et al. 2019."""
    _, union, hull = _areas(a, b)
    return box_iou(a, b) - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)


def _areas(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas of intersection, union and hull of every pair."""
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    inner = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    outer = np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2])
    shared = inner.clip(0).prod(-1)
    sizes = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b)]
    return shared, sizes[0] + sizes[1] - shared, outer.prod(-1)
