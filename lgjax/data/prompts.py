"""Visual prompts of training: which objects are clicked and which boxed, where, and with how much noise.

Prompts are (cx, cy, w, h) in [0, 1] of the picture's frame, which for the network is the square canvas.
Source: spec/visual_prompts.md 7.2; spec/training_and_data.md 8.2.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

CLICK_RADIUS = 3  # pixels; half the side of the box that stands for a click
NOISE = 0.4  # of half the size for the centre, of the size for the sides
CLICK_NOISE = 0.01  # of the noise of boxes


def draw_num_clicks(num_objects: int, rng: np.random.Generator) -> int:
    """Draw how many of the objects, from the first one on, are clicked; the others are boxed.

    Uniform from int(0.33 n) to n, both possible.
    """
    return int(rng.integers(int(0.33 * num_objects), num_objects, endpoint=True))


def draw_click(mask: Bool[np.ndarray, "h w"], rng: np.random.Generator) -> tuple[int, int]:
    """Draw a pixel (x, y) of a mask, each with the same chance; (0, 0) if it is empty."""
    found = np.flatnonzero(mask)
    if not len(found):
        return 0, 0
    y, x = divmod(int(rng.choice(found)), mask.shape[1])
    return x, y


def click_box(x: int | float, y: int | float, size: tuple[int, int]) -> Float32[np.ndarray, " 4"]:
    """The prompt of a clicked pixel: a box of 6 pixels around it, in a frame of `size` (width, height)."""
    width, height = size
    side = 2 * CLICK_RADIUS
    return np.asarray([x / width, y / height, side / width, side / height], np.float32)


def normalise_boxes(boxes: Shaped[np.ndarray, "n 4"], size: tuple[int, int]) -> Float32[np.ndarray, "n 4"]:
    """Turn (x0, y0, x1, y1) in pixels of a frame of `size` (width, height) into (cx, cy, w, h) in [0, 1]."""
    corners = boxes.reshape(-1, 2, 2) / np.asarray(size, np.float64)
    return np.concatenate([corners.mean(1), corners[:, 1] - corners[:, 0]], 1).astype(np.float32)


def add_noise(
    prompts: Float32[np.ndarray, "n 4"], is_box: Int[np.ndarray, " n"], uniform: Float[np.ndarray, "n 4"]
) -> Float32[np.ndarray, "n 4"]:
    """Move and stretch prompts by `uniform` numbers in [0, 1), one for each coordinate; clipped to [0, 1].

    The centre moves by up to 0.4 of half the size, each side changes by up to 0.4 of itself; clicks get a
    hundredth of that. 0.5 everywhere changes nothing.
    """
    reach = np.concatenate([prompts[:, 2:] / 2, prompts[:, 2:]], 1) * np.float32(NOISE)
    reach = reach * np.where(is_box, 1, CLICK_NOISE).astype(np.float32)[:, None]
    moved = prompts + (2 * uniform.astype(np.float32) - 1) * reach
    return np.clip(moved, 0, 1)
