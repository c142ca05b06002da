"""Drawn objects of many classes in several styles: what composed scenes are made of."""

from __future__ import annotations

import csv
import functools
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from lgjax.data.masks import box_of

STYLES = ("noto", "fluent")
HUES = {"red": 0, "orange": 28, "yellow": 50, "green": 125, "blue": 220, "purple": 280}  # degrees
PAINTS = ("red", "yellow", "green", "blue", "purple")  # that things can be painted in
_COLUMNS = 14
_PAINTED = "*"
_REACH = 45  # degrees of hue around a thing's own colour that are painted
_MIN_SATURATION = 70


class ThingClass(NamedTuple):
    """A class of things; no two classes of one `group` are in one scene, for a child may mix them up.

    shows: groups of things that are part of its drawings, of which nobody may be told that there is none;
    colours: for each style the word for its colour, or None where no one word fits; painted: for each style
    whether it can be painted in another colour.
    """

    slug: str
    name: str
    plural: str
    group: str
    shows: tuple[str, ...]
    colours: dict[str, str | None]
    painted: dict[str, bool]


@functools.cache
def classes() -> tuple[ThingClass, ...]:
    """All classes of the drawings that come with the package."""
    with resources.as_file(_assets() / "classes.tsv") as path, path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    out = []
    for row in rows:
        words = {style: row[f"{style}_colour"] for style in STYLES}
        out.append(
            ThingClass(
                slug=row["drawing"],
                name=row["name"],
                plural=row["plural"],
                group=row["group"],
                shows=tuple(row["shows"].split()),
                colours={
                    s: None if word == "-" else word.removeprefix(_PAINTED) for s, word in words.items()
                },
                painted={style: word.startswith(_PAINTED) for style, word in words.items()},
            )
        )
    return tuple(out)


def _assets():
    return resources.files("lgjax") / "assets" / "objects"


@functools.cache
def _sheet(style: str) -> tuple[UInt8[np.ndarray, "h w 4"], int]:
    with resources.as_file(_assets() / f"{style}.webp") as path:
        pixels = np.asarray(PIL.Image.open(path).convert("RGBA"))
    return pixels, pixels.shape[1] // _COLUMNS


@functools.lru_cache(maxsize=4096)
def drawing(slug: str, style: str) -> PIL.Image.Image:
    """The drawing of a class, RGBA, cut to what is drawn. `style` is one of `STYLES` or a folder of PNGs.

    Raises:
        ValueError: the folder has no such drawing.
    """
    if style in STYLES:
        pixels, cell = _sheet(style)
        index = [one.slug for one in classes()].index(slug)
        row, column = divmod(index, _COLUMNS)
        image = PIL.Image.fromarray(
            pixels[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        )
    else:
        path = Path(style) / f"{slug}.png"
        if not path.is_file():
            raise ValueError(f"no drawing {path}")
        image = PIL.Image.open(path).convert("RGBA")
    x0, y0, x1, y1 = box_of(np.asarray(image.getchannel("A")) > 127).astype(int).tolist()
    return image.crop((x0, y0, x1, y1))


def paint(image: PIL.Image.Image, own: str, colour: str) -> PIL.Image.Image:
    """Turn what has the colour `own` in a drawing into `colour`; both are words of `HUES`."""
    alpha = image.getchannel("A")
    hsv = np.array(image.convert("RGB").convert("HSV"))
    degrees = hsv[..., 0].astype(np.int32) * 360 // 256
    bright = hsv[..., 1] > _MIN_SATURATION
    away = (degrees - HUES[own] + 180) % 360 - 180
    middle = int(np.median(away[bright & (np.asarray(alpha) > 127) & (np.abs(away) < _REACH)]))
    away = (away - middle + 180) % 360 - 180
    painted = (np.abs(away) < _REACH) & bright
    turned = (away // 2 + HUES[colour]) % 360
    hsv[..., 0] = np.where(painted, turned * 256 // 360, hsv[..., 0])
    if colour == "yellow":  # dark yellow is brown
        hsv[..., 2] = np.where(painted, 255 - (255 - hsv[..., 2]) // 3, hsv[..., 2])
    out = PIL.Image.fromarray(hsv, "HSV").convert("RGB")
    out.putalpha(alpha)
    return out


@functools.cache
def photos(folder: str) -> tuple[PIL.Image.Image, ...]:
    """Photographic backgrounds: "train" or "held_out" of the package, or the pictures of a folder.

    Raises:
        ValueError: there is no picture.
    """
    own = resources.files("lgjax") / "assets" / "backgrounds" / folder
    place = Path(str(own)) if own.is_dir() else Path(folder)
    paths = sorted(path for path in place.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise ValueError(f"no .jpg or .png in '{folder}' for backgrounds")
    return tuple(PIL.Image.open(path).convert("RGB") for path in paths)
