"""Regions that a question can point at: clicks and boxes in pixels of the picture."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32

from lgjax.data.images import ImageSize, prompt_from_box, prompt_from_click


@dataclasses.dataclass(frozen=True)
class Click:
    """A clicked pixel."""

    x: float | int
    y: float | int


@dataclasses.dataclass(frozen=True)
class Box:
    """A box by two opposite corner pixels."""

    x0: float | int
    y0: float | int
    x1: float | int
    y1: float | int


Region = Click | Box


def parse_region(text: str) -> Region:
    """Read "X,Y" as a click and "X0,Y0,X1,Y1" as a box.

    Raises:
        ValueError: other than two or four numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 2:
        return Click(*numbers)
    if len(numbers) == 4:
        return Box(*numbers)
    raise ValueError(f"'{text}' is no region; write X,Y for a click or X0,Y0,X1,Y1 for a box, in pixels")


def prompt_of(region: Region, size: ImageSize) -> Float32[np.ndarray, " 4"]:
    """The prompt box (cx, cy, w, h) in [0, 1] of the canvas for a picture of `size` (width, height).

    Raises:
        ValueError: the region lies outside the picture.
    """
    if isinstance(region, Click):
        return prompt_from_click(region.x, region.y, size)
    return prompt_from_box(region.x0, region.y0, region.x1, region.y1, size)
