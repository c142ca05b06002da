"""Pictures and coloured text of an answer."""

from __future__ import annotations

import re

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import Bool
from rich.text import Text

from lgjax.infer.answer import Answer, phrase_colour, split_by_phrase

REGION_COLOUR = (155, 155, 155)
PLAIN_COLOUR = (235, 235, 235)
SHEET_COLOUR = (24, 24, 24)
_MASK_ALPHA = 0.45
_MIN_WIDTH = 480


def blend_mask(
    picture: np.ndarray, mask: Bool[np.ndarray, "h w"], colour: tuple[int, int, int], alpha: float
) -> None:
    """Mix `colour` into the pixels of `picture` (float, [h, w, 3], changed in place) where `mask` is True."""
    picture[mask] = (1 - alpha) * picture[mask] + alpha * np.asarray(colour, picture.dtype)


def overlay(answer: Answer) -> PIL.Image.Image:
    """Draw masks, boxes and numbers of all phrases, and the coloured text on a strip below.

    Small pictures are enlarged so that the text can be read.
    """
    scale = max(1, -(-_MIN_WIDTH // max(answer.image.size)))
    picture = np.asarray(answer.image, np.float32).copy()
    if answer.region_mask is not None:
        blend_mask(picture, answer.region_mask, REGION_COLOUR, 0.6)
    for index, phrase in enumerate(answer.phrases):
        for mask in phrase.masks:
            blend_mask(picture, mask, phrase_colour(index), _MASK_ALPHA)
    image = PIL.Image.fromarray(picture.round().astype(np.uint8))
    image = image.resize((image.width * scale, image.height * scale), PIL.Image.Resampling.NEAREST)
    draw = PIL.ImageDraw.Draw(image)
    size = max(12, max(image.size) // 45)
    font = PIL.ImageFont.load_default(size)
    for index, phrase in enumerate(answer.phrases):
        for box in phrase.boxes:
            x0, y0, x1, y1 = (float(v) * scale for v in box)
            draw.rectangle(
                (x0, y0, max(x0, x1), max(y0, y1)), outline=phrase_colour(index), width=max(2, size // 8)
            )
            _label(draw, (x0, y0), phrase.text or str(index + 1), phrase_colour(index), font, image.size)
    return _with_text(image, answer, font, size)


def _label(draw: PIL.ImageDraw.ImageDraw, corner, text: str, colour, font, picture_size) -> None:
    text = text if len(text) <= 40 else text[:39] + "…"
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    x = min(max(corner[0], 0), max(picture_size[0] - width - 4, 0))
    y = min(max(corner[1] - height - 4, 0), max(picture_size[1] - height - 4, 0))
    draw.rectangle((x, y, x + width + 4, y + height + 4), fill=colour)
    draw.text((x + 2, y + 1), text, fill=(0, 0, 0), font=font)


def _with_text(image: PIL.Image.Image, answer: Answer, font, size: int) -> PIL.Image.Image:
    margin, line = size, round(size * 1.5)
    placed, x, y = [], float(margin), margin // 2
    for piece, index in split_by_phrase(answer.text, answer.phrases):
        colour = PLAIN_COLOUR
        if index is not None and len(answer.phrases[index].boxes):
            colour = phrase_colour(index)
        for word in re.findall(r"\S+|\s+", piece):
            width = font.getlength(" " if word.isspace() else word)
            if not word.isspace() and x + width > image.width - margin and x > margin:
                x, y = float(margin), y + line
            if not word.isspace():
                placed.append((x, y, word, colour))
            x += width
    sheet = PIL.Image.new("RGB", (image.width, image.height + y + line + margin // 2), SHEET_COLOUR)
    sheet.paste(image)
    draw = PIL.ImageDraw.Draw(sheet)
    for x, y, word, colour in placed:
        draw.text((x, image.height + y), word, fill=colour, font=font)
    return sheet


def coloured_text(answer: Answer) -> Text:
    """The answer for a terminal: phrases with boxes in their colour, the rest plain."""
    text = Text()
    for piece, index in split_by_phrase(answer.text, answer.phrases):
        if index is None or not len(answer.phrases[index].boxes):
            text.append(piece)
        else:
            r, g, b = phrase_colour(index)
            text.append(piece, style=f"bold rgb({r},{g},{b})")
    return text
