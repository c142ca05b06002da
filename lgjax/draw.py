"""Pictures and coloured text of grounded phrases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import Bool, Float32
from rich.text import Text

from lgjax.text.markup import COLOURS

REGION_COLOUR = (155, 155, 155)
PLAIN_COLOUR = (235, 235, 235)
SHEET_COLOUR = (24, 24, 24)
_MASK_ALPHA = 0.45
_MIN_WIDTH = 480


@runtime_checkable
class Drawable(Protocol):
    """A phrase to draw: its place in the text, its boxes in pixels, its masks at the size of the picture."""

    @property
    def text(self) -> str: ...
    @property
    def span(self) -> tuple[int, int]: ...
    @property
    def boxes(self) -> Float32[np.ndarray, "n 4"]: ...
    @property
    def masks(self) -> Bool[np.ndarray, "n h w"]: ...


def phrase_colour(index: int) -> tuple[int, int, int]:
    """RGB colour of the index-th phrase; the original's twenty, over and over."""
    return COLOURS[index % len(COLOURS)]


def split_by_phrase(text: str, phrases: Sequence[Drawable]) -> list[tuple[str, int | None]]:
    """Cut text into (piece, index of its phrase or None), in reading order, nothing lost.

    Where phrases overlap the inner (later) part belongs to the phrase that starts later.
    """
    owner: list[int | None] = [None] * len(text)
    for index in sorted(range(len(phrases)), key=lambda i: (phrases[i].span[0], -phrases[i].span[1])):
        start, end = phrases[index].span
        owner[start:end] = [index] * (end - start)
    pieces: list[tuple[str, int | None]] = []
    for i, character in enumerate(text):
        if pieces and pieces[-1][1] == owner[i]:
            pieces[-1] = (pieces[-1][0] + character, owner[i])
        else:
            pieces.append((character, owner[i]))
    return pieces


def blend_mask(
    picture: np.ndarray, mask: Bool[np.ndarray, "h w"], colour: tuple[int, int, int], alpha: float
) -> None:
    """Mix `colour` into the pixels of `picture` (float, [h, w, 3], changed in place) where `mask` is True."""
    picture[mask] = (1 - alpha) * picture[mask] + alpha * np.asarray(colour, picture.dtype)


def overlay(
    image: PIL.Image.Image,
    text: str,
    phrases: Sequence[Drawable],
    region_mask: Bool[np.ndarray, "h w"] | None = None,
) -> PIL.Image.Image:
    """Draw masks, boxes and words of all phrases, and the coloured text on a strip below.

    Small pictures are enlarged so that the text can be read.
    """
    scale = max(1, -(-_MIN_WIDTH // max(image.size)))
    picture = np.asarray(image, np.float32).copy()
    if region_mask is not None:
        blend_mask(picture, region_mask, REGION_COLOUR, 0.6)
    for index, phrase in enumerate(phrases):
        for mask in phrase.masks:
            blend_mask(picture, mask, phrase_colour(index), _MASK_ALPHA)
    image = PIL.Image.fromarray(picture.round().astype(np.uint8))
    image = image.resize((image.width * scale, image.height * scale), PIL.Image.Resampling.NEAREST)
    draw = PIL.ImageDraw.Draw(image)
    size = max(12, max(image.size) // 45)
    font = _font(size)
    for index, phrase in enumerate(phrases):
        for box in phrase.boxes:
            x0, y0, x1, y1 = (float(v) * scale for v in box)
            draw.rectangle(
                (x0, y0, max(x0, x1), max(y0, y1)), outline=phrase_colour(index), width=max(2, size // 8)
            )
            _label(draw, (x0, y0), phrase.text or str(index + 1), phrase_colour(index), font, image.size)
    return _with_text(image, text, phrases, font, size)


def _font(size: int) -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
    """A font of the system that knows many scripts, else the one that comes with Pillow (basic Latin)."""
    for name in ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"):
        try:
            return PIL.ImageFont.truetype(name, size)
        except OSError:
            continue
    return PIL.ImageFont.load_default(size)


def _label(draw: PIL.ImageDraw.ImageDraw, corner, text: str, colour, font, picture_size) -> None:
    text = text if len(text) <= 40 else text[:39] + "…"
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    x = min(max(corner[0], 0), max(picture_size[0] - width - 4, 0))
    y = min(max(corner[1] - height - 4, 0), max(picture_size[1] - height - 4, 0))
    draw.rectangle((x, y, x + width + 4, y + height + 4), fill=colour)
    draw.text((x + 2, y + 1), text, fill=(0, 0, 0), font=font)


def _with_text(
    image: PIL.Image.Image, text: str, phrases: Sequence[Drawable], font, size: int
) -> PIL.Image.Image:
    margin, line = size, round(size * 1.5)
    sheet_width = max(image.width, _MIN_WIDTH)
    placed, x, y = [], float(margin), margin // 2
    for piece, index in split_by_phrase(text, phrases):
        colour = PLAIN_COLOUR
        if index is not None and len(phrases[index].boxes):
            colour = phrase_colour(index)
        for word in re.findall(r"\S+|\s+", piece):
            width = font.getlength(" " if word.isspace() else word)
            if not word.isspace() and x + width > sheet_width - margin and x > margin:
                x, y = float(margin), y + line
            if not word.isspace():
                placed.append((x, y, word, colour))
            x += width
    sheet = PIL.Image.new("RGB", (sheet_width, image.height + y + line + margin // 2), SHEET_COLOUR)
    sheet.paste(image)
    draw = PIL.ImageDraw.Draw(sheet)
    for x, y, word, colour in placed:
        draw.text((x, image.height + y), word, fill=colour, font=font)
    return sheet


def coloured_text(text: str, phrases: Sequence[Drawable]) -> Text:
    """The text for a terminal: phrases with boxes in their colour, the rest plain."""
    out = Text()
    for piece, index in split_by_phrase(text, phrases):
        style = ""
        if index is not None and len(phrases[index].boxes):
            r, g, b = phrase_colour(index)
            style = f"bold rgb({r},{g},{b})"
        out.append(piece, style=style or None)
    return out
