"""The options that every measurement shares: which checkpoint predicts, how, where to, and what is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """Where predictions come from.

    Attributes:
        checkpoint: Checkpoint folder that predicts.
        predictions: Predictions that were made before: a file, or the folder of a run.
        out: Folder for predictions and report; a run that was stopped goes on with the same command.
        limit: Only the first so many questions.
        batch: Questions that are answered together, on each copy of the model.
        process: I/N: this process makes its part of the predictions, I is 0 to N-1. All write to one --out.
        threshold: A query answers for a phrase above this probability; None keeps only the best query. Of
            predictions that were made before, coco and scenes cut at it, the others take them as they are.
        queries: Object queries of the grounding model, at most 900; None for the checkpoint's own number.
        max_tokens: Most tokens of an answer.
        dtype: Numbers of the language model; auto takes float32 where it fits into memory.
        fsdp: Devices over which the weights of a copy are split by their inner width.
        tensor: Devices over which heads and MLP columns of a copy are split.
    """

    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    predictions: Annotated[Path | None, tyro.conf.arg(metavar="FILE_OR_DIR")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    limit: int | None = None
    batch: int = 8
    process: Annotated[str, tyro.conf.arg(metavar="I/N")] = "0/1"
    threshold: float | None = 0.2
    queries: int | None = None
    max_tokens: int = 1000
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    fsdp: int = 1
    tensor: int = 1

    def limited(self, questions: Sequence[Any]) -> Sequence[Any]:
        """The questions that are asked.

        Raises:
            ValueError: a limit below 1.
        """
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit {self.limit} must be at least 1")
        return questions[: self.limit]


NOTHING_CHOSEN = Running()
Shared = Annotated[Running, tyro.conf.arg(name="")]  # its options stand beside those of the command


def process_of(text: str) -> tuple[int, int]:
    """Read "I/N".

    Raises:
        ValueError: other than two whole numbers, I from 0 to N - 1.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()) or int(number) >= int(count):
        raise ValueError(f"--process {text} must be I/N with I from 0 to N-1, for example 0/4")
    return int(number), int(count)
