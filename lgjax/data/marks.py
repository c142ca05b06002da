"""Marked chat: numbers drawn into the picture, and "<1>" in the text where grounded chat has phrases.

Source: spec/training_and_data.md 10.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import overload

import numpy as np
import PIL.Image
from jaxtyping import Bool

from lgjax.data.images import ImageSize, Number, load_image
from lgjax.data.masks import clean, decode
from lgjax.data.questions import GROUNDING_SUFFIXES
from lgjax.data.schema import Object, Record, RecordError, Records, Turn
from lgjax.draw import draw_marks
from lgjax.text.conversation import FLICKR_QUESTION, GROUNDING_SUFFIX, VISUAL_PROMPT_TAG
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER


def marked(record: Record, *, limit: int = 30) -> Record:
    """Turn a grounded chat or caption into marked chat: no phrases, no regions, text only.

    Marked are the objects that a phrase or an "<obj>" names and the others that have a mask and are no crowd,
    numbered from 1 in their order; of more than `limit` those that are named first stay. "a dog" of two
    objects becomes "a dog <2> <5>", "the object <obj>" becomes "the object <2>", a bare <seg> "<2>". Phrases
    without a marked object stay plain text; a round whose "<obj>" is not marked is left out; requests for
    grounding are taken from the questions. Objects that cannot be used are dropped, see `clean`.

    Raises:
        RecordError: no picture, another kind of record, or nothing that could be named by a mark.
    """
    if record.size is None or record.kind not in ("chat", "caption"):
        raise RecordError(f"record {record.id}: marks need a chat or a caption with a picture")
    # first of all: what is dropped later would shift the numbers
    record = clean(_as_chat(record))
    phrases = [(phrase.turn, number) for phrase in record.phrases for number in phrase.objects]
    regions = [(region.turn, region.object) for region in record.regions]
    named = [number for _, number in sorted(phrases + regions, key=lambda pair: pair[0])]
    others = [i for i, thing in enumerate(record.objects) if thing.mask is not None and not thing.crowd]
    marks = tuple(sorted(list(dict.fromkeys(named + others))[:limit]))
    text_of = {number: f"<{k}>" for k, number in enumerate(marks, 1)}
    lost_rounds = {region.turn // 2 for region in record.regions if region.object not in text_of}
    kept = [i for i in range(len(record.turns)) if i // 2 not in lost_rounds]
    if not any(turn in kept and number in text_of for turn, number in phrases + regions):
        raise RecordError(f"record {record.id}: no phrase and no {VISUAL_PROMPT_TAG} names an object to mark")
    return dataclasses.replace(
        record,
        turns=tuple(_marked_turn(record, i, text_of) for i in kept),
        phrases=(),
        regions=(),
        marks=marks,
    )


def _as_chat(record: Record) -> Record:
    """A caption as the answer to the question that training asks for it."""
    if record.kind != "caption":
        return record
    question = FLICKR_QUESTION.replace(IMAGE_PLACEHOLDER, "").strip()
    return dataclasses.replace(
        record,
        kind="chat",
        turns=(Turn("human", question), *record.turns),
        phrases=tuple(dataclasses.replace(phrase, turn=phrase.turn + 1) for phrase in record.phrases),
    )


def _marked_turn(record: Record, index: int, text_of: dict[int, str]) -> Turn:
    speaker, text = record.turns[index]
    inserts = [
        (phrase.span[1], " ".join(text_of[i] for i in sorted(phrase.objects) if i in text_of))
        for phrase in record.phrases
        if phrase.turn == index
    ]
    for end, words in reversed(inserts):
        if words:
            text = _insert(text, end, words)
    for region in record.regions:
        if region.turn == index:
            text = text.replace(VISUAL_PROMPT_TAG, text_of[region.object], 1)
    return Turn(speaker, _without_request(text) if speaker == "human" else text)


def _insert(text: str, at: int, words: str) -> str:
    before, after = text[:at], text[at:]
    left = "" if not before or before[-1].isspace() else " "
    return f"{before}{left}{words}{' ' if after[:1].isalnum() else ''}{after}"


def _without_request(question: str) -> str:
    """The question without its request for grounding."""
    question = re.sub(rf"\s*{re.escape(GROUNDING_SUFFIX)}", "", question).strip()
    for suffix in GROUNDING_SUFFIXES:
        question = question.removesuffix(suffix).rstrip()
    return question


def picture_of(
    record: Record, *, mask_alpha: Number = 0.1, mark_alpha: Number = 0.4, size: int | None = None
) -> PIL.Image.Image:
    """Load the picture of a record and draw its marks into it, if it has any.

    An object without a mask is drawn as its filled box. Options: see `lgjax.draw.draw_marks`.

    Raises:
        FileNotFoundError: no such picture.
        ValueError: no picture, a damaged one or one of another size than the record says.
    """
    if record.image is None or record.size is None:
        raise ValueError(f"record {record.id} has no picture")
    image = load_image(record.image)
    if image.size != record.size:
        raise ValueError(
            f"record {record.id}: the picture is {image.size}, but the record says {record.size}"
        )
    if not record.marks:
        return image
    masks = np.stack([_drawn_mask(record.objects[i], record.size) for i in record.marks])
    return draw_marks(image, masks, mask_alpha=mask_alpha, mark_alpha=mark_alpha, size=size)


def _drawn_mask(thing: Object, size: ImageSize) -> Bool[np.ndarray, "h w"]:
    if thing.mask is not None and (mask := decode(thing.mask, size)).any():
        return mask
    filled = np.zeros(size[::-1], bool)
    # at least one pixel, also of a box that is thin or outside
    x0, y0 = (min(max(int(v), 0), side - 1) for v, side in zip(thing.box[:2], size, strict=True))
    x1, y1 = (max(int(np.ceil(v)), start + 1) for v, start in zip(thing.box[2:], (x0, y0), strict=True))
    filled[y0:y1, x0:x1] = True
    return filled


@dataclasses.dataclass(frozen=True)
class MarkedSource(Sequence[Record]):
    """A source or built dataset of grounded chat, read as marked chat. `limit`: see `marked`."""

    records: Records
    limit: int = 30

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> MarkedSource: ...
    def __getitem__(self, index: int | slice) -> Record | MarkedSource:
        """The record at `index` with marks.

        Raises:
            RecordError: see `marked`; or the record itself cannot be read.
        """
        if isinstance(index, slice):
            return dataclasses.replace(self, records=self.records[index])
        return marked(self.records[index], limit=self.limit)
