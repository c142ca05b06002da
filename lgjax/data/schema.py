"""One record type for every dataset: a picture, what is said about it, and what the words point at.

Coordinates are pixels of the picture (origin at its top left corner), boxes are (x0, y0, x1, y1). Masks are
COCO segmentations: a list of polygons [x0, y0, x1, y1, ...], or a run-length code {"size": [height, width],
"counts": str or list of runs}. Texts hold no grounding tokens and no "<image>"; where a question points at a
region it holds "<obj>". Source: spec/training_and_data.md 5, 6.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

from lgjax.data.images import ImageSize, ImageSource, Number
from lgjax.text.conversation import SPEAKERS, V1, VISUAL_PROMPT_TAG
from lgjax.text.tokenizer import GROUNDING_TOKENS, IMAGE_PLACEHOLDER

# in a text these would be tokens, or end a message (spec/language_model.md 8)
_NO_TEXT = (IMAGE_PLACEHOLDER, *GROUNDING_TOKENS, V1.separators[1], "<unk>", f" {V1.answer_start}")
Speaker = Literal["human", "gpt"]
Kind = Literal["chat", "caption", "referring", "region"]
KINDS: tuple[Kind, ...] = ("chat", "caption", "referring", "region")
Segmentation = list[Any] | dict[str, Any]
Box = tuple[Number, Number, Number, Number]
Raw = TypeVar("Raw")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Object:
    """A thing in the picture. `mask` None: only its box is known; `id`: what its source calls it."""

    box: Box
    mask: Segmentation | None = None
    name: str = ""
    crowd: bool = False
    id: int | str | None = None


class Turn(NamedTuple):
    """One message of a conversation."""

    speaker: Speaker
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phrase:
    """Characters [start, end) of the text of `turn` (an answer) that name `objects` (indices of the record).

    Without objects the phrase is still marked in the text, but nothing is learnt about where it is. An empty
    span is a bare <seg>.
    """

    turn: int
    span: tuple[int, int]
    objects: tuple[int, ...] = ()


class Region(NamedTuple):
    """What an "<obj>" of `turn` points at: the object with this index. Regions stand in reading order."""

    turn: int
    object: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expression:
    """Texts that each name the same `objects`; `question` (with "<obj>") asks for one of them."""

    texts: tuple[str, ...]
    objects: tuple[int, ...]
    question: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A picture and what is said about it.

    kind says how a training sample is made of it: "chat" takes `turns` as they stand, "caption" asks for the
    one answer in `turns`, "referring" asks where some of the `expressions` are, "region" asks what some of
    their regions are. image: None for text only; size: (width, height), EXIF rotation applied. marks:
    objects drawn into the picture, numbered from 1. dropped: what the source named but the record lacks, one
    short reason each.
    """

    id: str
    kind: Kind
    image: ImageSource | None
    size: ImageSize | None
    turns: tuple[Turn, ...] = ()
    objects: tuple[Object, ...] = ()
    phrases: tuple[Phrase, ...] = ()
    regions: tuple[Region, ...] = ()
    expressions: tuple[Expression, ...] = ()
    marks: tuple[int, ...] = ()
    dropped: tuple[str, ...] = ()


Records = Sequence[Any]  # of Record; said in full, run-time type checks would make one of them


class RecordError(ValueError):
    """A record that cannot be used; the message names its file, the record and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Source(Sequence[Any], Generic[Raw]):  # of Record; said here, run-time type checks would make records
    """The records of one file, made when they are asked for.

    `file` is named in errors; `make` turns an item of the file into a record.
    """

    file: Path
    items: Sequence[Raw]
    make: Callable[[Raw], Record]

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Source[Raw]: ...
    def __getitem__(self, index: int | slice) -> Record | Source[Raw]:
        """The record at `index`.

        Raises:
            RecordError: the item lacks a field, has one of a wrong type, names a file that cannot be read,
                or `check` refuses it.
        """
        if isinstance(index, slice):
            return dataclasses.replace(self, items=self.items[index])
        item = self.items[index]
        try:
            record = self.make(item)
            check(record)
        except RecordError:
            raise
        except KeyError as error:
            raise RecordError(f"{self.file}: record {index}{_name(item)} lacks {error}") from error
        except (ValueError, TypeError, IndexError, AttributeError, ArithmeticError, OSError) as error:
            raise RecordError(f"{self.file}: record {index}{_name(item)}: {error}") from error
        return record


def _name(item: Any) -> str:
    return f" (id {item['id']})" if isinstance(item, Mapping) and "id" in item else ""


def reason_of(message: str) -> str:
    """Take file, record and numbers out of a message, so that equal faults read the same."""
    what = re.sub(r"^.*?: (?:record|line) \d+(?: \(id .*?\))?:? ", "", message)
    what = re.sub(r"'[^']*[./\d][^']*'", "'…'", what)
    return re.sub(r"-?\d+(?:\.\d+)?", "N", what)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is truncated or no JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is truncated or no JSON: {error}") from error


def check(record: Record) -> None:
    """Hold a record to what this module says of it.

    Raises:
        ValueError: what is wrong.
    """
    if record.kind not in KINDS:
        raise ValueError(f"kind '{record.kind}' is none of {', '.join(KINDS)}")
    if (record.image is None) != (record.size is None):
        raise ValueError("a picture needs its size, and text without a picture has none")
    if record.size is not None and min(record.size) < 1:
        raise ValueError(f"size {record.size} has no pixels")
    _check_turns(record)
    _check_phrases(record)
    _check_regions(record)
    for index, thing in enumerate(record.objects):
        if not all(math.isfinite(v) for v in thing.box):
            raise ValueError(f"box {thing.box} of object {index} is not finite")
    known = range(len(record.objects))
    lists = [phrase.objects for phrase in record.phrases]
    lists += [expression.objects for expression in record.expressions] + [record.marks]
    for number in (*(number for numbers in lists for number in numbers), *(r.object for r in record.regions)):
        if number not in known:
            raise ValueError(f"object {number} is named, but there are {len(record.objects)}")
    if record.kind in ("referring", "region"):
        if not record.expressions:
            raise ValueError(f"a '{record.kind}' record needs expressions")
        for expression in record.expressions:
            _check_expression(expression, record.kind)


def _check_text(text: str, what: str, forbidden: Sequence[str]) -> None:
    """Refuse a text that is blank, or holds what would be read as something else than a word."""
    if not text.strip():
        raise ValueError(f"the text of {what} is blank")
    if found := [piece for piece in forbidden if piece in text]:
        raise ValueError(f"the text of {what} holds {', '.join(map(repr, found))}")


def _check_expression(expression: Expression, kind: Kind) -> None:
    if not expression.objects or not expression.texts:
        raise ValueError("an expression needs objects and texts")
    for text in expression.texts:
        _check_text(text, "an expression", (*_NO_TEXT, VISUAL_PROMPT_TAG))
    if kind == "region":
        question = expression.question
        tags = 1 if question is None else question.count(VISUAL_PROMPT_TAG)
        if tags != len(expression.objects):
            asked = "a drawn question" if question is None else f"question '{question}'"
            raise ValueError(f"{asked} has {tags} {VISUAL_PROMPT_TAG} for {len(expression.objects)} objects")
        if question is not None:
            _check_text(question, "a question", _NO_TEXT)


def _check_turns(record: Record) -> None:
    for index, turn in enumerate(record.turns):
        if turn.speaker not in SPEAKERS:
            raise ValueError(f"turn {index} is from '{turn.speaker}'; expected 'human' or 'gpt'")
        _check_text(turn.text, f"turn {index}", _NO_TEXT)
    if record.kind == "chat":
        speakers = [turn.speaker for turn in record.turns]
        if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
            raise ValueError(
                f"turns must go human, gpt, human, gpt ..., found {', '.join(speakers) or 'none'}"
            )
    if record.kind == "caption" and [turn.speaker for turn in record.turns] != ["gpt"]:
        raise ValueError("a 'caption' record has one turn, of 'gpt'")


def _check_phrases(record: Record) -> None:
    last = (-1, 0)
    for phrase in record.phrases:
        start, end = phrase.span
        if not 0 <= phrase.turn < len(record.turns) or record.turns[phrase.turn].speaker != "gpt":
            raise ValueError(f"a phrase stands in turn {phrase.turn}, which is no answer")
        if not 0 <= start <= end <= len(record.turns[phrase.turn].text):
            raise ValueError(f"span {phrase.span} lies outside the text of turn {phrase.turn}")
        if (phrase.turn, start) < last:
            raise ValueError("phrases must stand in reading order and not overlap")
        last = (phrase.turn, end)


def _check_regions(record: Record) -> None:
    tags = [i for i, turn in enumerate(record.turns) for _ in range(turn.text.count(VISUAL_PROMPT_TAG))]
    if [region.turn for region in record.regions] != tags:
        raise ValueError(
            f"{len(tags)} {VISUAL_PROMPT_TAG} in turns {tags}, "
            f"but {len(record.regions)} regions in turns {[region.turn for region in record.regions]}"
        )


def to_json(record: Record) -> dict[str, Any]:
    """Turn everything but the picture into plain JSON values; `from_json` is the way back."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "image"}
    return {name: _plain(value) for name, value in fields.items() if value not in ((), None)}


def _plain(value: Any) -> Any:
    """Lists and dictionaries in place of tuples and dataclasses; segmentations are not copied."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_json(fields: Mapping[str, Any], image: ImageSource | None) -> Record:
    """Make the record that `to_json` wrote, with its picture.

    Raises:
        KeyError, TypeError: a field is missing or unknown.
    """

    def items(name: str) -> Sequence[Any]:
        return fields.get(name, ())

    return Record(
        id=fields["id"],
        kind=fields["kind"],
        image=image,
        size=(fields["size"][0], fields["size"][1]) if "size" in fields else None,
        turns=tuple(Turn(*turn) for turn in items("turns")),
        objects=tuple(Object(**{**thing, "box": tuple(thing["box"])}) for thing in items("objects")),
        phrases=tuple(
            Phrase(turn=p["turn"], span=tuple(p["span"]), objects=tuple(p["objects"]))
            for p in items("phrases")
        ),
        regions=tuple(Region(*region) for region in items("regions")),
        expressions=tuple(
            Expression(texts=tuple(e["texts"]), objects=tuple(e["objects"]), question=e["question"])
            for e in items("expressions")
        ),
        marks=tuple(fields.get("marks", ())),
        dropped=tuple(fields.get("dropped", ())),
    )
