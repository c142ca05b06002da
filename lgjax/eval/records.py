"""The result file of the original's evaluator: written from predictions, and read back to be scored.

Source: spec/evaluation.md 1.4, spec/language_model.md 13.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lgjax.eval.lines import boxes_of, parse_json, read_all, write_whole
from lgjax.eval.predictions import Prediction, record_from
from lgjax.text import markup


def record_of(prediction: Prediction) -> markup.Record:
    """The line of the original's evaluator.

    Where it was not kept it is made of text and boxes: then boxes are clipped and stand best first, and
    spaces are those of the text. Source: spec/evaluation.md 1.4.
    """
    if prediction.record is not None:
        return prediction.record
    phrases = [phrase for phrase in prediction.phrases if len(phrase.boxes)]
    tagged = markup.mark_phrases(prediction.text, [phrase.span for phrase in phrases])
    height, width = prediction.size
    scale = np.asarray([width, height, width, height])
    groups = [np.asarray(phrase.boxes / scale, np.float32) for phrase in phrases]
    return markup.format_record(tagged, groups, prediction.question_id)


def write_records(predictions: Sequence[Prediction], out: Path) -> int:
    """Write the records of predictions as JSON lines; returns how many."""
    write_whole(out, "".join(json.dumps(record_of(p)._asdict()) + "\n" for p in predictions))
    return len(predictions)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordAnswer:
    """An answer as the original's evaluator writes it.

    ends: where in `text` each grounded phrase ends (the record does not say where it begins); boxes: for each
    float [n, 4], (x0, y0, x1, y1) in [0, 1] of the picture, not clipped.
    """

    question_id: str | int
    text: str
    ends: tuple[int, ...]
    boxes: tuple[Float[np.ndarray, "_ 4"], ...]
    where: str


def read_records(path: Path) -> list[RecordAnswer]:
    """Read the result file of the original's evaluator. Source: spec/evaluation.md 1.4.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a line is no such record, its boxes are not those of its text, or a box is turned round;
            or a question has two answers.
    """

    def parse(line: str, where: str) -> RecordAnswer:
        record = record_from(parse_json(line, where), where)
        boxes = [_box_string(text, f"{where}: boxes {text!r}") for text in record.boxes]
        plain, rest, ends = "", record.text_boxes, []
        for text in record.boxes:
            before, found, rest = rest.partition(text)
            if not found:
                raise ValueError(
                    f"{where}: text_boxes holds {text!r} of boxes not at all, or in another order"
                )
            plain += before
            ends.append(len(plain))
        if plain + rest != record.text:
            raise ValueError(f"{where}: text_boxes without its boxes is not the text")
        return RecordAnswer(record.question_id, record.text, tuple(ends), tuple(boxes), where)

    return read_all(path, parse)


def _box_string(text: str, where: str) -> Float[np.ndarray, "_ 4"]:
    if text[:1] != "[" or text[-1:] != "]":
        raise ValueError(f"{where} must be [x0,y0,x1,y1;...]")
    try:
        boxes = [[float(part) for part in box.split(",")] for box in text[1:-1].split(";")]
    except ValueError:
        raise ValueError(f"{where} must be [x0,y0,x1,y1;...]") from None
    return boxes_of(boxes, where)
