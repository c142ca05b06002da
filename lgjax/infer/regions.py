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


def parse_click(text: str) -> Click:
    """Read "X,Y".

    Raises:
        ValueError: other than two numbers.
    """
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise ValueError(f"'{text}' is no click; write X,Y in pixels")
    return Click(*numbers)


def parse_box(text: str) -> Box:
    """Read "X0,Y0,X1,Y1".

    Raises:
        ValueError: other than four numbers.
    """
    numbers = _numbers(text)
    if len(numbers) != 4:
        raise ValueError(f"'{text}' is no box; write X0,Y0,X1,Y1 in pixels")
    return Box(*numbers)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def prompt_of(region: Region, size: ImageSize) -> Float32[np.ndarray, " 4"]:
    """The prompt box (cx, cy, w, h) in [0, 1] of the canvas for a picture of `size` (width, height).

    Raises:
        ValueError: the region lies outside the picture.
    """
    if isinstance(region, Click):
        return prompt_from_click(region.x, region.y, size)
    # a box of an answer ends at the edge of the picture, a prompt at its last pixel
    width, height = size
    x0, x1 = (width - 1 if x == width else x for x in (region.x0, region.x1))
    y0, y1 = (height - 1 if y == height else y for y in (region.y0, region.y1))
    return prompt_from_box(x0, y0, x1, y1, size)
