"""From answers to figures of Grounding-Bench: read or predict, cut at thresholds, match, judge, add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lgjax.eval import predictions
from lgjax.eval.answers import answers_for, pair, settings_of
from lgjax.eval.bench_answers import BenchAnswer, Pictures, of_prediction, of_record, tag
from lgjax.eval.bench_report import Scored
from lgjax.eval.embedding_judge import EmbeddingOptions
from lgjax.eval.grounding_bench import TaggedAnswer
from lgjax.eval.grounding_bench import score as add_up
from lgjax.eval.judge import Judge, VerdictFile, WordJudge
from lgjax.eval.llm_judge import ModelJudge, request_of
from lgjax.eval.mentions import Lexicon
from lgjax.eval.model_options import ModelOptions
from lgjax.eval.predictions import Prediction
from lgjax.eval.question_file import FileQuestion
from lgjax.eval.records import read_records
from lgjax.eval.running import Running

At = tuple[float | None, list[TaggedAnswer]]
"""A threshold (None: as the answers were made) and the answers cut at it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """Answers with the names of their pictures: predictions, or records of the original's evaluator."""

    predictions: tuple[tuple[str, Prediction], ...] = ()
    records: tuple[tuple[str, BenchAnswer], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the predictions, which are the same for all of a run."""
        return settings_of([prediction for _, prediction in self.predictions])


def collect(
    running: Running,
    records: Path | None,
    questions: Sequence[FileQuestion],
    wanted: Sequence[FileQuestion],
    images: Path | None,
) -> Found | None:
    """The answers to the `wanted` ones of all `questions`; None while other processes have yet to predict.

    Raises:
        FileNotFoundError, ValueError: see `answers_for`; or records are given besides predictions.
    """
    if records is None:
        found = answers_for(
            running, questions, wanted, images, read=predictions.read, made=lambda prediction: prediction
        )
        return None if found is None else Found(predictions=tuple((q.image, p) for q, p in found))
    if running.checkpoint or running.predictions is not None:
        raise ValueError("--records takes the place of --predictions and --checkpoint; give one of them")
    answers = [of_record(record) for record in read_records(records)]
    return Found(records=tuple((q.image, a) for q, a in pair(answers, questions, running.limited(wanted))))


@dataclasses.dataclass(frozen=True)
class Measure:
    """How boxes become references: to the entities of `pictures`, from `min_iou` on, at `thresholds`."""

    pictures: Pictures
    thresholds: tuple[float, ...] = ()
    min_iou: float = 0.5
    deduplicate: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.min_iou <= 1:
            raise ValueError(f"--min-iou {self.min_iou} must be above 0 and at most 1")
        if not all(0 <= threshold < 1 for threshold in self.thresholds):
            raise ValueError(f"--thresholds {self.thresholds} must each be within 0 and 1")

    @property
    def settings(self) -> dict[str, Any]:
        """What a reader of the figures must know of them."""
        return {
            "match": f"IoU >= {self.min_iou}",
            "same entity twice in a phrase": "counts once" if self.deduplicate else "counts twice",
            "average": "micro",
            "crowds": "left out",
        }

    def tag(self, found: Found) -> list[At]:
        """Cut answers at each threshold and match them.

        Raises:
            ValueError: see `tag`; a threshold for records, which have no scores, or one below that of the
                predictions, whose boxes are not there.
        """
        options: dict[str, Any] = {"min_iou": self.min_iou, "deduplicate": self.deduplicate}
        if found.records:
            if self.thresholds:
                raise ValueError("--thresholds needs predictions: a record of the original has no scores")
            return [(None, tag(found.records, self.pictures, **options))]
        for _, prediction in found.predictions:
            _check(self.thresholds, prediction)
        runs: list[At] = []
        for threshold in self.thresholds or (None,):
            cut = [
                (image, of_prediction(p if threshold is None else predictions.cut(p, threshold)))
                for image, p in found.predictions
            ]
            runs.append((threshold, tag(cut, self.pictures, **options)))
        return runs


def _check(thresholds: Sequence[float], prediction: Prediction) -> None:
    """Refuse thresholds below the one a prediction was made with; where it does not say, all is there."""
    own = prediction.settings.get("threshold", 0.0)
    for threshold in thresholds:
        if own is not None and not isinstance(own, int | float):
            raise ValueError(f"{prediction.where}: the threshold of its settings is no number: {own!r}")
        if own is None:
            raise ValueError(
                f"{prediction.where}: --thresholds needs more than the best query of each phrase"
            )
        if threshold < own:
            raise ValueError(
                f"{prediction.where}: --thresholds {threshold} is below {own}, with which it was predicted"
            )


def judge_of(
    verdicts: Path | None,
    model: ModelJudge | None,
    embedding: EmbeddingOptions,
    questions: Sequence[FileQuestion],
    categories: Iterable[str],
) -> Judge:
    """The judge that was named: a file of verdicts, a language model, or words, with an embedding or not.

    Raises:
        ValueError: two are named.
    """
    named = {"--verdicts": verdicts, "--judge.model": model, "--embedding.model": embedding.model}
    if len(given := [name for name, value in named.items() if value is not None]) > 1:
        raise ValueError(f"{' and '.join(given)} are different judges; name one of them")
    if verdicts is not None:
        return VerdictFile(verdicts, frozenset(question.id for question in questions))
    if model is not None:
        return model
    words = WordJudge(Lexicon.of(categories, groups=True))
    return embedding.judge(words) if embedding.model else words


def plan(runs: Sequence[At], options: ModelOptions) -> str:
    """What asking a model about these answers would take, in words; nothing is sent.

    Raises:
        ValueError: no model is named.
    """
    if not options.model:
        raise ValueError("--dry-run says what a model would cost; name one with --judge.model")
    return options.plan([request_of(a, options.model) for _, answers in runs for a in answers if a.pairs])


def score(runs: Sequence[At], judge: Judge) -> list[Scored]:
    """Judge answers at each threshold, and add up.

    Raises:
        ValueError, RuntimeError: see the judges.
    """
    scored = []
    for threshold, answers in runs:
        verdicts = judge.judge(answers)
        scored.append(Scored(threshold, tuple(answers), tuple(verdicts), add_up(answers, verdicts)))
    return scored
