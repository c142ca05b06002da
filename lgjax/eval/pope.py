"""POPE: yes/no questions about objects, and how often a model sees what is not there.

Source: Li et al. 2023 (POPE); spec/evaluation.md 6.2.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal

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
    found = collections.Counter(zip(parsed, labels, strict=True))
    kinds = (("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"))
    return Scores(*(found[kind] for kind in kinds))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
