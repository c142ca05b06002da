"""LLaVA-Bench: a reviewer gives the reference answer and the model's answer one score each.

Here: reading a review, and what many add up to; asking for them is the matter of `lgjax.eval.review`.
Source: spec/evaluation.md 1.6.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lgjax.eval.report import Report, Table

Pair = tuple[float, float]
FAILED: Pair = (-1.0, -1.0)
"""What stands for a review without two scores."""


def parse(review: str) -> Pair:
    """Read the scores of reference and model from the first line of a review; `FAILED` where there are none.

    As in the original a comma counts as a blank, and there must be two numbers with one blank between them:
    "8, 9" has two, so it fails.
    """
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        reference, model = map(float, parts)
    except ValueError:
        return FAILED
    return (reference, model) if math.isfinite(reference) and math.isfinite(model) else FAILED


@dataclasses.dataclass(frozen=True)
class Review:
    """A review of two answers; scores are (reference, model), `chat_score.FAILED` where it gives none."""

    question_id: str | int
    category: str
    content: str
    scores: Pair

    def to_json(self, number: int) -> dict[str, Any]:
        """The row of a review file of LLaVA's layout; `number` counts them from 1."""
        return {
            "id": number,
            "question_id": self.question_id,
            "answer1_id": self.question_id,
            "answer2_id": self.question_id,
            "category": self.category,
            "content": self.content,
            "tuple": list(self.scores),
        }


@dataclasses.dataclass(frozen=True)
class Summary:
    """Means of the scores with three decimals, and the model's in percent of the reference's.

    reviews: how many the means are over; failed: how many held no scores. relative: None without reviews, or
    where the reference's mean is 0.
    """

    mean_reference: float
    mean_model: float
    relative: float | None
    reviews: int
    failed: int


def summarise(scores: Sequence[Pair], *, compat: bool = False) -> Summary:
    """Average scores of (reference, model).

    Failed reviews are left out; compat: they stay in the means as -1 and -1, as in the original.
    """
    failed = sum(tuple(pair) == FAILED for pair in scores)
    kept = [pair for pair in scores if compat or tuple(pair) != FAILED]
    means = np.asarray(kept, np.float64).reshape(-1, 2).mean(0) if kept else np.zeros(2)
    reference, model = (round(float(mean), 3) for mean in means)
    relative = round(100 * model / reference, 1) if reference else None
    return Summary(reference, model, relative, len(kept), failed)


def report(
    reviews: Sequence[Review], settings: Mapping[str, Any], ignored: Collection[str] = (), *, compat: bool
) -> Report:
    """The report of reviews without those of the `ignored` question ids: each category, and all.

    Raises:
        ValueError: an ignored question has no review.
    """
    if lost := set(ignored) - {str(review.question_id) for review in reviews}:
        raise ValueError(f"no review of question {sorted(lost)[0]!r}, which is to be ignored")
    kept = [review for review in reviews if str(review.question_id) not in ignored]
    parts: dict[str, list[Pair]] = {"all": [review.scores for review in kept]}
    for review in kept:
        parts.setdefault(review.category, []).append(review.scores)
    rows = []
    for name, scores in parts.items():
        found = summarise(scores, compat=compat)
        relative = None if found.relative is None else f"{found.relative:.1f}"
        rows.append((name, relative, found.mean_reference, found.mean_model, found.reviews, found.failed))
    columns = ("questions", "relative %", "reference", "model", "reviews", "failed")
    how = "count as -1 and -1 in the means" if compat else "are left out of the means"
    note = (
        f"Relative: the model's mean score in percent of the reference's. Reviews without two scores {how}."
    )
    settings = {**settings, "summary": "compat" if compat else "failed left out", "ignored": list(ignored)}
    return Report("LLaVA-Bench", settings, (Table("Scores", columns, tuple(rows)),), (note,))
