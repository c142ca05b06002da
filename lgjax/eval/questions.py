"""What is asked about pictures, checked before any work is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgjax.data.images import ImageSize, check_shape, image_size
from lgjax.infer.regions import Region, prompt_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about a picture.

    image: as the question file names it; path: its file; regions: clicks and boxes in pixels, one for each %
    of the text; answer: a text with grounding tokens to ground instead of a generated one; extra: kept with
    the prediction.
    """

    id: str | int
    image: str
    path: Path
    text: str
    regions: tuple[Region, ...] = ()
    answer: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check(questions: Sequence[Question]) -> None:
    """Refuse what can be refused before any work is done; of the pictures only the heads are read.

    Raises:
        FileNotFoundError: a picture is not there.
        ValueError: a picture that cannot be read, a region outside of it, or two questions with one id.
    """
    seen: set[str | int] = set()
    sizes: dict[Path, ImageSize] = {}
    faults: list[Exception] = []
    for question in questions:
        if question.id in seen:
            raise ValueError(f"question {question.id!r} is asked twice")
        seen.add(question.id)
        if question.path not in sizes:
            try:
                sizes[question.path] = image_size(question.path)
                check_shape(sizes[question.path])
            except (OSError, ValueError) as error:
                faults.append(type(error)(f"question {question.id!r}: {error}"))
                continue
        for region in question.regions:
            try:
                prompt_of(region, sizes[question.path])
            except ValueError as error:
                raise ValueError(f"question {question.id!r}: {error}") from error
    if faults:
        more = f" ({len(faults)} pictures cannot be used)" if len(faults) > 1 else ""
        raise type(faults[0])(f"{faults[0]}{more}")
