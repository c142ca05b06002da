"""The predictions that a measure likes least, drawn for its report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lgjax.data.images import load_image
from lgjax.eval.drawing import drawn
from lgjax.eval.predictions import Prediction
from lgjax.eval.report import Example

SHOWN = 10


class Judged(NamedTuple):
    """A prediction with what it is worth, what is to be said of it, and where its picture lies."""

    value: float
    title: str
    prediction: Prediction
    path: Path


def worst(judged: Iterable[Judged]) -> tuple[Example, ...]:
    """Those of the lowest value, drawn; pictures that are not there are passed over.

    Raises:
        ValueError: a picture cannot be read, or has another size than its prediction says.
    """
    there = [one for one in sorted(judged, key=lambda one: one.value) if one.path.is_file()][:SHOWN]
    return tuple(
        Example(f"{one.prediction.image}: {one.title}", drawn(load_image(one.path), one.prediction))
        for one in there
    )
