"""`lgjax eval pope`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from lgjax.eval.running import Shared


def pope(
    *,
    questions: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    running: Shared,
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    ground: bool = False,
) -> None:
    """Hallucination by POPE's yes/no questions about objects.

    Args:
        questions: Question file: question_id, image, text and label ("yes" or "no"); where it has a category
            (random, popular, adversarial), each has its own row.
        running: What answers: a checkpoint, predictions, or any JSON lines with question_id and text.
        images: Folder of the pictures, to predict from.
        ground: Ask for grounded answers: does grounding change what the model claims to see?
    """
    from lgjax.eval import pope as measure
    from lgjax.eval.answers import answers_for, read_answers, settings_of, text_of
    from lgjax.eval.question_file import read_questions
    from lgjax.eval.report import finish

    asked = read_questions(questions)
    labels: dict[str | int, measure.Label] = {question.id: measure.label_of(question) for question in asked}
    found = answers_for(running, asked, asked, images, read=read_answers, made=text_of, ground=ground)
    if found is not None:
        rows = [measure.Row(q.category, labels[q.id], answer.text) for q, answer in found]
        finish(measure.report(rows, settings_of([answer for _, answer in found])), running.out)
