"""Does grounding tell made-up phrases from true ones? A phrase without a box above the threshold is flagged.

Source: spec/evaluation.md 6.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from lgjax.eval.predictions import Prediction
from lgjax.eval.report import Cell, Table


@dataclasses.dataclass(frozen=True)
class Judged:
    """A phrase: the score of its best query (0 where it has none), and whether what it names is there."""

    text: str
    score: float
    present: bool


@dataclasses.dataclass(frozen=True)
class Figures:
    """Shares in [0, 1], None of nothing.

    kept: phrases that are not flagged; absent: phrases about what is not there, absent_kept: the same among
    those that are not flagged; flag_precision: flagged phrases about what is not there / flagged phrases;
    flag_recall: the same / phrases about what is not there.
    """

    phrases: int
    kept: float | None
    absent: float | None
    absent_kept: float | None
    flag_precision: float | None
    flag_recall: float | None


def figures(phrases: Sequence[Judged], threshold: float = 0.0) -> Figures:
    """What flagging the phrases with no score above `threshold` does; 0 flags those without boxes."""
    flagged = [phrase for phrase in phrases if phrase.score <= threshold]
    kept = [phrase for phrase in phrases if phrase.score > threshold]
    absent, caught, missed = (sum(not p.present for p in some) for some in (phrases, flagged, kept))
    return Figures(
        phrases=len(phrases),
        kept=_share(len(kept), len(phrases)),
        absent=_share(absent, len(phrases)),
        absent_kept=_share(missed, len(kept)),
        flag_precision=_share(caught, len(flagged)),
        flag_recall=_share(caught, absent),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def judged(
    predictions: Iterable[Prediction], present: Callable[[Prediction, str], bool | None]
) -> list[Judged]:
    """The phrases of predictions; `present` says of a phrase whether it is about something in the picture,
    None where nobody can say, and such phrases are left out."""
    return [
        Judged(phrase.text, float(phrase.scores[0]) if len(phrase.scores) else 0.0, there)
        for prediction in predictions
        for phrase in prediction.phrases
        if phrase.text and (there := present(prediction, phrase.text)) is not None
    ]


def curve(phrases: Sequence[Judged], thresholds: Iterable[float]) -> Table:
    """Precision of the phrases against how many are kept, threshold by threshold."""
    rows: list[tuple[Cell, ...]] = []
    for threshold in thresholds:
        found = figures(phrases, threshold)
        right = None if found.absent_kept is None else 1 - found.absent_kept
        rows.append((str(threshold), found.kept, right, found.flag_precision, found.flag_recall))
    columns = ("threshold", "phrases kept", "of these true", "flags that are right", "made up and flagged")
    return Table("Ungrounded phrases", columns, tuple(rows))
