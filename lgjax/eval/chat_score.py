"""LLaVA-Bench: a reviewer gives the reference answer and the model's answer one score each.

Here: reading a review, and what many add up to; asking for them is the matter of `lgjax.eval.review`.
Source: spec/evaluation.md 1.6.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

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
