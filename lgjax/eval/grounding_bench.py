"""Grounding-Bench: what of a grounded answer is right, and how much of the picture it names.

Pure functions of boxes, entities and verdicts; who gives the verdicts is the matter of `lgjax.eval.judge`.
Source: LLaVA-Grounding, algorithm 1; spec/evaluation.md 1.5.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lgjax.data.boxes import Boxes, box_iou

Verdicts = Mapping[tuple[int, int | str], bool]
"""(index of the phrase, id of the entity) -> whether the phrase means that entity."""


@dataclasses.dataclass(frozen=True)
class Entity:
    """An annotated thing of a picture; its box in the units of the predicted ones."""

    id: int | str
    category: str
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Grounding:
    """A phrase with the boxes that the model gave it; `span`: its characters in the answer."""

    phrase: str
    boxes: Boxes
    span: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A predicted box: the entity it overlaps most, None where that is less than asked for."""

    phrase: int
    entity: Entity | None
    iou: float


@dataclasses.dataclass(frozen=True, eq=False)
class TaggedAnswer:
    """An answer whose boxes were matched to the entities of its picture.

    size: (height, width) of the picture; boxes are in pixels; `references` holds one for each predicted box.
    """

    question_id: int | str
    image: str
    size: tuple[int, int]
    text: str
    entities: tuple[Entity, ...]
    groundings: tuple[Grounding, ...]
    references: tuple[Reference, ...]

    @property
    def pairs(self) -> list[tuple[int, Entity]]:
        """What there is to judge: each phrase with each entity that one of its boxes was matched to, once."""
        pairs = {(r.phrase, r.entity.id): (r.phrase, r.entity) for r in self.references if r.entity}
        return list(pairs.values())


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one answer, or many, add up to; precision, recall and F1 are in [0, 1], 0 where nothing counts.

    n_pred: predicted boxes; n_gt: entities of the picture; tp_pred: right references, tp_gt: distinct
    entities among them.
    """

    n_pred: int = 0
    n_gt: int = 0
    tp_pred: int = 0
    tp_gt: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def precision(self) -> float:
        return self.tp_pred / self.n_pred if self.n_pred else 0.0

    @property
    def recall(self) -> float:
        return self.tp_gt / self.n_gt if self.n_gt else 0.0

    @property
    def f1(self) -> float:
        return f1(self.precision, self.recall)


def f1(precision: float, recall: float) -> float:
    """The harmonic mean, 0 where both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def match(
    groundings: Sequence[Grounding],
    entities: Sequence[Entity],
    *,
    min_iou: float = 0.5,
    deduplicate: bool = False,
) -> list[Reference]:
    """Give every predicted box, on its own, the entity with the highest IoU, in the order of the boxes.

    Categories play no part, and two boxes may take the same entity. deduplicate: of the boxes of one phrase
    that take the same entity only the best stays.
    """
    targets = np.asarray([entity.box for entity in entities], np.float64).reshape(-1, 4)
    found: list[Reference] = []
    for index, grounding in enumerate(groundings):
        overlaps = box_iou(np.asarray(grounding.boxes, np.float64).reshape(-1, 4), targets)
        references = [_reference(index, row, entities, min_iou) for row in overlaps]
        found += _best_of_each(references) if deduplicate else references
    return found


def _reference(phrase: int, overlaps: np.ndarray, entities: Sequence[Entity], min_iou: float) -> Reference:
    if not len(overlaps):
        return Reference(phrase, None, 0.0)
    best = int(overlaps.argmax())
    iou = float(overlaps[best])
    return Reference(phrase, entities[best] if iou >= min_iou else None, iou)


def _best_of_each(references: Sequence[Reference]) -> list[Reference]:
    """Of references to one entity the one with the highest IoU; those to none all stay."""
    best: dict[int | str, Reference] = {}
    for reference in references:
        if reference.entity and (
            reference.entity.id not in best or reference.iou > best[reference.entity.id].iou
        ):
            best[reference.entity.id] = reference
    return [r for r in references if r.entity is None or best[r.entity.id] is r]


def is_right(reference: Reference, verdicts: Verdicts) -> bool:
    """Whether a reference was judged right; one without a verdict is wrong."""
    return reference.entity is not None and verdicts.get((reference.phrase, reference.entity.id), False)


def count(references: Sequence[Reference], entities: Sequence[Entity], verdicts: Verdicts) -> Counts:
    """Count the references of one answer about a picture with these entities."""
    right = [r.entity.id for r in references if r.entity is not None and is_right(r, verdicts)]
    return Counts(len(references), len(entities), len(right), len(set(right)))


@dataclasses.dataclass(frozen=True)
class Averages:
    """Means over answers: F1 of the mean precision and recall, and the mean of the answers' F1."""

    precision: float
    recall: float
    f1_of_means: float
    mean_f1: float


def micro(counts: Sequence[Counts]) -> Counts:
    """The sum of all counts: the figure to report."""
    return sum(counts, Counts())


def macro(counts: Sequence[Counts]) -> Averages:
    """Means over answers, an extra; zeros without answers."""
    rows = np.asarray([(c.precision, c.recall, c.f1) for c in counts]).reshape(-1, 3)
    precision, recall, mean_f1 = (float(v) for v in (rows.mean(0) if len(rows) else np.zeros(3)))
    return Averages(precision, recall, f1(precision, recall), mean_f1)


@dataclasses.dataclass(frozen=True)
class CategoryScore:
    """What became of one category: of its `entities` `found` have a right reference; of the `references` to
    any of them `right` are right."""

    entities: int
    found: int
    references: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.references if self.references else 0.0

    @property
    def recall(self) -> float:
        return self.found / self.entities if self.entities else 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The figures of many answers.

    counts: of each answer, in order; categories: by name, the most frequent first; unmatched: predicted
    boxes that no entity overlaps enough; unjudged: pairs without a verdict, which count as wrong.
    """

    counts: tuple[Counts, ...]
    categories: dict[str, CategoryScore]
    unmatched: int
    unjudged: int

    @property
    def total(self) -> Counts:
        """The micro figures."""
        return micro(self.counts)

    @property
    def means(self) -> Averages:
        """The macro figures."""
        return macro(self.counts)


def score(answers: Sequence[TaggedAnswer], verdicts: Sequence[Verdicts]) -> Result:
    """Add up answers by the verdicts on each.

    Raises:
        ValueError: not one set of verdicts for each answer.
    """
    entities, found, references, right = (collections.Counter[str]() for _ in range(4))
    counts, unmatched, unjudged = [], 0, 0
    for answer, given in zip(answers, verdicts, strict=True):
        counts.append(count(answer.references, answer.entities, given))
        entities.update(entity.category for entity in answer.entities)
        matched = [(r.entity, is_right(r, given)) for r in answer.references if r.entity is not None]
        references.update(entity.category for entity, _ in matched)
        right.update(entity.category for entity, good in matched if good)
        found.update({entity.id: entity.category for entity, good in matched if good}.values())
        unmatched += len(answer.references) - len(matched)
        unjudged += sum((phrase, entity.id) not in given for phrase, entity in answer.pairs)
    categories = {
        name: CategoryScore(number, found[name], references[name], right[name])
        for name, number in entities.most_common()
    }
    return Result(tuple(counts), categories, unmatched, unjudged)
