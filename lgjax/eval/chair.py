"""CHAIR: objects that a caption mentions and the picture does not hold.

Source: Rohrbach et al. 2018; spec/evaluation.md 6.2.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lgjax.data.sources.common import read_coco
from lgjax.eval.lines import a_text
from lgjax.eval.mentions import Lexicon
from lgjax.eval.report import Report, Table

_WORST = 20


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


def read_captions(path: Path) -> dict[str, list[str]]:
    """The captions of a COCO file, by the plain names of their pictures.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has another layout.
    """
    coco = read_coco(path)
    return {
        name: [
            a_text(annotation.get("caption"), f"{path}: caption of annotation {annotation['id']}")
            for annotation in coco.annotations.get(entry["id"], [])
        ]
        for name, entry in coco.named.items()
    }


def present(classes: Iterable[str], captions: Iterable[str], lexicon: Lexicon) -> set[str]:
    """What is in a picture: the classes of its annotations, and all that its captions may mention."""
    named = {name for text in captions for mention in lexicon.mentions(text) for name in mention.classes}
    return {*classes, *named}


def mentioned(text: str, there: set[str], lexicon: Lexicon) -> list[str]:
    """The classes that a text mentions; of a word that may mean several, one that is there."""
    return [
        next((name for name in mention.classes if name in there), mention.classes[0])
        for mention in lexicon.mentions(text)
    ]


def report(rows: Sequence[tuple[str, Caption]], settings: Mapping[str, Any]) -> Report:
    """The report of captions, each with what to call it."""
    captions = [found for _, found in rows]
    scores = score(captions)
    mentions = sum(len(found.mentioned) for found in captions)
    main = (scores.chair_i, scores.chair_s, mentions, len(captions))
    named = collections.Counter(name for found in captions for name in found.mentioned)
    wrong = collections.Counter(name for found in captions for name in found.hallucinated)
    classes = [(name, count, wrong[name], wrong[name] / count) for name, count in named.most_common()]
    worst = sorted((row for row in rows if row[1].hallucinated), key=lambda row: -len(row[1].hallucinated))
    tables = (
        Table("Scores", ("CHAIRi", "CHAIRs", "mentions", "captions"), (main,)),
        Table("Classes", ("class", "mentions", "hallucinated", "share"), tuple(classes)),
        Table(
            "The worst",
            ("caption", "hallucinated"),
            tuple((name, ", ".join(found.hallucinated)) for name, found in worst[:_WORST]),
        ),
    )
    return Report("CHAIR", settings, tables, ("Words are mapped to classes by a list of lgjax's own.",))
