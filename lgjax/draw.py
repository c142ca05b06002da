"""Pictures and coloured text of grounded phrases; numbered marks on objects (set of marks)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import Bool, Float32, Int32, Int64
from rich.text import Text

from lgjax.text.markup import COLOURS

Colour = tuple[int, int, int]
_Number = int | float
_Rectangle = tuple[_Number, _Number, _Number, _Number]

REGION_COLOUR = (155, 155, 155)
PLAIN_COLOUR = (235, 235, 235)
SHEET_COLOUR = (24, 24, 24)
_MASK_ALPHA = 0.45
_MIN_WIDTH = 480
_COARSEST_STEP = 16
_CHUNK = 1 << 22
_MARKDOWN = frozenset("<>&\"'*_`#[]~|\\$")


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


def phrase_colour(index: int) -> Colour:
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


def blend_mask(picture: np.ndarray, mask: Bool[np.ndarray, "h w"], colour: Colour, alpha: _Number) -> None:
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
    pieces = [
        (piece, phrase_colour(index) if index is not None and len(phrases[index].boxes) else PLAIN_COLOUR)
        for piece, index in split_by_phrase(text, phrases)
    ]
    return write_below(draw_phrases(image, phrases, region_mask), pieces)


def draw_phrases(
    image: PIL.Image.Image,
    phrases: Sequence[Drawable],
    region_mask: Bool[np.ndarray, "h w"] | None = None,
    mask_alpha: _Number = _MASK_ALPHA,
) -> PIL.Image.Image:
    """Draw masks, their outlines, boxes and words of all phrases; the index-th in the index-th colour.

    mask_alpha: opacity in [0, 1] of the masks; the less, the more of the picture's own colours is left. Small
    pictures are enlarged so that the words can be read.
    """
    scale = max(1, -(-_MIN_WIDTH // max(image.size)))
    picture = np.asarray(image, np.float32).copy()
    if region_mask is not None:
        blend_mask(picture, region_mask, REGION_COLOUR, 0.6)
    for index, phrase in enumerate(phrases):
        for mask in phrase.masks:
            blend_mask(picture, mask, phrase_colour(index), mask_alpha)
            picture[mask & ~_inner(mask)] = phrase_colour(index)
    image = PIL.Image.fromarray(picture.round().astype(np.uint8))
    image = image.resize((image.width * scale, image.height * scale), PIL.Image.Resampling.NEAREST)
    draw = PIL.ImageDraw.Draw(image)
    size = _text_size(image)
    font = _font(size)
    boxes = [
        (index, phrase.text or str(index + 1), tuple(float(v) * scale for v in box))
        for index, phrase in enumerate(phrases)
        for box in phrase.boxes
    ]
    for index, _, (x0, y0, x1, y1) in boxes:
        draw.rectangle(
            (x0, y0, max(x0, x1), max(y0, y1)), outline=phrase_colour(index), width=max(2, size // 8)
        )
    placed: list[_Rectangle] = []
    for index, text, box in boxes:
        placed.append(_label(draw, box, text, phrase_colour(index), font, image.size, placed))
    return image


def _inner(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask without the pixels that have a neighbour outside of it, or of the picture."""
    wide = np.pad(mask, 1)
    return mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]


def write_below(image: PIL.Image.Image, pieces: Sequence[tuple[str, Colour]]) -> PIL.Image.Image:
    """Add a dark strip with text below a picture: pieces in their colours (dark ones lightened), wrapped.

    "\n" begins a new line; words longer than a line are cut into lines.
    """
    size = _text_size(image)
    font = _font(size)
    margin, line = size, round(size * 1.5)
    width = max(image.width, _MIN_WIDTH)
    placed, x, y = [], float(margin), margin // 2
    for piece, colour in pieces:
        for word in re.findall(r"\n|[^\S\n]+|\S+", piece):
            if word == "\n":
                x, y = float(margin), y + line
                continue
            if word.isspace():
                x += font.getlength(" ")
                continue
            for part in _fitting(word, font, width - 2 * margin):
                length = font.getlength(part)
                # punctuation after a coloured phrase may hang into the margin
                if x + length > width - margin and x > margin and part not in ".,;:!?)":
                    x, y = float(margin), y + line
                placed.append((x, y, part, _lightened(colour)))
                x += length
    sheet = PIL.Image.new("RGB", (width, image.height + y + line + margin // 2), SHEET_COLOUR)
    sheet.paste(image)
    draw = PIL.ImageDraw.Draw(sheet)
    for x, y, word, colour in placed:
        draw.text((x, image.height + y), word, fill=colour, font=font)
    return sheet


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever reads better on `colour`."""
    return (0, 0, 0) if _luminance(colour) > 0.18 else (255, 255, 255)


def _luminance(colour: Colour) -> float:
    """Relative luminance in [0, 1], reckoned with a gamma of 2.2."""
    r, g, b = ((v / 255) ** 2.2 for v in colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _lightened(colour: Colour) -> Colour:
    """The colour, mixed with white until it can be read on the strip."""
    while _luminance(colour) < 0.18:
        r, g, b = colour
        colour = (r + 25 if r < 230 else 255, g + 25 if g < 230 else 255, b + 25 if b < 230 else 255)
    return colour


def _text_size(image: PIL.Image.Image) -> int:
    return max(12, max(image.size) // 45)


def _fitting(word: str, font, width: int) -> list[str]:
    """The word in parts that each fit into a line; writing without spaces is one long word."""
    parts = [""]
    for character in word:
        if parts[-1] and font.getlength(parts[-1] + character) > width:
            parts.append("")
        parts[-1] += character
    return parts


def _font(size: int) -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
    """A font of the system that knows many scripts, else the one that comes with Pillow (basic Latin)."""
    for name in ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"):
        try:
            return PIL.ImageFont.truetype(name, size)
        except OSError:
            continue
    return PIL.ImageFont.load_default(size)


def _label(draw, box, text: str, colour: Colour, font, picture_size, placed) -> _Rectangle:
    """Write on a corner of `box` where it covers least of the labels already `placed`; return where."""
    text = text if len(text) <= 40 else text[:39] + "…"
    _, _, width, height = (float(v) + 4 for v in draw.textbbox((0, 0), text, font=font))
    x0, y0, x1, y1 = box
    corners = [
        (max(min(x, picture_size[0] - width), 0), max(min(y, picture_size[1] - height), 0))
        for x in (x0, x1 - width)
        for y in (y0 - height, y0, y1 - height, y1)
    ]
    places = [(x, y, x + width, y + height) for x, y in corners]
    place = min(places, key=lambda place: sum(_shared_area(place, other) for other in placed))
    draw.rectangle(place, fill=colour)
    draw.text((place[0] + 2, place[1] + 1), text, fill=ink_on(colour), font=font)
    return place


def _shared_area(a: _Rectangle, b: _Rectangle) -> _Number:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


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


def coloured_html(text: str, phrases: Sequence[Drawable]) -> str:
    """The text for a web page: phrases with boxes on their colour, no word read as HTML or Markdown."""
    out = ""
    for piece, index in split_by_phrase(text, phrases):
        # as entities, these are left alone by both
        words = "".join(f"&#{ord(c)};" if c in _MARKDOWN else c for c in piece).replace("\n", "<br>")
        if index is not None and len(phrases[index].boxes):
            colour = phrase_colour(index)
            style = f"background-color: rgb{colour}; color: rgb{ink_on(colour)}; border-radius: 4px"
            words = f'<span style="{style}">{words}</span>'
        out += words
    return out


def draw_prompts(
    image: PIL.Image.Image, prompts: Sequence[Sequence[tuple[_Number, _Number]]]
) -> PIL.Image.Image:
    """Draw prompts as they were given, numbered from 1: lines through points (x, y), a single one as disc."""
    image = image.convert("RGB")
    draw = PIL.ImageDraw.Draw(image)
    width = max(2, max(image.size) // 150)
    font = _font(_text_size(image))
    placed: list[_Rectangle] = []
    for index, points in enumerate(prompts):
        colour = phrase_colour(index)
        if len(points) > 1:
            draw.line(points, fill=colour, width=width, joint="curve")
        else:
            draw.circle(points[0], 2 * width, fill=colour, outline=ink_on(colour))
        xs, ys = zip(*points, strict=True)
        box = (min(xs), min(ys), max(xs), max(ys))
        placed.append(_label(draw, box, str(index + 1), colour, font, image.size, placed))
    return image


def draw_marks(
    image: PIL.Image.Image,
    masks: Bool[np.ndarray, "n h w"],
    *,
    mask_alpha: _Number = 0.1,
    mark_alpha: _Number = 0.4,
    size: int | None = None,
) -> PIL.Image.Image:
    """Draw each mask in a translucent colour and its number, from 1, in white on a black box inside of it.

    mask_alpha, mark_alpha: opacity in [0, 1] of the masks and of the black boxes (the digits are opaque);
    size: height of the font in pixels of the picture; by default 20, lower in pictures below 480 pixels, but
    not below 10. Source: spec/training_and_data.md 10.

    Raises:
        ValueError: masks of another size than the picture, or without pixels.
    """
    if masks.shape[1:] != (image.height, image.width):
        raise ValueError(f"masks {list(masks.shape)} do not fit a picture of {image.width} x {image.height}")
    picture = np.asarray(image.convert("RGB"), np.float32).copy()
    for index, mask in enumerate(masks):
        blend_mask(picture, mask, phrase_colour(index), mask_alpha)
    font = _font(min(max(max(image.size) // 24, 10), 20) if size is None else size)
    boxes = place_marks(masks, [_mark_size(str(k + 1), font) for k in range(len(masks))])
    for x0, y0, x1, y1 in boxes:
        picture[y0:y1, x0:x1] *= 1 - mark_alpha
    image = PIL.Image.fromarray(picture.round().astype(np.uint8))
    draw = PIL.ImageDraw.Draw(image)
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        draw.text(((x0 + x1) / 2, (y0 + y1) / 2), str(k + 1), fill=(255, 255, 255), font=font, anchor="mm")
    return image


def _mark_size(text: str, font) -> tuple[int, int]:
    """Width and height of the box of a number: the digits and a small margin."""
    x0, y0, x1, y1 = font.getbbox(text, anchor="mm")
    margin = max(2, round((y1 - y0) / 4))
    return round(x1 - x0) + 2 * margin, round(y1 - y0) + 2 * margin


def place_marks(
    masks: Bool[np.ndarray, "n h w"], sizes: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int, int]]:
    """Find a box (x0, y0, x1, y1) in pixels for the number of each mask; sizes are (width, height).

    Smallest mask first. A box is centred on a point of its mask, outside of smaller masks if there is one;
    of these on those where it covers least of the boxes already placed; of these on the deepest. Then it is
    moved into the picture.

    Raises:
        ValueError: a mask has no pixels.
    """
    height, width = masks.shape[1:]
    boxes = [(0, 0, 0, 0)] * len(masks)
    placed: list[tuple[int, int, int, int]] = []
    smaller = np.zeros((height, width), bool)
    for index in np.argsort(masks.sum((1, 2)), kind="stable").tolist():
        mask = masks[index]
        if not mask.any():
            raise ValueError(f"mask {index} has no pixels, so its number has no place")
        free = mask & ~smaller
        free = free if free.any() else mask
        smaller |= mask
        mark_width, mark_height = sizes[index]
        # where the box begins if it is centred on a pixel of this column or row
        left = np.clip(np.arange(width) - mark_width // 2, 0, max(width - mark_width, 0))
        top = np.clip(np.arange(height) - mark_height // 2, 0, max(height - mark_height, 0))
        covered = np.zeros((height, width), np.int32)
        for x0, y0, x1, y1 in placed:
            across = np.maximum(np.minimum(left + mark_width, x1) - np.maximum(left, x0), 0)
            down = np.maximum(np.minimum(top + mark_height, y1) - np.maximum(top, y0), 0)
            rows, columns = np.flatnonzero(down), np.flatnonzero(across)
            covered[np.ix_(rows, columns)] += np.outer(down[rows], across[columns]).astype(np.int32)
        x, y = deepest_point(free & (covered == covered[free].min()))
        x0, y0 = int(left[x]), int(top[y])
        boxes[index] = (x0, y0, x0 + mark_width, y0 + mark_height)
        placed.append(boxes[index])
    return boxes


def deepest_point(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is farthest from all pixels outside; the first if there are several.

    What lies beyond the picture is outside, too. Exact: squares of pixels are halved, and those that cannot
    hold the deepest pixel (depth changes by no more than the way between two pixels) are left out.

    Raises:
        ValueError: the mask has no pixels.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("the mask has no pixels")
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = np.pad(inside, [(1, 1 + -(length + 2) % _COARSEST_STEP) for length in inside.shape])
    vertical = _vertical_depth(inside) ** 2
    step, best = _COARSEST_STEP, 0.0
    ys, xs = (axis.ravel() for axis in np.mgrid[: inside.shape[0] : step, : inside.shape[1] : step])
    while True:
        half = step // 2
        reach = half * 2**0.5
        # no pixel is deeper than its column says, so many squares need not be looked at
        near = np.sqrt(vertical[ys + half, xs + half]) + reach >= best - 1e-6
        ys, xs = ys[near], xs[near]
        depth = np.sqrt(_squared_depth(vertical, ys + half, xs + half))
        best = float(depth.max())
        if step == 1:
            break
        kept = depth + reach >= best - 1e-6
        ys = np.add.outer(ys[kept], [0, 0, half, half]).ravel()
        xs = np.add.outer(xs[kept], [0, half, 0, half]).ravel()
        step = half
    deepest = depth == best
    y, x = min(zip(ys[deepest].tolist(), xs[deepest].tolist(), strict=True))
    return int(columns[0]) + x - 1, int(rows[0]) + y - 1


def _vertical_depth(inside: Bool[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Rows from each pixel to the nearest False of its column; the first and last row are False."""
    row = np.arange(len(inside), dtype=np.int32)[:, None]
    above = np.maximum.accumulate(np.where(inside, 0, row), 0)
    below = np.minimum.accumulate(np.where(inside, len(inside) - 1, row)[::-1], 0)[::-1]
    return np.minimum(row - above, below - row).astype(np.int32)


def _squared_depth(
    vertical: Int32[np.ndarray, "h w"], ys: Int64[np.ndarray, " n"], xs: Int64[np.ndarray, " n"]
) -> Int32[np.ndarray, " n"]:
    """Squared distance of pixels to the nearest False, from the squared distance along each column."""
    column = np.arange(vertical.shape[1], dtype=np.int32)
    out = np.empty(len(xs), np.int32)
    for start in range(0, len(xs), rows := max(1, _CHUNK // len(column))):
        part = slice(start, start + rows)
        out[part] = (vertical[ys[part]] + (xs[part, None].astype(np.int32) - column) ** 2).min(1)
    return out
