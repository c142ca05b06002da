"""What a reader hears of an answer while it is written, and which part of it can no longer change."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from lgjax.infer.answer import Answer, Phrase
from lgjax.infer.grounded import END_TAG
from lgjax.text import markup
from lgjax.text.tokenizer import Tokenizer

_HELD = len(END_TAG)  # no fewer than "'re" and what follows it, which decide on a space in front
_HALF = "\N{REPLACEMENT CHARACTER}"  # what a part of a character is decoded to


@dataclasses.dataclass(frozen=True)
class Words:
    """The next piece of the answer's text; all pieces joined are that text."""

    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The phrase of a `<seg>` that was just written, with boxes and masks; its words were told before.

    number: its place among the answer's phrases. The model looks for all phrases of an answer together, so
    the boxes and masks of the finished answer may differ from what was found before the last phrase came.
    """

    number: int
    phrase: Phrase


@dataclasses.dataclass(frozen=True, eq=False)
class Done:
    """The finished answer, equal to that of `ask`."""

    answer: Answer


Event = Words | Found | Done


def kept_ids(
    ids: Int32[np.ndarray, " n"], stops: Sequence[str], tokenizer: Tokenizer
) -> tuple[Int32[np.ndarray, " m"], bool]:
    """Ids up to where the text ends the answer, behind a spelled-out end tag or before a stop, if it does.

    Of several stops the one that is complete first ends the answer.
    """
    end = tokenizer.stop_length(ids)
    ids = ids if end is None else ids[:end]
    text = tokenizer.decode(ids)
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return (_ids_within(ids, text[: min(found)[1]], tokenizer), True) if found else (ids, end is not None)


def settled_ids(
    ids: Int32[np.ndarray, " n"], stops: Sequence[str], tokenizer: Tokenizer
) -> Int32[np.ndarray, " m"]:
    """Ids before what may turn out to be the begin of a stop."""
    text = tokenizer.decode(ids)
    begun = max((_begun(text, stop) for stop in stops), default=0)
    return _ids_within(ids, text[: len(text) - begun], tokenizer) if begun else ids


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of the text may begin a stop; only as many as it has are looked at."""
    most = min(len(stop) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)


def _ids_within(ids: Int32[np.ndarray, " n"], text: str, tokenizer: Tokenizer) -> Int32[np.ndarray, " m"]:
    """As many ids as `text` begins with."""
    # from the end: the text of a part may hold half a character, which is no begin of the whole text
    fits = (n for n in range(len(ids), -1, -1) if text.startswith(tokenizer.decode(ids[:n])))
    return ids[: next(fits)]


def settled_text(ids: Int32[np.ndarray, " n"], tokenizer: Tokenizer, *, whole: bool) -> str:
    """The text of an answer (`whole`), or of its begin: the part that no further id can change.

    What may change are half characters, the last few characters (they decide whether a space stands before
    them, or are an end tag) unless a phrase ends there, and white space at the end.
    """
    text, phrases = markup.parse_ids(ids, tokenizer)
    if whole:
        return text.removesuffix(END_TAG).rstrip()
    end = max([len(text) - _HELD, 0, *(phrase.end for phrase in phrases)])
    return text[: min(end, len(text.rstrip(_HALF)))].rstrip()
