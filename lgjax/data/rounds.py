"""From a record to the rounds of a conversation: which questions, which answers, what their words point at.

Source: spec/training_and_data.md 6, 8.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lgjax.data import questions
from lgjax.data.schema import Expression, Record
from lgjax.text.conversation import (
    FIRST_REFERRING_QUESTION,
    FLICKR_QUESTION,
    GROUNDING_SUFFIX,
    REFERRING_ANSWER,
    REFERRING_QUESTION,
    V1,
    VISUAL_PROMPT_TAG,
    Template,
)
from lgjax.text.markup import mark_phrases
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER

REFERRING_ROUNDS = 4  # most expressions of one sample
REGION_ROUNDS = 5
Wording = Literal["released", "varied"]


class Round(NamedTuple):
    """A question and its answer with grounding tokens.

    phrases: the objects of each <seg> of the answer, in order; regions: the object of each "<obj>" of
    question and answer, in order.
    """

    question: str
    answer: str
    phrases: tuple[tuple[int, ...], ...] = ()
    regions: tuple[int, ...] = ()


def rounds_of(record: Record, rng: np.random.Generator, wording: Wording = "released") -> tuple[Round, ...]:
    """Choose and write the rounds of one training sample; the first question carries the image tag.

    A chat is taken as it stands. A caption answers a request for a short description. Of a referring record
    one to four expressions are asked for, of a region record one to five, each in one of its texts.
    `wording` "released" asks with the one question that the released checkpoints know, "varied" draws from
    `questions`, also in place of the "(with grounding)" of a chat.

    Raises:
        ValueError: the record has nothing to ask for.
    """
    rounds = _ROUNDS[record.kind](record, rng, wording)
    if not rounds:
        raise ValueError(f"a '{record.kind}' record without anything to ask for")
    return rounds if record.image is None else (_with_image(rounds[0], record), *rounds[1:])


def render(rounds: Sequence[Round], template: Template = V1) -> str:
    """Write rounds as the text the model is trained on; "<obj>" is still in it.

    Source: spec/language_model.md 7.2.
    """
    return template.render([text for one in rounds for text in (one.question, one.answer)])


def _with_image(first: Round, record: Record) -> Round:
    """Captions and referring questions hold their image tag already."""
    if record.kind in ("caption", "referring"):
        return first
    question = f"{IMAGE_PLACEHOLDER}\n{first.question.strip()}".strip()
    return first._replace(question=space_regions(question))


def _chat(record: Record, rng: np.random.Generator, wording: Wording) -> tuple[Round, ...]:
    rounds = []
    for turn in range(0, len(record.turns), 2):
        question, answer = record.turns[turn].text, record.turns[turn + 1].text
        phrases = [phrase for phrase in record.phrases if phrase.turn == turn + 1]
        if wording == "varied":
            question = question.replace(GROUNDING_SUFFIX, _draw(questions.GROUNDING_SUFFIXES, rng))
        rounds.append(
            Round(
                question=space_regions(question),
                answer=space_regions(mark_phrases(answer, [phrase.span for phrase in phrases])),
                phrases=tuple(phrase.objects for phrase in phrases),
                regions=tuple(r.object for r in record.regions if r.turn in (turn, turn + 1)),
            )
        )
    return tuple(rounds)


def _caption(record: Record, rng: np.random.Generator, wording: Wording) -> tuple[Round, ...]:
    question = FLICKR_QUESTION
    if wording == "varied":
        request, suffix = _draw(questions.BRIEF, rng), _draw(questions.GROUNDING_SUFFIXES, rng)
        question = f"{IMAGE_PLACEHOLDER}\n{request}\n{suffix}"
    answer = mark_phrases(record.turns[0].text, [phrase.span for phrase in record.phrases])
    return (Round(question, answer, tuple(phrase.objects for phrase in record.phrases)),)


def _referring(record: Record, rng: np.random.Generator, wording: Wording) -> tuple[Round, ...]:
    rounds = []
    count = int(rng.integers(1, REFERRING_ROUNDS, endpoint=True))
    for number, expression in enumerate(_some(record.expressions, count, rng)):
        text = _draw(expression.texts, rng).lower()
        template = REFERRING_QUESTION if number else FIRST_REFERRING_QUESTION
        if wording == "varied":
            start = "" if number else f"{IMAGE_PLACEHOLDER}\n"
            question = start + _draw(questions.REFERRING, rng).replace("{t}", text)
        else:
            question = template.replace("{text}", text)
        rounds.append(Round(question, REFERRING_ANSWER, (expression.objects,)))
    return tuple(rounds)


def _region(record: Record, rng: np.random.Generator, wording: Wording) -> tuple[Round, ...]:
    rounds = []
    count = int(rng.integers(1, max(1, min(REGION_ROUNDS, len(record.expressions))), endpoint=True))
    for expression in _some(record.expressions, count, rng):
        question = expression.question
        if question is None or (wording == "varied" and len(expression.objects) == 1):
            question = _draw(questions.REGION, rng)
        answer = _draw(expression.texts, rng)
        rounds.append(Round(space_regions(question), answer, regions=expression.objects))
    return tuple(rounds)


_ROUNDS = {"chat": _chat, "caption": _caption, "referring": _referring, "region": _region}


def _some(expressions: Sequence[Expression], count: int, rng: np.random.Generator) -> list[Expression]:
    """At most `count` different expressions, in drawn order."""
    return [expressions[i] for i in rng.permutation(len(expressions))[:count]]


def _draw(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def space_regions(text: str) -> str:
    """Put the space in front of each "<obj>" without which its mark is another token (quirk Q11)."""
    return re.sub(rf"(?<=[^ ]){VISUAL_PROMPT_TAG}", f" {VISUAL_PROMPT_TAG}", text)
