"""A text embedding as the judge of Grounding-Bench, for phrases whose words name no known class.

Source: spec/evaluation.md 1.5 (offline judge).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float

from lgjax.eval.grounding_bench import TaggedAnswer, Verdicts
from lgjax.eval.judge import WordJudge

Embed = Callable[[Sequence[str]], Float[np.ndarray, "n d"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """A text embedding that helps the word judge with phrases it has no word for.

    Attributes:
        model: Name of the embedding, as its endpoint calls it; the key is taken from OPENAI_API_KEY.
        endpoint: Address of any endpoint that speaks OpenAI's embeddings; None for OpenAI's own.
        threshold: Least cosine at which a phrase means a class; it depends on the embedding.
    """

    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    endpoint: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"--embedding.threshold {self.threshold} is a cosine, within -1 and 1")

    def judge(self, words: WordJudge) -> EmbeddingJudge:
        """The judge; nothing is sent yet.

        Raises:
            ImportError: the client of OpenAI is not installed.
        """
        from lgjax.llm.embeddings import embed

        model = self.model or ""
        return EmbeddingJudge(words, lambda texts: embed(texts, model, self.endpoint), model, self.threshold)


@dataclasses.dataclass(frozen=True)
class EmbeddingJudge:
    """Words decide where they name a class; else the nearest class does, from `threshold` (a cosine) on.

    `embed` gives vectors of length 1.
    """

    words: WordJudge
    embed: Embed
    model: str
    threshold: float

    @property
    def name(self) -> str:
        return f"words, then embedding {self.model} from {self.threshold}"

    def judge(self, answers: Sequence[TaggedAnswer]) -> list[Verdicts]:
        """Verdicts on every pair of every answer.

        Raises:
            RuntimeError: the embedding cannot be had.
        """
        meant = self._nearest(answers)
        out = []
        for answer, verdicts in zip(answers, self.words.judge(answers), strict=True):
            near = {
                (phrase, e.id): meant[text] == e.category
                for phrase, e in answer.pairs
                if (text := answer.groundings[phrase].phrase) in meant
            }
            out.append({**verdicts, **near})
        return out

    def _nearest(self, answers: Sequence[TaggedAnswer]) -> dict[str, str | None]:
        """The class of each phrase that words say nothing about; None where none is near enough."""
        phrases = {answer.groundings[phrase].phrase for answer in answers for phrase, _ in answer.pairs}
        unknown = sorted(phrase for phrase in phrases if phrase and not self.words.lexicon.meant(phrase))
        classes = sorted({e.category for answer in answers for e in answer.entities})
        if not unknown:
            return {}
        vectors = self.embed([*classes, *unknown])
        cosines = vectors[len(classes) :] @ vectors[: len(classes)].T
        best = [(row.max(), classes[int(row.argmax())]) for row in cosines]
        return {
            phrase: name if cosine >= self.threshold else None
            for phrase, (cosine, name) in zip(unknown, best, strict=True)
        }
