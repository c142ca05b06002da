"""CHAIR: objects that a caption mentions and the picture does not hold.

Source: Rohrbach et al. 2018; spec/evaluation.md 6.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Caption:
    """The objects that one caption mentions, in order and as often as it does, and those among them that are
    not in the picture."""

    mentioned: tuple[str, ...]
    hallucinated: tuple[str, ...]

    @property
    def chair_i(self) -> float:
        return len(self.hallucinated) / len(self.mentioned) if self.mentioned else 0.0

    @property
    def chair_s(self) -> int:
        return int(bool(self.hallucinated))


@dataclasses.dataclass(frozen=True)
class Scores:
    """chair_i: hallucinated mentions / all mentions; chair_s: captions with at least one / all captions."""

    chair_i: float
    chair_s: float


def caption(mentioned: Iterable[str], present: Iterable[str]) -> Caption:
    """Hold what a caption mentions to what is in the picture; both are names of classes."""
    mentioned, present = tuple(mentioned), set(present)
    return Caption(mentioned, tuple(name for name in mentioned if name not in present))


def score(captions: Sequence[Caption]) -> Scores:
    """Add up captions; zeros where there is nothing to add up."""
    mentions = sum(len(c.mentioned) for c in captions)
    return Scores(
        sum(len(c.hallucinated) for c in captions) / mentions if mentions else 0.0,
        sum(c.chair_s for c in captions) / len(captions) if captions else 0.0,
    )
