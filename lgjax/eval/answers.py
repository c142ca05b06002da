"""Answers to the questions of a file: read from any program's JSON lines, or made by a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lgjax.data.sources.common import Pictures
from lgjax.eval.lines import a_text, an_id, fields_of, parse_json, read_all
from lgjax.eval.predictions import Answered, Prediction, match
from lgjax.eval.question_file import FileQuestion
from lgjax.eval.running import Running

A = TypeVar("A", bound=Answered)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A text that answers a question; image: None where the line does not say; settings: those of its run."""

    question_id: str | int
    image: str | None
    text: str
    where: str
    settings: Mapping[str, Any]


def read_answers(path: Path) -> list[Answer]:
    """Read a file, or a folder of shards, whose lines have "question_id" and "text".

    Predictions of lgjax, records of the original's evaluator and answer files of LLaVA all do.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a line has not, or a question has two answers.
    """
    return read_all(path, _answer)


def _answer(line: str, where: str) -> Answer:
    fields = fields_of(parse_json(line, where), ("question_id", "text"), None, where)
    image = fields.get("image")
    return Answer(
        an_id(fields["question_id"], where),
        None if image is None else a_text(image, f"{where}: image"),
        a_text(fields["text"], f"{where}: text"),
        where,
        settings if isinstance(settings := fields.get("settings"), dict) else {},
    )


def text_of(prediction: Prediction) -> Answer:
    """The text of a prediction."""
    return Answer(
        prediction.question_id, prediction.image, prediction.text, prediction.where, prediction.settings
    )


def settings_of(answers: Sequence[Answer | Prediction]) -> dict[str, Any]:
    """The settings that answers were made with; "differs" where they are not of one run."""
    names = dict.fromkeys(name for answer in answers for name in answer.settings)
    found = {name: [answer.settings.get(name) for answer in answers] for name in names}
    return {
        name: some[0] if all(value == some[0] for value in some) else "differs"
        for name, some in found.items()
    }


def pair(
    answers: Sequence[A], questions: Sequence[FileQuestion], wanted: Sequence[FileQuestion]
) -> list[tuple[FileQuestion, A]]:
    """Give the `wanted` ones of all `questions` of a file their answers; those to others are left alone.

    Raises:
        ValueError: a wanted question has no answer; an answer to no question, or about another picture.
    """
    found = {question.id: answer for question, answer in match(answers, questions, missing=True) if answer}
    if lost := [question.id for question in wanted if question.id not in found]:
        raise ValueError(
            f"{len(lost)} of {len(wanted)} questions have no answer, first {lost[0]!r}; "
            "--limit N scores the first N questions only"
        )
    return [(question, found[question.id]) for question in wanted]


def pictures_in(folder: Path) -> Pictures:
    """The pictures of a folder, or of COCO's folders in it."""
    return Pictures.below(folder, "val2014", "val2017", "train2014", "train2017")


def check_there(pictures: Pictures, questions: Sequence[FileQuestion]) -> None:
    """Raise FileNotFoundError where the picture of a question is not there."""
    for question in questions:
        if not (path := pictures.path(question.image)).is_file():
            raise FileNotFoundError(f"{question.where}: there is no picture {path}")


def answers_for(
    running: Running,
    questions: Sequence[FileQuestion],
    wanted: Sequence[FileQuestion],
    images: Path | None,
    *,
    read: Callable[[Path], list[A]],
    made: Callable[[Prediction], A],
    **options: Any,
) -> list[tuple[FileQuestion, A]] | None:
    """The `wanted` questions with their answers: by `read` from --predictions, or made by --checkpoint.

    images: folder of the pictures; options: fields of `lgjax.infer.request.Options`. None: other processes
    of the run have not made their part yet.

    Raises:
        FileNotFoundError, ValueError: see `pair` and `lgjax.eval.run.predictions_for`.
    """
    wanted = running.limited(wanted)
    if running.predictions is not None and not running.checkpoint:
        return pair(read(running.predictions), questions, wanted)
    from lgjax.eval.questions import Question
    from lgjax.eval.run import predictions_for

    if running.checkpoint and images is None:
        raise ValueError("--checkpoint needs --images DIR, the folder of the pictures")
    pictures = pictures_in(images or Path())
    asked = [
        Question(id=q.id, image=q.image, path=pictures.path(q.image), text=q.text, extra=q.kept)
        for q in wanted
    ]
    found = predictions_for(running, asked, **options)
    if found is None:
        return None
    return [(question, made(prediction)) for question, (_, prediction) in zip(wanted, found, strict=True)]
