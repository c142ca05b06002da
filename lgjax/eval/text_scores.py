"""Scores of texts against reference texts: METEOR (nltk), CIDEr, and how alike two phrases are.

Source: spec/evaluation.md 6.2.
"""

from __future__ import annotations

import collections
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Similarity = Callable[[str, str], float]
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_LONGEST = 4  # words of an n-gram
_SPREAD = 6.0  # of the penalty for another length, in words
_FUNCTION_WORDS = frozenset(
    ("a", "an", "the", "of", "in", "on", "at", "by", "to", "with", "and", "or", "its", "his", "her", "their")
)
NEEDS_NLTK = 'scores of captions need nltk: pip install "lgjax[eval]"'
CIDER = "CIDEr-D (own; lower case, words without punctuation)"
SIMILARITY_USED = "share of word stems in common (Dice; function words left out), no embedding model"


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption against its references, in [0, 10]; the corpus score is their mean.

    n-grams of 1 to 4 words are weighted by how few pictures' references have them, so the references of the
    whole corpus matter. Source: Vedantam et al. 2015, section 5, with the n-gram order 4, sigma 6 and the
    factor 10 of the COCO caption tools.

    Raises:
        ValueError: a caption has no reference.
    """
    if len(candidates) != len(references) or not all(references):
        raise ValueError("each caption needs one reference or more")
    told = [[_grams(text) for text in texts] for texts in references]
    frequency = collections.Counter(gram for texts in told for gram in set().union(*texts))
    weigh = functools.partial(_weighted, frequency, math.log(len(references)) if references else 0.0)
    scores = []
    for candidate, texts in zip(candidates, told, strict=True):
        mine = weigh(_grams(candidate))
        scores.append(10 * sum(_likeness(mine, weigh(text)) for text in texts) / len(texts))
    return scores


Grams = collections.Counter[tuple[str, ...]]
Vector = Mapping[tuple[str, ...], float]


def _grams(text: str) -> Grams:
    said = words(text)
    return collections.Counter(
        tuple(said[i : i + n]) for n in range(1, _LONGEST + 1) for i in range(len(said) - n + 1)
    )


def _weighted(frequency: Mapping[tuple[str, ...], int], log_count: float, grams: Grams) -> tuple[Vector, int]:
    """tf-idf of n-grams, and the number of words."""
    vector = {
        gram: count * (log_count - math.log(max(1, frequency.get(gram, 0)))) for gram, count in grams.items()
    }
    return vector, sum(count for gram, count in grams.items() if len(gram) == 1)


def _likeness(candidate: tuple[Vector, int], reference: tuple[Vector, int]) -> float:
    (mine, length), (theirs, other) = candidate, reference
    penalty = math.exp(-((length - other) ** 2) / (2 * _SPREAD**2))
    total = 0.0
    for n in range(1, _LONGEST + 1):
        shared = sum(
            min(weight, theirs[gram]) * theirs[gram]
            for gram, weight in mine.items()
            if len(gram) == n and gram in theirs
        )
        lengths = _norm(mine, n) * _norm(theirs, n)
        total += shared / lengths if lengths else 0.0
    return penalty * total / _LONGEST


def _norm(vector: Vector, n: int) -> float:
    return math.sqrt(sum(weight**2 for gram, weight in vector.items() if len(gram) == n))


class _NoSynonyms:
    """Stands in for WordNet where it is not installed: no word has a synonym."""

    def synsets(self, word: str) -> Sequence[Any]:
        return ()


@functools.cache
def wordnet() -> Any:
    """NLTK's WordNet where its data are installed, else None.

    Raises:
        ImportError: nltk is not installed.
    """
    try:
        from nltk.corpus import wordnet as corpus
    except ImportError as error:
        raise ImportError(NEEDS_NLTK) from error
    try:
        corpus.ensure_loaded()
    except LookupError:
        return None
    return corpus


def meteor_used() -> str:
    """Which METEOR `meteor` computes on this machine."""
    import nltk

    parts = (
        "exact words, stems, WordNet synonyms" if wordnet() else "exact words and stems; WordNet is not there"
    )
    return f"METEOR of nltk {nltk.__version__} ({parts}), not the Java program of the COCO caption tools"


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """METEOR of each caption against its best reference, in [0, 1], by nltk. Source: Banerjee & Lavie 2005.

    Raises:
        ImportError: nltk is not installed.
    """
    synonyms: Any = wordnet() or _NoSynonyms()
    from nltk.translate.meteor_score import meteor_score

    return [
        float(meteor_score([words(text) for text in texts], words(candidate), wordnet=synonyms))
        for candidate, texts in zip(candidates, references, strict=True)
    ]


def stem_similarity(a: str, b: str) -> float:
    """How alike two phrases are, in [0, 1]: twice the common word stems over all of both (Dice).

    Articles and other function words are left out, unless a phrase has nothing else; stems by nltk.

    Raises:
        ImportError: nltk is not installed.
    """
    ours, theirs = _stems(a), _stems(b)
    total = len(ours) + len(theirs)
    return 2 * len(ours & theirs) / total if total else 0.0


def _stems(text: str) -> frozenset[str]:
    try:
        from nltk.stem import PorterStemmer
    except ImportError as error:
        raise ImportError(NEEDS_NLTK) from error
    said = set(words(text))
    return frozenset(map(PorterStemmer().stem, said - _FUNCTION_WORDS or said))
