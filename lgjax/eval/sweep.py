"""The same questions with different numbers of object queries: what they cost, and what they bring.

No weight depends on the number, so it is free to choose. Source: spec/evaluation.md 1.3, table 13.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from lgjax.eval.predict import seconds_a_picture
from lgjax.eval.predictions import Prediction
from lgjax.eval.questions import Question
from lgjax.eval.run import checkpoint_of, copies, load, options_of, predictions_for
from lgjax.eval.running import Running


class AtQueries(NamedTuple):
    """Predictions with so many object queries, and the time of a picture in a full batch, all compiled."""

    queries: int
    pairs: list[tuple[Question, Prediction]]
    seconds: float


def by_queries(
    running: Running, questions: Sequence[Question], numbers: Sequence[int], part: str, **options: Any
) -> list[AtQueries] | None:
    """Predict with each number of queries into a folder of its own; see `predictions_for`.

    Raises:
        ValueError: there is no checkpoint; see also `predictions_for`.
    """
    if not numbers:
        return []
    checkpoint_of(running)
    asked = running.limited(questions)
    one_batch = asked[: running.batch * copies(running)]
    runs = [dataclasses.replace(running, queries=number) for number in numbers]
    # every process makes its part of all runs
    made = [predictions_for(run, questions, f"{part}-{run.queries}-queries", **options) for run in runs]
    out = []
    for run, number, pairs in zip(runs, numbers, made, strict=True):
        if pairs is None:
            return None
        out.append(
            AtQueries(number, pairs, seconds_a_picture(load(run), one_batch, options_of(run, **options)))
        )
    return out
