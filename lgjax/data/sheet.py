"""A sheet to look at records: each picture with what its text points at, in the colours of the phrases.

As HTML it is one file for a browser, as PNG a grid.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps
from jaxtyping import Bool, Float32

from lgjax.data import masks
from lgjax.data.images import ImageSize
from lgjax.data.marks import picture_of
from lgjax.data.schema import Record, RecordError, Records
from lgjax.draw import (
    PLAIN_COLOUR,
    SHEET_COLOUR,
    Colour,
    draw_phrases,
    ink_on,
    phrase_colour,
    write_below,
)
from lgjax.text.conversation import VISUAL_PROMPT_TAG

CELL_WIDTH = 640
_GAP = 16
_GREY: Colour = (170, 170, 170)
_RED: Colour = (255, 80, 80)
_COLUMNS = 3
_MAX_SIDE = 1024
_MASK_ALPHA = 0.15  # faint: sentences may speak of colours
_STYLE = """
body{margin:0;padding:1rem;background:#181818;color:#ebebeb;font:16px/1.5 system-ui,sans-serif}
main{display:grid;gap:1.5rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr))}
section{background:#262626;border-radius:.5rem;padding:.75rem;overflow-wrap:anywhere}
h2{margin:0 0 .5rem;font-size:.85rem;font-weight:normal;color:#aaa}
img{display:block;max-width:100%;height:auto;margin:0 auto}
p{margin:.5rem 0;white-space:pre-line}
b{color:#aaa;font-weight:normal;margin-right:.5rem}
mark{border-radius:.25rem;padding:0 .2rem}
small{color:#aaa}
.fault{color:#ff5050}
"""


def show(records: Records, out: Path, count: int, seed: int | None = None) -> int:
    """Write a sheet of the first `count` records, or of that many drawn by `seed`; `out` as in `sheet`.

    Returns how many of them cannot be used.

    Raises:
        ValueError: no records, a count below 1, or an `out` that is neither .html nor .png.
    """
    if count < 1 or not len(records):
        raise ValueError(f"nothing to show: {count} of {len(records)} records")
    indices = range(len(records))
    chosen = indices[:count]
    if seed is not None:
        chosen = sorted(random.Random(seed).sample(indices, min(count, len(records))))
    return sheet((_read(records, i) for i in chosen), out)


def _read(records: Records, index: int) -> Record | RecordError:
    try:
        return records[index]
    except RecordError as error:
        return error


def sheet(records: Iterable[Record | RecordError], out: Path) -> int:
    """Write a sheet of records: `out` is a page without parts outside of it (.html) or a picture (.png).

    Each phrase, referring text and "<obj>" has a colour, one for each group of objects; phrases have masks
    and boxes, an "<obj>" a box, objects that nothing names a thin grey box, marks are drawn as the model sees
    them. Errors, and records whose picture cannot be read, become a red line.

    Raises:
        ValueError: another suffix, or no records.
    """
    write = {".html": _write_html, ".htm": _write_html, ".png": _write_png}.get(out.suffix.lower())
    if write is None:
        raise ValueError(f"'{out}' must end in .html or .png")
    views = [_view(record) for record in records]
    if not views:
        raise ValueError("no records to show")
    write(views, out)
    return sum(bool(view.fault) for view in views)


class _Piece(NamedTuple):
    """Text that names objects: None for plain text, () for a phrase that lost or never had any."""

    text: str
    objects: tuple[int, ...] | None = None


class _Line(NamedTuple):
    """A line of the conversation and who says it: "Q" or "A"."""

    role: str
    pieces: Sequence[_Piece]


class _View(NamedTuple):
    """What is shown of a record; `fault` says why it or its picture is missing."""

    title: str = ""
    image: PIL.Image.Image | None = None
    lines: Sequence[_Line] = ()
    colours: Mapping[tuple[int, ...], Colour] = {}
    notes: str = ""
    fault: str = ""

    def colour(self, piece: _Piece) -> Colour | None:
        return None if piece.objects is None else self.colours.get(piece.objects, _GREY)


def _view(record: Record | RecordError) -> _View:
    if isinstance(record, RecordError):
        return _View(fault=str(record))
    record = masks.clean(record)
    lines = _lines(record)
    named = [piece.objects for line in lines for piece in line.pieces if piece.objects]
    groups = list(dict.fromkeys([(number,) for number in record.marks] + named))
    counts = Counter(record.dropped).items()
    view = _View(
        title=" · ".join(
            [record.id, record.kind] + ["{} × {}".format(*size) for size in [record.size] if size]
        ),
        lines=lines,
        colours={objects: phrase_colour(i) for i, objects in enumerate(groups)},
        notes="dropped: " + ", ".join(f"{reason} ({n})" for reason, n in counts) if counts else "",
    )
    if record.image is None:
        return view
    try:
        return view._replace(image=_picture(record, lines, groups))
    except (ValueError, OSError) as error:
        return view._replace(fault=str(error))


def _lines(record: Record) -> list[_Line]:
    """The turns, then the expressions, cut into pieces."""
    lines = []
    for index, turn in enumerate(record.turns):
        cuts = [(*p.span, p.objects) for p in record.phrases if p.turn == index]
        tags = [match.span() for match in re.finditer(re.escape(VISUAL_PROMPT_TAG), turn.text)]
        regions = [region for region in record.regions if region.turn == index]
        cuts += [(*span, (region.object,)) for span, region in zip(tags, regions, strict=True)]
        for match in re.finditer(r"<(\d+)>", turn.text):
            if 1 <= (k := int(match[1])) <= len(record.marks):
                cuts.append((*match.span(), (record.marks[k - 1],)))
        lines.append(_Line("Q" if turn.speaker == "human" else "A", _cut(turn.text, cuts)))
    for expression in record.expressions:
        objects = tuple(sorted(expression.objects))
        if expression.question is not None:
            tags = [match.span() for match in re.finditer(re.escape(VISUAL_PROMPT_TAG), expression.question)]
            lines.append(_Line("Q", _cut(expression.question, [(*span, objects) for span in tags])))
        texts = [_Piece(text, objects) for text in expression.texts]
        between = [_Piece(" / ")] * (2 * len(texts) - 1)
        between[::2] = texts
        lines.append(_Line("Q" if record.kind == "referring" else "A", between))
    return lines


def _cut(text: str, cuts: Sequence[tuple[int, int, tuple[int, ...]]]) -> list[_Piece]:
    """The text in pieces; a cut [start, end) names objects, an empty one shows as <seg>."""
    pieces, last = [], 0
    for start, end, objects in sorted(cuts):
        if start >= last:
            pieces += [_Piece(text[last:start]), _Piece(text[start:end] or "<seg>", tuple(sorted(objects)))]
            last = end
    return [piece for piece in [*pieces, _Piece(text[last:])] if piece.text]


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """Objects that the text names together, as `lgjax.draw` takes a phrase; `span` is not used."""

    text: str
    boxes: Float32[np.ndarray, "n 4"]
    masks: Bool[np.ndarray, "m h w"]
    span: tuple[int, int] = (0, 0)


def _picture(record: Record, lines: Sequence[_Line], groups: Sequence[tuple[int, ...]]) -> PIL.Image.Image:
    image = picture_of(record)
    draw = PIL.ImageDraw.Draw(image)
    known = {number for objects in groups for number in objects}
    for number, thing in enumerate(record.objects):
        if number not in known:
            draw.rectangle(thing.box, outline=_GREY)
    pieces = [piece for line in lines for piece in line.pieces]
    drawn = [_group(record, objects, pieces, image.size) for objects in groups]
    return draw_phrases(image, drawn, mask_alpha=_MASK_ALPHA)


def _group(
    record: Record, objects: tuple[int, ...], pieces: Sequence[_Piece], image_size: ImageSize
) -> _Group:
    texts = [piece.text for piece in pieces if piece.objects == objects]
    words = [text for text in texts if text != VISUAL_PROMPT_TAG]
    marked = len(objects) == 1 and objects[0] in record.marks
    things = [] if marked else [record.objects[number] for number in objects]
    # what only an <obj> points at is a prompt: its box without a mask
    codes = [thing.mask for thing in things if thing.mask is not None] if words else []
    width, height = image_size
    return _Group(
        (words or [record.objects[objects[0]].name or VISUAL_PROMPT_TAG])[0],
        np.asarray([thing.box for thing in things], np.float32).reshape(-1, 4),
        np.asarray([masks.decode(code, (width, height)) for code in codes], bool).reshape(-1, height, width),
    )


def _write_html(views: Sequence[_View], out: Path) -> None:
    sections = "\n".join(f"<section>{_html_of(view)}</section>" for view in views)
    out.write_text(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(out.stem)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{sections}\n</main>\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _html_of(view: _View) -> str:
    parts = [f"<h2>{html.escape(view.title)}</h2>"] if view.title else []
    if view.image is not None:
        file, image = io.BytesIO(), view.image.copy()
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
        image.save(file, "JPEG", quality=88)
        code = base64.b64encode(file.getvalue()).decode()
        parts.append(f'<img alt="{html.escape(view.title)}" src="data:image/jpeg;base64,{code}">')
    for line in view.lines:
        words = "".join(_html_piece(piece.text, view.colour(piece)) for piece in line.pieces)
        parts.append(f"<p><b>{line.role}</b>{words}</p>")
    if view.notes:
        parts.append(f"<small>{html.escape(view.notes)}</small>")
    if view.fault:
        parts.append(f'<p class="fault">{html.escape(view.fault)}</p>')
    return "\n".join(parts)


def _html_piece(text: str, colour: Colour | None) -> str:
    text = html.escape(text)
    if colour is None:
        return text
    back, ink = ("rgb({},{},{})".format(*c) for c in (colour, ink_on(colour)))
    return f'<mark style="background:{back};color:{ink}">{text}</mark>'


def _write_png(views: Sequence[_View], out: Path) -> None:
    cells = [_cell(view) for view in views]
    columns = min(len(cells), _COLUMNS)
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + _GAP for row in rows]
    grid = PIL.Image.new("RGB", (columns * (CELL_WIDTH + _GAP) + _GAP, sum(heights) + _GAP), SHEET_COLOUR)
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            grid.paste(cell, (_GAP + column * (CELL_WIDTH + _GAP), y))
        y += height
    grid.save(out)


def _cell(view: _View) -> PIL.Image.Image:
    """The picture, fitted into a square of the cell's width, and the text below."""
    top = PIL.Image.new("RGB", (CELL_WIDTH, 1), SHEET_COLOUR)
    if view.image is not None:
        image = PIL.ImageOps.contain(view.image, (CELL_WIDTH, CELL_WIDTH))
        top = PIL.Image.new("RGB", (CELL_WIDTH, image.height), SHEET_COLOUR)
        top.paste(image, ((CELL_WIDTH - image.width) // 2, 0))
    lines: list[list[tuple[str, Colour]]] = [[(view.title, _GREY)]]
    for line in view.lines:
        words = [(piece.text, view.colour(piece) or PLAIN_COLOUR) for piece in line.pieces]
        lines.append([(f"{line.role}  ", _GREY), *words])
    lines += [[(view.notes, _GREY)], [(view.fault, _RED)]]
    pieces: list[tuple[str, Colour]] = []
    for line in lines:
        if any(text for text, _ in line):
            pieces += [*line, ("\n", _GREY)]
    return write_below(top, pieces[:-1])
