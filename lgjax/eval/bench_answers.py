"""Answers of either kind, matched to the annotated things of their pictures, ready to be judged.

Predictions of lgjax have boxes in pixels and phrases with spans; records of the original's evaluator have
boxes in fractions of the picture, and of a phrase they only tell where it ends.
Source: spec/evaluation.md 1.4.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lgjax.data.boxes import Boxes
from lgjax.data.sources.common import Coco, plain_name, read_coco, size_of, things_of
from lgjax.eval.grounding_bench import Entity, Grounding, TaggedAnswer, match
from lgjax.eval.predictions import Prediction
from lgjax.eval.records import RecordAnswer

_DETERMINERS = {"a", "an", "the", "his", "her", "its", "their", "this", "that", "some", "many", "several"}
_DETERMINERS |= {"another", "one", "two", "three", "four", "five", "six", "each", "both"}


@dataclasses.dataclass(frozen=True, eq=False)
class BenchAnswer:
    """A grounded answer. image: None where it does not say; size: (height, width), None where boxes are in
    fractions of the picture and not in pixels."""

    question_id: int | str
    image: str | None
    size: tuple[int, int] | None
    text: str
    groundings: tuple[Grounding, ...]
    where: str


def of_prediction(prediction: Prediction) -> BenchAnswer:
    """A prediction of lgjax."""
    groundings = tuple(Grounding(phrase.text, phrase.boxes, phrase.span) for phrase in prediction.phrases)
    return BenchAnswer(
        prediction.question_id,
        prediction.image,
        prediction.size,
        prediction.text,
        groundings,
        prediction.where,
    )


def of_record(record: RecordAnswer) -> BenchAnswer:
    """A record of the original's evaluator; where a phrase begins is guessed, see `begin_of`."""
    starts = [0, *record.ends]
    spans = [(begin_of(record.text, last, end), end) for last, end in zip(starts, record.ends, strict=False)]
    groundings = tuple(
        Grounding(record.text[slice(*span)], boxes, span)
        for span, boxes in zip(spans, record.boxes, strict=True)
    )
    return BenchAnswer(record.question_id, None, None, record.text, groundings, record.where)


def begin_of(text: str, last: int, end: int) -> int:
    """Where the phrase that ends at `end` most likely begins; the phrase before it ends at `last`.

    Two blanks are only written before a phrase that begins its piece of the text. Otherwise it is the last
    word like "a", "the" or "two" since the last comma or full stop, but none behind "of"; or else all words
    since then.
    """
    if (double := text.rfind("  ", last, end)) >= 0:
        return double + 2
    clause = max((m.end() for m in re.finditer(r"[.,;:!?]\s", text[last:end])), default=0) + last
    words = list(re.finditer(r"\S+", text[clause:end]))
    if not words:
        return end
    for index in range(len(words) - 1, -1, -1):
        behind_of = index > 0 and words[index - 1].group().lower() == "of"
        if words[index].group().lower() in _DETERMINERS and not behind_of:
            return clause + words[index].start()
    return clause + words[0].start()


@dataclasses.dataclass(frozen=True)
class Pictures:
    """COCO annotations of pictures, by the name that a question gives them. Crowds are no entities."""

    path: Path
    coco: Coco

    @classmethod
    def read(cls, path: Path) -> Pictures:
        """Read a COCO file of instances.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is of another layout, or names no categories.
        """
        coco = read_coco(path)
        if not coco.categories:
            raise ValueError(f"{path} has no categories; expected COCO's instances")
        return cls(path, coco)

    def classes(self, image: str, where: str) -> set[str]:
        """The categories in a picture, those of crowds too; `where` tells who asks for it.

        Raises:
            ValueError: the picture is not in the file, or an annotation has no category.
        """
        annotations = self.coco.annotations.get(self._entry(image, where)["id"], [])
        return {self._category(annotation["id"], annotation.get("category_id")) for annotation in annotations}

    def _category(self, annotation: int | str, category: Any) -> str:
        if category not in self.coco.categories:
            raise ValueError(f"{self.path}: annotation {annotation} is of no category of the file")
        return self.coco.categories[category]

    def _entry(self, image: str, where: str) -> dict[str, Any]:
        entry = self.coco.named.get(plain_name(image))
        if entry is None:
            raise ValueError(f"{where}: picture '{image}' is not in {self.path}")
        return entry

    def entities(self, image: str, where: str) -> tuple[tuple[int, int], tuple[Entity, ...]]:
        """The size (height, width) of a picture and its entities; `where` tells who asks for it.

        Raises:
            ValueError: the picture is not in the file, or one of its annotations has no box or category.
        """
        entry = self._entry(image, where)
        if not ("width" in entry and "height" in entry):
            raise ValueError(f"{self.path}: picture '{image}' has no width and height")
        width, height = size_of(entry, Path(image))
        things = things_of(self.coco.annotations.get(entry["id"], []), self.coco.categories)
        if things.dropped:
            raise ValueError(f"{self.path}: picture '{image}' has an {things.dropped[0]}")
        entities = []
        for thing in things.objects:
            if thing.crowd:
                continue
            if not thing.name or thing.id is None:
                raise ValueError(f"{self.path}: annotation {thing.id} is of no category of the file")
            x0, y0, x1, y1 = map(float, thing.box)
            entities.append(Entity(thing.id, thing.name, (x0, y0, x1, y1)))
        return (height, width), tuple(entities)


def tag(
    answers: Iterable[tuple[str, BenchAnswer]],
    pictures: Pictures,
    *,
    min_iou: float = 0.5,
    deduplicate: bool = False,
) -> list[TaggedAnswer]:
    """Match the boxes of answers, each with the name of its picture, to the entities there.

    Raises:
        ValueError: the picture is unknown or of another size, or a box lies where there can be none.
    """
    tagged = []
    for image, answer in answers:
        size, entities = pictures.entities(image, answer.where)
        if answer.size not in (None, size):
            raise ValueError(
                f"{answer.where}: the picture is {answer.size[1]} x {answer.size[0]} pixels, "
                f"but in {pictures.path} '{image}' has {size[1]} x {size[0]}"
            )
        groundings = answer.groundings
        if answer.size is None:
            groundings = tuple(
                dataclasses.replace(g, boxes=_in_pixels(g.boxes, size, answer.where)) for g in groundings
            )
        references = match(groundings, entities, min_iou=min_iou, deduplicate=deduplicate)
        tagged.append(
            TaggedAnswer(
                answer.question_id, image, size, answer.text, entities, groundings, tuple(references)
            )
        )
    return tagged


def _in_pixels(boxes: Boxes, size: tuple[int, int], where: str) -> Boxes:
    """Fractions of the picture to pixels.

    The original does not clip, so a box may reach over the edge or into the padding, by half of the padded
    square's side at most; one that does not touch the picture at all is a fault of its file.
    """
    height, width = size
    reach = max(size) / np.asarray([width, height])
    low, high = boxes[:, :2], boxes[:, 2:]
    beyond = (low < -0.5 * reach - 0.01).any(1) | (high > 1.5 * reach + 0.01).any(1)
    beyond |= (high < 0).any(1) | (low > 1).any(1)
    if beyond.any():
        raise ValueError(
            f"{where}: box {boxes[beyond][0].tolist()} lies outside of the picture; "
            "a record has fractions of its width and height"
        )
    return boxes * [width, height, width, height]
