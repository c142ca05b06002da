"""What Grounding-Bench shows: the figures, categories, thresholds side by side, the worst answers drawn."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from lgjax import draw
from lgjax.data.images import load_image
from lgjax.data.sources.common import Pictures
from lgjax.eval.grounding_bench import Counts, Grounding, Result, TaggedAnswer, Verdicts, is_right
from lgjax.eval.report import Example, Report, Table

WORST = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """Answers at one threshold (None: as they were made), the verdicts on each, and what they add up to."""

    threshold: float | None
    answers: tuple[TaggedAnswer, ...]
    verdicts: tuple[Verdicts, ...]
    result: Result


def report(runs: Sequence[Scored], settings: Mapping[str, Any], pictures: Pictures | None) -> Report:
    """The report of the first of `runs`, the others beside it; its worst drawn if there are `pictures`."""
    first = runs[0]
    at = "" if first.threshold is None else f" at threshold {first.threshold}"
    total, means = first.result.total, first.result.means
    rows = [
        ("micro", total.precision, total.recall, total.f1),
        ("macro: F1 of means", means.precision, means.recall, means.f1_of_means),
        ("macro: mean F1", None, None, means.mean_f1),
    ]
    counts = (total.tp_pred, total.n_pred, total.tp_gt, total.n_gt, first.result.unmatched)
    tables = [
        Table(f"Scores{at}", ("over answers", "precision", "recall", "F1"), tuple(rows)),
        Table(f"Counts{at}", ("right boxes", "boxes", "found", "entities", "boxes on no entity"), (counts,)),
    ]
    if len(runs) > 1:
        tables.insert(0, _sweep(runs))
    tables.append(_categories(first.result, at))
    worst = () if pictures is None else tuple(_worst(first, pictures))
    return Report("Grounding-Bench", settings, tuple(tables), _notes(first), worst)


def _sweep(runs: Sequence[Scored]) -> Table:
    rows = []
    for run in runs:
        total = run.result.total
        rows.append((str(run.threshold), total.precision, total.recall, total.f1, total.n_pred))
    return Table("Thresholds", ("threshold", "precision", "recall", "F1", "boxes"), tuple(rows))


def _categories(result: Result, at: str) -> Table:
    rows = tuple(
        (name, score.entities, score.found, score.recall, score.references, score.right, score.precision)
        for name, score in result.categories.items()
    )
    columns = ("category", "entities", "found", "recall", "boxes on them", "right", "precision")
    return Table(f"Categories{at}", columns, rows)


def _notes(run: Scored) -> tuple[str, ...]:
    notes = [
        f"{len(run.answers)} answers; every box is matched on its own to the entity with the highest IoU."
    ]
    if run.result.unjudged:
        notes.append(f"{run.result.unjudged} pairs of phrase and entity have no verdict and count as wrong.")
    if empty := sum(not counts.n_gt for counts in run.result.counts):
        notes.append(f"{empty} pictures have no entities: boxes there are wrong, recall has nothing to find.")
    return tuple(notes)


@dataclasses.dataclass(frozen=True, eq=False)
class _Drawn:
    """A phrase without masks, as `lgjax.draw` takes it."""

    text: str
    span: tuple[int, int]
    boxes: np.ndarray
    masks: np.ndarray


def _worst(run: Scored, pictures: Pictures) -> list[Example]:
    """The answers with the lowest F1 whose pictures have entities, the fullest pictures first."""
    order = sorted(
        (i for i, counts in enumerate(run.result.counts) if counts.n_gt),
        key=lambda i: (run.result.counts[i].f1, -run.result.counts[i].n_gt),
    )
    examples = []
    for index in order[:WORST]:
        answer, counts = run.answers[index], run.result.counts[index]
        image = load_image(pictures.path(answer.image))
        drawn = draw.overlay(image, answer.text, [_drawn(g, image) for g in answer.groundings])
        examples.append(Example(_title(answer, counts, run.verdicts[index]), drawn))
    return examples


def _drawn(grounding: Grounding, image: PIL.Image.Image) -> _Drawn:
    boxes = np.asarray(grounding.boxes, np.float32)
    nothing = np.zeros((len(boxes), image.height, image.width), bool)
    return _Drawn(grounding.phrase, grounding.span, boxes, nothing)


def _title(answer: TaggedAnswer, counts: Counts, verdicts: Verdicts) -> str:
    found = {r.entity.id for r in answer.references if r.entity is not None and is_right(r, verdicts)}
    lost = collections.Counter(entity.category for entity in answer.entities if entity.id not in found)
    names = ", ".join(name if number == 1 else f"{number} x {name}" for name, number in lost.items())
    right = f"{counts.tp_pred} of {counts.n_pred} boxes right, {counts.tp_gt} of {counts.n_gt} entities found"
    title = f"question {answer.question_id}, {answer.image}: F1 {counts.f1:.2f}, {right}"
    return f"{title}; not found: {names}" if names else title
