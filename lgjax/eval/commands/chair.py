"""`lgjax eval chair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from lgjax.eval.running import Shared


def chair(
    *,
    questions: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    annotations: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    running: Shared,
    captions: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    category: str = "detail",
    ground: bool = True,
) -> None:
    """Hallucination by CHAIR: objects that descriptions mention and the pictures do not hold.

    Args:
        questions: Question file of LLaVA's layout: question_id, image, text, category.
        annotations: COCO's instances of the pictures, for example instances_val2014.json.
        running: What describes: a checkpoint, predictions, or any JSON lines with question_id and text.
        captions: COCO's captions of the pictures: what they mention counts as there, too.
        images: Folder of the pictures, to predict from.
        category: Score the questions of this category ("all": every question).
        ground: Ask for grounded answers.
    """
    from lgjax.data.sources.common import plain_name
    from lgjax.eval import chair as measure
    from lgjax.eval.answers import answers_for, read_answers, settings_of, text_of
    from lgjax.eval.bench_answers import Pictures
    from lgjax.eval.mentions import Lexicon
    from lgjax.eval.question_file import of_category, read_questions
    from lgjax.eval.report import finish

    asked = read_questions(questions)
    pictures = Pictures.read(annotations)
    told = {} if captions is None else measure.read_captions(captions)
    found = answers_for(
        running,
        asked,
        of_category(asked, category),
        images,
        read=read_answers,
        made=text_of,
        ground=ground,
    )
    if found is None:
        return
    lexicon = Lexicon.of(pictures.coco.categories.values())
    rows = []
    for question, answer in found:
        classes = pictures.classes(question.image, question.where)
        there = measure.present(classes, told.get(plain_name(question.image), ()), lexicon)
        mentioned = measure.mentioned(answer.text, there, lexicon)
        rows.append((f"{question.id}, {question.image}", measure.caption(mentioned, there)))
    settings = settings_of([answer for _, answer in found])
    reference = "instances" if captions is None else "instances and captions"
    finish(measure.report(rows, {**settings, "category": category, "reference": reference}), running.out)
