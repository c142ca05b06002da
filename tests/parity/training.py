"""Targets and points of the training and matcher files, generated as spec/grounding_model.md 15.1 says."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lgjax.losses.grounding import Targets
from lgjax.losses.points import IMPORTANCE, NUM_POINTS, OVERSAMPLE
from tests.parity.openseed import generator


def target(seed: int, height: int, width: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (x0, y0, x1, y1) in pixels and masks (ellipses in the boxes) of one image."""
    draw = generator(seed)
    centres, sides = draw.uniform(0.2, 0.8, (n, 2)), draw.uniform(0.15, 0.4, (n, 2))
    scale = np.asarray([width, height])
    boxes = np.concatenate([(centres - sides / 2) * scale, (centres + sides / 2) * scale], 1).astype(
        np.float32
    )
    y, x = np.mgrid[:height, :width] + 0.5
    middles, halves = (
        (boxes[:, :2] + boxes[:, 2:]).astype(np.float64) / 2,
        (boxes[:, 2:] - boxes[:, :2]) / 2.0,
    )
    masks = [
        ((x - mx) / hx) ** 2 + ((y - my) / hy) ** 2 <= 1
        for (mx, my), (hx, hy) in zip(middles.astype(np.float64), halves.astype(np.float64), strict=True)
    ]
    return boxes, np.asarray(masks, bool).reshape(n, height, width)


def pad_targets(
    boxes: list[np.ndarray],
    masks: list[np.ndarray],
    labels: list[np.ndarray],
    phrase_mask: np.ndarray,
    size: tuple[int, int],
    extra: int = 0,
) -> Targets:
    """Targets of a batch, `extra` padded objects more than needed; boxes are (cx, cy, w, h) in [0, 1]."""
    b, t, (height, width) = len(boxes), max(map(len, boxes)) + extra, size
    out = Targets(
        boxes=np.zeros((b, t, 4), np.float32),
        object_mask=np.zeros((b, t), bool),
        has_mask=np.zeros((b, t), bool),
        object_phrases=np.zeros((b, t, phrase_mask.shape[1]), bool),
        phrase_mask=phrase_mask,
        masks=np.zeros((b, t, height, width), bool),
        image_mask=np.ones(b, bool),
    )
    for i, n in enumerate(map(len, boxes)):
        out.boxes[i, :n] = boxes[i]
        out.object_mask[i, :n] = out.has_mask[i, :n] = True
        out.object_phrases[i, :n, : labels[i].shape[1]] = labels[i]
        out.masks[i, :n, : masks[i].shape[1], : masks[i].shape[2]] = masks[i]
    return jax.tree.map(jnp.asarray, out)


@functools.cache
def table(seed: int, rows: int, count: int) -> np.ndarray:
    return generator(seed).random((rows, count, 2), dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class TablePoints:
    """Fixed tables in place of random points; row j belongs to the j-th pair, image by image, by query."""

    batch: int
    pairs: int

    def matching(self, output: jax.Array) -> jax.Array:
        shared = jnp.asarray(table(9001, 1, NUM_POINTS))
        return jnp.broadcast_to(shared, (self.batch, NUM_POINTS, 2))

    def losses(self, output: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        over = jnp.asarray(table(9002, max(self.pairs, 1), NUM_POINTS * OVERSAMPLE))
        extra = jnp.asarray(table(9003, max(self.pairs, 1), NUM_POINTS - int(IMPORTANCE * NUM_POINTS)))
        row = jnp.arange(queries.shape[0])[:, None]
        # unmatched objects come last; what they get does not matter
        order = jnp.where(queries >= 0, queries + 10_000 * row, 10**8).ravel()
        rank = jnp.argsort(jnp.argsort(order)).reshape(queries.shape)
        return over[rank], extra[rank]
