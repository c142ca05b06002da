"""One format for what was predicted, whatever is measured: JSON lines, masks as COCO run-length codes.

A line is {"question_id", "image", "size": [height, width], "text", "phrases": [{"text", "span", "boxes",
"scores", "masks"}], "settings", "extra", "record"}; "masks" may be null, "extra" and "record" may be missing.
Source: spec/evaluation.md 8.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from lgjax.data import masks as codes
from lgjax.eval.lines import (
    a_list,
    a_text,
    an_id,
    an_object,
    boxes_of,
    fields_of,
    numbers_of,
    parse_json,
    read_all,
    shown,
    whole_numbers,
)
from lgjax.text import markup

_OUTSIDE = 1.0  # pixels that a box may stand over the edge of its picture


@dataclasses.dataclass(frozen=True, eq=False)
class PhrasePrediction:
    """A phrase; `text` stands at characters `span` of the answer's text, nothing was found where n is 0.

    boxes: float [n, 4], (x0, y0, x1, y1) in pixels; scores: float [n] in [0, 1], best first; masks: n COCO
    run-length codes {"size": [height, width], "counts": text}, None where none were made.
    """

    text: str
    span: tuple[int, int]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    masks: tuple[dict[str, Any], ...] | None = None

    def bitmaps(self, size: tuple[int, int]) -> Bool[np.ndarray, "n h w"]:
        """The masks as bitmaps of a picture of `size` (height, width); none where none were made."""
        height, width = size
        found = [codes.decode(code, (width, height)) for code in self.masks or ()]
        return np.asarray(found, bool).reshape(-1, height, width)


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to a question about a picture.

    image: as the question names it; size: (height, width) of the picture in pixels; text: without markers;
    settings: the same for a whole run (model, threshold, queries, ...); extra: of one benchmark; record: the
    line of the original's evaluator, None in predictions of other programs; where: "FILE, line N".
    """

    question_id: str | int
    image: str
    size: tuple[int, int]
    text: str
    phrases: tuple[PhrasePrediction, ...]
    settings: dict[str, Any]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    record: markup.Record | None = None
    where: str = ""


@runtime_checkable
class Asked(Protocol):
    """What `match` needs of a question."""

    @property
    def id(self) -> str | int: ...
    @property
    def image(self) -> str: ...


@runtime_checkable
class Answered(Protocol):
    """What `match` needs of an answer; `image` None: it does not say which picture it is about."""

    @property
    def question_id(self) -> str | int: ...
    @property
    def image(self) -> str | None: ...
    @property
    def where(self) -> str: ...


Q = TypeVar("Q", bound=Asked)
A = TypeVar("A", bound=Answered)


def to_line(prediction: Prediction) -> str:
    """The prediction as a line of JSON; pixels with three decimals, scores with six."""
    phrases = [
        {
            "text": phrase.text,
            "span": list(phrase.span),
            "boxes": [[round(float(v), 3) for v in box] for box in phrase.boxes],
            "scores": [round(float(score), 6) for score in phrase.scores],
            "masks": None if phrase.masks is None else list(phrase.masks),
        }
        for phrase in prediction.phrases
    ]
    fields = {
        "question_id": prediction.question_id,
        "image": prediction.image,
        "size": list(prediction.size),
        "text": prediction.text,
        "phrases": phrases,
        "settings": prediction.settings,
        "extra": prediction.extra,
    }
    if prediction.record is not None:
        fields["record"] = prediction.record._asdict()
    return json.dumps(fields, ensure_ascii=False)


def from_line(line: str, where: str) -> Prediction:
    """Read a line of JSON; `where` is "FILE, line N".

    Raises:
        ValueError: it is no prediction, or one that cannot be: numbers that are not finite, a box turned
            round or outside of the picture, a mask of another size, a span outside of the text.
    """
    fields = fields_of(
        parse_json(line, where),
        ("question_id", "image", "size", "text", "phrases", "settings"),
        ("extra", "record"),
        where,
    )
    size = whole_numbers(fields["size"], 2, f"{where}: size")
    if min(size) < 1:
        raise ValueError(f"{where}: size {list(size)} must be height and width of the picture, in pixels")
    text = a_text(fields["text"], f"{where}: text")
    phrases = [
        _phrase(phrase, text, (size[0], size[1]), f"{where}: phrase {number}")
        for number, phrase in enumerate(a_list(fields["phrases"], f"{where}: phrases"), 1)
    ]
    record = fields.get("record")
    return Prediction(
        question_id=an_id(fields["question_id"], where),
        image=a_text(fields["image"], f"{where}: image"),
        size=(size[0], size[1]),
        text=text,
        phrases=tuple(phrases),
        settings=an_object(fields["settings"], f"{where}: settings"),
        extra=an_object(fields.get("extra", {}), f"{where}: extra"),
        record=None if record is None else record_from(record, f"{where}: record"),
        where=where,
    )


def read(path: Path) -> list[Prediction]:
    """Read predictions from a file, or from all shards of a folder of `lgjax.eval.predict`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: see `from_line`; or a question has two predictions.
    """
    return read_all(path, from_line)


def match(
    predictions: Sequence[A], questions: Iterable[Q], *, missing: bool = False
) -> list[tuple[Q, A | None]]:
    """Pair every question with its prediction, in the order of the questions.

    With `missing` a question may have none.

    Raises:
        ValueError: a question has no prediction, a prediction answers no question, or another picture's.
    """
    questions = list(questions)
    known = {question.id: question for question in questions}
    for prediction in predictions:
        question = known.get(prediction.question_id)
        if question is None:
            raise ValueError(
                f"{prediction.where}: question {prediction.question_id!r} is none of those asked"
            )
        if prediction.image not in (None, question.image):
            raise ValueError(
                f"{prediction.where}: question {question.id!r} is about the picture '{question.image}', "
                f"but the prediction about '{prediction.image}'"
            )
    found = {prediction.question_id: prediction for prediction in predictions}
    if not missing and (lost := [question.id for question in questions if question.id not in found]):
        raise ValueError(
            f"{len(lost)} of {len(questions)} questions have no prediction, first {lost[0]!r}; "
            "was the run stopped? it goes on with the same command"
        )
    return [(question, found.get(question.id)) for question in questions]


def cut(prediction: Prediction, threshold: float | None) -> Prediction:
    """The prediction with the queries whose score is strictly above `threshold`; None keeps the best one.

    It is what a run with that threshold gives; the record is left out.

    Raises:
        ValueError: the threshold is below that of the run, which has left out what would be needed, or the
            run's is no number.
    """
    own = prediction.settings.get("threshold", 0.0)
    if own is not None and (isinstance(own, bool) or not isinstance(own, int | float)):
        raise ValueError(
            f"{prediction.where}: threshold of settings must be a number or null, found {shown(own)}"
        )
    if threshold is not None and (own is None or threshold < own):
        was = "only the best query of each phrase was kept" if own is None else f"its threshold was {own}"
        raise ValueError(f"{prediction.where}: no threshold {threshold} for this prediction: {was}")

    def kept(phrase: PhrasePrediction) -> PhrasePrediction:
        count = int((phrase.scores > threshold).sum()) if threshold is not None else 1
        found = None if phrase.masks is None else phrase.masks[:count]
        return dataclasses.replace(
            phrase, boxes=phrase.boxes[:count], scores=phrase.scores[:count], masks=found
        )

    settings = {**prediction.settings, "threshold": threshold}
    phrases = tuple(map(kept, prediction.phrases))
    return dataclasses.replace(prediction, phrases=phrases, settings=settings, record=None)


def record_from(value: Any, where: str) -> markup.Record:
    """Read the fields of a record of the original's evaluator; others that it may have are left out.

    Raises:
        ValueError: one is missing or of another type.
    """
    fields = fields_of(value, ("question_id", "text", "text_boxes", "boxes"), None, where)
    return markup.Record(
        an_id(fields["question_id"], where),
        a_text(fields["text"], f"{where}: text"),
        a_text(fields["text_boxes"], f"{where}: text_boxes"),
        [a_text(box, f"{where}: boxes") for box in a_list(fields["boxes"], f"{where}: boxes")],
    )


def _phrase(value: Any, text: str, size: tuple[int, int], where: str) -> PhrasePrediction:
    fields = fields_of(value, ("text", "span", "boxes", "scores", "masks"), (), where)
    start, end = whole_numbers(fields["span"], 2, f"{where}: span")
    if not 0 <= start <= end <= len(text):
        raise ValueError(f"{where}: span [{start}, {end}] does not lie in a text of {len(text)} characters")
    words = a_text(fields["text"], f"{where}: text")
    if text[start:end] != words:
        raise ValueError(f"{where}: text is {words!r}, but its span holds {text[start:end]!r}")
    boxes = boxes_of(fields["boxes"], f"{where}: boxes")
    height, width = size
    over = np.maximum(-boxes, boxes - [width, height, width, height])
    if (over > _OUTSIDE).any():
        box = boxes[(over > _OUTSIDE).any(1)][0].tolist()
        raise ValueError(f"{where}: box {box} lies outside of the picture of {width} x {height} pixels")
    scores = np.asarray(numbers_of(fields["scores"], None, f"{where}: scores"), float)
    if ((scores < 0) | (scores > 1)).any() or (np.diff(scores) > 0).any():
        raise ValueError(f"{where}: scores must be within 0 and 1, best first")
    found = fields["masks"]
    if found is not None:
        listed = enumerate(a_list(found, f"{where}: masks"), 1)
        found = tuple(_mask(mask, size, f"{where}: mask {number}") for number, mask in listed)
    counts = {"boxes": len(boxes), "scores": len(scores)}
    counts |= {} if found is None else {"masks": len(found)}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"{where}: {listed}; each box needs one of each")
    return PhrasePrediction(words, (start, end), boxes, scores, found)


def _mask(value: Any, size: tuple[int, int], where: str) -> dict[str, Any]:
    code = fields_of(value, ("size", "counts"), (), where)
    rows, columns = whole_numbers(code["size"], 2, f"{where}: size")
    if (rows, columns) != size:
        raise ValueError(f"{where} is {rows} high and {columns} wide, its picture {size[0]} and {size[1]}")
    counts = a_text(code["counts"], f"{where}: counts")
    try:
        codes.decode({"size": [rows, columns], "counts": counts}, (columns, rows))
    except ValueError:
        raise ValueError(f"{where}: counts is no run-length code of COCO that fills the picture") from None
    return {"size": [rows, columns], "counts": counts}
