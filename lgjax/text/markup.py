"""Answers with grounding tokens: into clean text with phrase spans, and the original's own post-processing.

`parse_ids`, `parse_text` and `mark_phrases` are what lgjax itself uses. The functions below them repeat the
released evaluator and demo to the character, odd results included, for records that must compare with
theirs; "groups" there are the boxes of each <seg>, float32 [m, 4], (x0, y0, x1, y1) in [0, 1] of the padded
square.
Source: spec/language_model.md 13, 16.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float32, Shaped

from lgjax.text.tokenizer import Tokenizer

Boxes = Float32[np.ndarray, "_ 4"]
Masks = Shaped[np.ndarray, "_ _ _"]

COLOURS: tuple[tuple[int, int, int], ...] = (
    *((0, 255, 255), (255, 0, 152), (204, 0, 255), (50, 0, 255), (255, 0, 0)),
    *((255, 0, 229), (0, 178, 255), (255, 153, 0), (255, 229, 0), (0, 255, 178)),
    *((127, 255, 0), (0, 255, 25), (203, 255, 0), (255, 0, 76), (51, 255, 0)),
    *((127, 0, 255), (0, 255, 102), (255, 76, 0), (0, 25, 255), (0, 102, 255)),
)

_OPEN, _CLOSE, _SEG = "<g_s>", "<g_e>", "<seg>"
_NO_SPACE_BEFORE = re.compile(r"[.,;:!?)\]}…»”]|['’](?:s|t|d|m|re|ve|ll)\b|['’](?!\w)|\s")
_NO_SPACE_AFTER = re.compile(r"[(\[{«“]$|\s$")
_TAGS = re.compile(f"({_OPEN}|{_CLOSE}|{_SEG})")
_SPAN = re.compile(r"<span style='color: rgb\(\d+, \d+, \d+\);'>(.*?)</span>", re.DOTALL)


class PhraseSpan(NamedTuple):
    """A grounded phrase: `text` stands at characters [start, end) of the answer; empty for a bare <seg>."""

    text: str
    start: int
    end: int


class Markup(NamedTuple):
    """An answer without grounding tokens, and one phrase for each <seg>, in the order of the <seg>s."""

    text: str
    phrases: tuple[PhraseSpan, ...]


def parse_ids(ids: Iterable[SupportsIndex], tokenizer: Tokenizer) -> Markup:
    """Turn generated ids into display text and the phrase of each <seg>.

    The grounding tokens are found by id, so text that only looks like one is left alone. A <seg> takes the
    phrase that was closed last, unless another <seg> took it or a new phrase was begun; then everything since
    the last <g_s> still open; without one it gets an empty span where it stands. Tokens that match nothing
    are dropped. Where grounding tokens stood there is one space, none before closing punctuation or after an
    opening bracket.

    Raises:
        ValueError: an id outside the vocabulary.
    """
    tags = {tokenizer.g_s_id: _Tag.OPEN, tokenizer.g_e_id: _Tag.CLOSE, tokenizer.seg_id: _Tag.SEG}
    parts = tokenizer.segments(ids)
    return _parse(part.strip(" ") if isinstance(part, str) else tags.get(part, "") for part in parts)


def parse_text(text: str) -> Markup:
    """Turn a text with grounding tokens, as annotation files hold it, into display text and phrases.

    The rules are those of `parse_ids`, but spaces at the ends of the text stay.
    """
    parts: list[str] = _TAGS.split(text)
    last = len(parts) - 1
    for i in range(0, len(parts), 2):
        parts[i] = parts[i].lstrip(" ") if i else parts[i]
        parts[i] = parts[i].rstrip(" ") if i < last else parts[i]
    return _parse(_Tag(part) if i % 2 else part for i, part in enumerate(parts))


def mark_phrases(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Write the grounding tokens around spans [start, end) of a text; an empty span is a bare <seg>.

    Spans stand in reading order and do not overlap. `parse_text` is the way back, but for white space next to
    the tokens, which never reaches the model. Source: spec/training_and_data.md 5.3, 6.2.
    """
    pieces, last = [], 0
    for start, end in spans:
        between = text[last:start].rstrip()
        pieces.append(between.lstrip() if last else between)
        pieces.append(f"{_OPEN} {text[start:end]} {_CLOSE} {_SEG}" if end > start else _SEG)
        last = end
    pieces.append(text[last:].lstrip() if pieces else text)
    return " ".join(piece for piece in pieces if piece)


class _Tag(enum.StrEnum):
    OPEN = _OPEN
    CLOSE = _CLOSE
    SEG = _SEG


def _parse(parts: Iterable[str]) -> Markup:
    """Parts are `_Tag`s, and texts, which are left alone even where they look like one."""
    text = ""
    opened: list[int] = []
    closed: tuple[int, int] | None = None
    spans: list[tuple[int, int]] = []
    for part in parts:
        if not isinstance(part, _Tag):
            text = _join(text, part)
        elif part is _Tag.OPEN:
            opened.append(len(text))
            closed = None
        elif part is _Tag.CLOSE and opened:
            closed = (opened.pop(), len(text))
        elif part is _Tag.SEG:
            if closed is None:
                closed = (opened.pop() if opened else len(text), len(text))
            spans.append(closed)
            closed = None
    return Markup(text, tuple(_phrase(text, start, end) for start, end in spans))


def _join(text: str, part: str) -> str:
    if not text or not part or _NO_SPACE_AFTER.search(text) or _NO_SPACE_BEFORE.match(part):
        return text + part
    return f"{text} {part}"


def _phrase(text: str, start: int, end: int) -> PhraseSpan:
    """The span without white space at its ends."""
    phrase = text[start:end].strip()
    start = start + len(text[start:end]) - len(text[start:end].lstrip()) if phrase else start
    return PhraseSpan(phrase, start, start + len(phrase))


def filter_empty_boxes(text: str, groups: Sequence[Boxes]) -> tuple[str, list[Boxes]]:
    """Drop all-zero boxes, then groups without boxes together with their tags in the text (evaluator).

    Source: spec/language_model.md 13.2.
    """
    if groups and _SEG not in text:
        return _collapse(re.sub(r"<g_s> \d+| <g_e>", "", text)), []
    text, kept = _filter(text, groups)
    return text, [boxes[rows] for boxes, rows in zip(groups, kept, strict=False) if rows.any()]


def filter_empty_box_masks(
    text: str, groups: Sequence[Boxes], masks: Sequence[Masks]
) -> tuple[str, list[Boxes], list[Masks]]:
    """Drop all-zero boxes with their masks, then empty groups with their tags in the text (demo).

    Unlike `filter_empty_boxes` it has no rule of its own for texts without <seg>.
    Source: spec/language_model.md 13.2.

    Raises:
        ValueError: boxes and masks differ in number.
    """
    counts = [len(boxes) for boxes in groups], [len(group) for group in masks]
    if counts[0] != counts[1]:
        raise ValueError(f"{counts[0]} boxes but {counts[1]} masks in the groups; each box needs its mask")
    text, kept = _filter(text, groups)
    used = [i for i, rows in enumerate(kept) if rows.any()]
    return text, [groups[i][kept[i]] for i in used], [masks[i][kept[i]] for i in used]


def _filter(text: str, groups: Sequence[Boxes]) -> tuple[str, list[np.ndarray]]:
    """The filtered text and, for each group that met a piece of text, which of its boxes are not all zero."""
    if not groups:
        return text, []
    out = ""
    kept = []
    pieces = text.split(f" {_SEG}")
    for piece, boxes in zip(pieces, groups, strict=False):
        rows = np.abs(boxes).sum(1) != 0
        kept.append(rows)
        piece = f"{piece} {_SEG}"
        if not rows.any():
            piece = " " + _collapse(piece.replace(_OPEN, "").replace(f"{_CLOSE} {_SEG}", ""))
        out += piece
    return out + pieces[-1], kept


def unresize_boxes(groups: Sequence[Boxes], width: int, height: int) -> list[Boxes]:
    """Turn boxes in [0, 1] of the padded square into [0, 1] of the image, without clipping.

    width and height are those of the original image in pixels. Source: spec/language_model.md 13.3.
    """
    shorter = np.float32(min(width, height) / max(width, height))
    divisor = np.array([shorter if height > width else 1, shorter if width > height else 1] * 2, np.float32)
    return [boxes / divisor for boxes in groups]


class Record(NamedTuple):
    """A line of the evaluator's result file: `text_boxes` has the box string behind each phrase."""

    question_id: int | str
    text: str
    text_boxes: str
    boxes: list[str]


def format_record(text: str, groups: Sequence[Boxes], question_id: int | str) -> Record:
    """Write an answer, filtered and unresized, as the evaluator's record.

    An answer of fewer than 6 characters, which fails in the original, is returned as it is.
    Source: spec/language_model.md 13.4, quirk Q3.
    """
    if len(text) < 6 or _SEG not in text:
        return Record(question_id, text, text, [])
    plain = boxed = ""
    used: list[str] = []
    number = 0
    for lead, phrase in map(_cut, text.split(f" {_SEG}")):
        plain += " " + _collapse(lead)
        boxed += " " + _collapse(lead)
        if phrase is None:
            continue
        if number < len(groups):
            used.append(_box_string(groups[number]))
        plain += " " + _collapse(phrase)
        boxed += " " + _collapse(phrase) + (used[number] if number < len(groups) else "")
        number += 1
    return Record(question_id, plain, boxed, used)


def _box_string(boxes: Boxes) -> str:
    return "[" + ";".join(",".join(str(round(v, 3)) for v in box) for box in boxes.tolist()) + "]"


def demo_html(text: str) -> str:
    """Write a filtered answer as the demo shows it: each phrase in a span of its colour.

    The demo overlooks a <seg> at the very end; when that is the only one the text stays as it is (quirk Q4).
    The text is not escaped for HTML; show answers of a model with `parse_ids`. Phrases after the 20th start
    again with the first colour. Source: spec/language_model.md 13.5.
    """
    if _SEG not in text[:-1]:
        return text
    out = ""
    number = 0
    for lead, phrase in map(_cut, text.split(f" {_SEG}")):
        out += " " + _collapse(lead)
        if phrase is not None:
            r, g, b = COLOURS[number % len(COLOURS)]
            out += f"<span style='color: rgb({r}, {g}, {b});'>{phrase}</span>"
            number += 1
    return out


def demo_history(html: str) -> str:
    """Remove the colour spans of `demo_html`: the form in which the demo puts an answer into the next prompt.

    Source: spec/language_model.md 7.4.
    """
    return _SPAN.sub(r"\1", html)


def _cut(piece: str) -> tuple[str, str | None]:
    """What stands before the first <g_s> and, if there is one, the rest without its tags."""
    lead, tag, rest = piece.partition(_OPEN)
    return lead, rest.replace(_OPEN, "").replace(_CLOSE, "") if tag else None


def _collapse(text: str) -> str:
    return " ".join(text.split())
