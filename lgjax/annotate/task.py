"""What an annotator gets and gives: a text about a picture, and which of its words mean which instances."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True)
class Instance:
    """An annotated thing. box: (x0, y0, x1, y1) in [0, 1] of the picture; id: that of its annotation."""

    id: int | str
    category: str
    box: tuple[float, float, float, float]
    crowd: bool = False

    @property
    def area(self) -> float:
        """Of the box, as a share of the picture."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def centre(self) -> float:
        """The middle of the box from left (0) to right (1)."""
        return (self.box[0] + self.box[2]) / 2


@dataclasses.dataclass(frozen=True)
class Task:
    """A text (an answer or a question) about a picture with these instances."""

    text: str
    instances: tuple[Instance, ...]


class Link(NamedTuple):
    """Characters [start, end) of the text mean these instances (indices of the task)."""

    start: int
    end: int
    instances: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Marked:
    """A text with its links, in reading order and without overlaps.

    fault: why it was rejected (then there are no links), or empty; repaired: the second answer was taken;
    pending: there is no answer yet.
    """

    links: tuple[Link, ...] = ()
    fault: str = ""
    repaired: bool = False
    pending: bool = False


@runtime_checkable
class Annotator(Protocol):
    """Ties phrases to instances."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its answers: results of annotators that differ in it must not be mixed."""
        ...

    def annotate(self, tasks: Sequence[Task]) -> list[Marked]:
        """The links of each text, in the order of the tasks."""
        ...
