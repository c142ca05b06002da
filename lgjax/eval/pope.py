"""POPE: yes/no questions about objects, and how often a model sees what is not there.

Source: Li et al. 2023 (POPE); spec/evaluation.md 6.2.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lgjax.eval.lines import shown
from lgjax.eval.question_file import FileQuestion
from lgjax.eval.report import Report, Table

Label = Literal["yes", "no"]
_NO = {"No", "not", "no"}


def parse(answer: str) -> Label:
    """Read "no" from the first sentence if it holds the word No, not or no; anything else is "yes".

    As in POPE itself upper and lower case matter, commas are dropped, and words end at blanks.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if _NO.intersection(words) else "yes"


@dataclasses.dataclass(frozen=True)
class Scores:
    """Counts with "yes" as the positive answer; shares are in [0, 1], 0 where there is nothing to share."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def accuracy(self) -> float:
        return _share(self.tp + self.tn, self.count)

    @property
    def precision(self) -> float:
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def yes_ratio(self) -> float:
        return _share(self.tp + self.fp, self.count)

    @property
    def count(self) -> int:
        return self.tp + self.fp + self.tn + self.fn


def score(parsed: Sequence[Label], labels: Sequence[Label]) -> Scores:
    """Hold parsed answers to their labels.

    Raises:
        ValueError: the lists differ in length.
    """
    found: collections.Counter[tuple[str, str]] = collections.Counter(zip(parsed, labels, strict=True))
    kinds = (("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"))
    return Scores(*(found[kind] for kind in kinds))


def label_of(question: FileQuestion) -> Label:
    """The right answer to a question.

    Raises:
        ValueError: it has none.
    """
    label = question.fields.get("label")
    if label not in ("yes", "no"):
        raise ValueError(f"{question.where}: label must be yes or no, found {shown(label)}")
    return label


class Row(NamedTuple):
    """An answer to a question of some category, if it has one, and the right answer."""

    category: str | None
    label: Label
    answer: str


def report(rows: Sequence[Row], settings: Mapping[str, Any]) -> Report:
    """The report of answers: a row for all, and for each category."""
    parts = {"all": list(rows)}
    for row in rows:
        if row.category is not None:
            parts.setdefault(row.category, []).append(row)
    lines = []
    for name, some in parts.items():
        found = score([parse(row.answer) for row in some], [row.label for row in some])
        shares = found.accuracy, found.precision, found.recall, found.f1, found.yes_ratio
        lines.append((name, *shares, found.tp, found.fp, found.tn, found.fn))
    columns = ("questions", "accuracy", "precision", "recall", "F1", "yes ratio", "TP", "FP", "TN", "FN")
    note = "An answer is no if its first sentence holds the word No, not or no; every other answer is yes."
    return Report("POPE", settings, (Table("Scores", columns, tuple(lines)),), (note,))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
