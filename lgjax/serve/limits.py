"""Bounds of what a server lets in and does at a time."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

STOP_CHARACTERS = 256  # of a stop text, which is looked for after every few words
POINTS = 10_000  # of all scribbles of a request
PHRASE_PIXELS = 64_000_000  # of the picture, times the phrases of a given answer: each has masks of its own
PHRASE_BOXES = 9  # boxes and masks of a phrase, at most
MASK_PIXELS = 64_000_000  # of all masks of a request


class BadQuestion(ValueError):
    """A question makes no sense; the message is for the one who asked."""


class TooLarge(BadQuestion):
    """Something is over a limit of size."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """While a question is read a ValueError is the asker's fault; anywhere else it is one of the server."""
    try:
        yield
    except BadQuestion:
        raise
    except ValueError as error:
        raise BadQuestion(str(error)) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of what clients may ask, and of how much is done at a time.

    upload_bytes: of one request; pixels: of a picture; turns: questions of a conversation; regions: of a
    question; prompt_tokens: of a conversation with its picture; max_tokens: of an answer; waiting: questions
    in the queue; batch: questions that are answered together; gather_seconds: how long a question waits for
    others to share its batch; pictures: whose features are kept for the next question; page_minutes: after
    which the page forgets a conversation that nobody goes on with.
    """

    upload_bytes: int = 16 * 2**20
    pixels: int = 16_000_000
    turns: int = 16
    regions: int = 16
    prompt_tokens: int = 2048
    max_tokens: int = 1024
    waiting: int = 64
    batch: int = 8
    gather_seconds: float = 0.02
    pictures: int = 8
    page_minutes: int = 60

    def check_conversation(self, regions: Sequence[int]) -> None:
        """Refuse too many questions or regions; `regions` has the number of regions of each question.

        Raises:
            TooLarge: over a limit.
        """
        if len(regions) > self.turns:
            raise TooLarge(
                f"the conversation has {len(regions)} questions, more than {self.turns}; begin a new one"
            )
        for i, count in enumerate(regions):
            if count > self.regions:
                raise TooLarge(f"question {i + 1} has {count} regions, more than {self.regions}")

    def check(self) -> None:
        """Refuse bounds that let nothing in.

        Raises:
            ValueError: a bound below 1, or a negative time.
        """
        for name, value in dataclasses.asdict(self).items():
            if value < 0 or (value < 1 and name != "gather_seconds"):
                raise ValueError(f"limit {name} {value} must be at least 1")
