"""Regions that a question can point at, in pixels of the picture, and the prompts that they become.

The model was trained with clicks and boxes alone, so every other region is read as one of them: `reading`
says which. Source: spec/visual_prompts.md 1.2, 7.2.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32

from lgjax.data.images import ImageSize, Number, load_image, prompt_from_box, prompt_from_click
from lgjax.data.masks import box_of
from lgjax.draw import deepest_point

Reading = Literal["click", "box"]


@dataclasses.dataclass(frozen=True)
class Click:
    """A clicked pixel."""

    x: Number
    y: Number


@dataclasses.dataclass(frozen=True)
class Box:
    """A box by two opposite corner pixels."""

    x0: Number
    y0: Number
    x1: Number
    y1: Number


@dataclasses.dataclass(frozen=True)
class Scribble:
    """Points (x, y) of one thing: several clicks on it, or a line drawn over it.

    Read as a click it is the point nearest to the mean of all, which the user has touched (the mean itself,
    which the released demo takes, may lie beside the thing); read as a box, the box around all points.
    """

    points: tuple[tuple[Number, Number], ...]
    reading: Reading = "click"


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """The pixels of a thing, bool [height, width] of the picture.

    Read as a box it is the box around them; read as a click, the pixel farthest from all outside (exact
    Euclidean distance transform).
    """

    pixels: Bool[np.ndarray, "h w"]
    reading: Reading = "box"


@dataclasses.dataclass(frozen=True)
class Again:
    """A region of an earlier question of the conversation; all of these are numbered from 1 as they came."""

    number: int


Shown = Click | Box | Scribble | Mask
Region = Shown | Again


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


def parse_scribble(text: str) -> Scribble:
    """Read "X,Y X,Y ...".

    Raises:
        ValueError: other than pairs of numbers.
    """
    points = [_numbers(part) for part in text.split()]
    if not points or any(len(point) != 2 for point in points):
        raise ValueError(f"'{text}' is no scribble; write X,Y X,Y ... in pixels, with spaces between points")
    return Scribble(tuple((x, y) for x, y in points))


def load_mask(path: str | Path) -> Mask:
    """Read a mask from a picture file: its bright pixels (grey above 127).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, or a damaged one.
    """
    return Mask(np.asarray(load_image(path).convert("L")) > 127)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def as_trained(region: Shown, size: ImageSize) -> Click | Box:
    """The click or box that a region is read as in a picture of `size` (width, height).

    Raises:
        ValueError: a scribble or mask without points or with points outside, or a mask of another size.
    """
    if isinstance(region, Click | Box):
        return region
    if isinstance(region, Scribble):
        if not region.points:
            raise ValueError("a scribble without points says nothing; give at least one (x, y)")
        for x, y in region.points:
            prompt_from_click(x, y, size)  # refuses a point outside
        points = np.asarray(region.points, np.float64)
        if region.reading == "box":
            return Box(*points.min(0).tolist(), *points.max(0).tolist())
        away = ((points - points.mean(0)) ** 2).sum(1)
        return Click(*region.points[int(away.argmin())])
    height, width = region.pixels.shape
    if (width, height) != size:
        raise ValueError(f"the mask is {width} x {height} pixels, but the picture {size[0]} x {size[1]}")
    if not region.pixels.any():
        raise ValueError("the mask has no pixels, so it shows nothing")
    if region.reading == "click":
        return Click(*deepest_point(region.pixels))
    x0, y0, x1, y1 = box_of(region.pixels).tolist()
    return Box(x0, y0, x1 - 1, y1 - 1)


def prompt_of(region: Click | Box, size: ImageSize) -> Float32[np.ndarray, " 4"]:
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
