"""`lgjax eval chat-score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from lgjax.eval.model_options import ModelOptions
from lgjax.eval.running import Shared

MaybeFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]


def chat_score(
    *,
    running: Shared,
    reviewer: ModelOptions,
    reviews: MaybeFile = None,
    questions: MaybeFile = None,
    context: MaybeFile = None,
    reference: MaybeFile = None,
    rules: MaybeFile = None,
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    ground: bool = False,
    ignore: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="ID")] = (),
    compat: bool = False,
    dry_run: bool = False,
) -> None:
    """LLaVA-Bench: a language model scores answers beside reference answers; or sum up scores given before.

    With --reviews FILE alone nothing is asked. Otherwise --questions, --context, --reference and
    --reviewer.model are needed, and --out keeps the reviews in reviews.jsonl.

    Args:
        running: What answers: a checkpoint, predictions, or any JSON lines with question_id and text.
        reviewer: The language model that scores.
        reviews: Reviews that were written before: question_id, category, and tuple or content.
        questions: Question file of LLaVA's layout: question_id, image, text, category.
        context: What the reviewer is told of each picture: image, captions and instances (category, bbox).
        reference: The reference answers: question_id, text.
        rules: A rule.json of LLaVA's layout, in the place of our own instructions to the reviewer.
        images: Folder of the pictures, to predict from.
        ground: Ask for grounded answers; markers and boxes are no part of the text that is scored.
        ignore: Leave out the question with this id; may be given several times.
        compat: Failed reviews count as -1 and -1, as in the original's summary; else they are left out.
        dry_run: Say what asking the reviewer would take, and send nothing.
    """
    from lgjax.eval import chat_score as measure
    from lgjax.eval import review
    from lgjax.eval.answers import answers_for, pair, read_answers, settings_of, text_of
    from lgjax.eval.question_file import read_questions
    from lgjax.eval.report import finish

    if reviews is not None:
        if running.checkpoint or running.predictions is not None or reviewer.model or dry_run:
            raise ValueError("--reviews sums up what was reviewed before; leave out what asks for reviews")
        finish(measure.report(review.read_reviews(reviews), {}, ignore, compat=compat), running.out)
        return
    if questions is None or context is None or reference is None or reviewer.model is None:
        raise ValueError(
            "name --questions, --context, --reference and --reviewer.model to ask for reviews, "
            "or --reviews to sum up reviews"
        )
    asked = read_questions(questions)
    references = pair(read_answers(reference), asked, running.limited(asked))
    contexts = review.read_contexts(context)
    chosen = review.own_rules() if rules is None else review.read_rules(rules)
    found = answers_for(running, asked, asked, images, read=read_answers, made=text_of, ground=ground)
    if found is None:
        return
    rows = [(q, best.text, answer.text) for (q, best), (_, answer) in zip(references, found, strict=True)]
    requests = review.requests_of(rows, contexts, chosen, reviewer.model)
    if dry_run:
        print(reviewer.plan(requests))
        return
    client = reviewer.client()
    given = review.ask(client, [question for question, _ in found], requests)
    print(client.spent)
    if running.out is not None:
        review.write_reviews(running.out / "reviews.jsonl", given)
    settings = {**settings_of([answer for _, answer in found]), "reviewer": reviewer.model}
    finish(measure.report(given, settings, ignore, compat=compat), running.out)
