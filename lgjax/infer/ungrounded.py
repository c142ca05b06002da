"""Phrases of an answer for which nothing was found: likely made up, so they are marked or taken out.

A phrase is ungrounded when its best query stays at or below the threshold. Source: spec/evaluation.md 6.3.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from lgjax.infer.answer import Answer, Phrase
from lgjax.text import markup, ungrounded

Ungrounded = Literal["keep", "flag", "drop"]


def treat(answer: Answer, how: Ungrounded) -> Answer:
    """Flag or drop the phrases without boxes; the text, its spans and the tagged text change together."""
    lost = [n for n, phrase in enumerate(answer.phrases) if phrase.text and not len(phrase.boxes)]
    if how == "keep" or not lost:
        return answer
    change = ungrounded.flag if how == "flag" else ungrounded.drop
    text, spans = change(answer.text, [phrase.span for phrase in answer.phrases], lost)
    kept = [n for n, span in enumerate(spans) if span is not None]
    phrases: list[Phrase] = []
    for number, span in enumerate(spans):
        if span is not None:
            phrases.append(dataclasses.replace(answer.phrases[number], text=text[slice(*span)], span=span))
    return dataclasses.replace(
        answer,
        text=text,
        phrases=tuple(phrases),
        tagged_text=markup.mark_phrases(text, [phrase.span for phrase in phrases]),
        canvas_boxes=tuple(answer.canvas_boxes[number] for number in kept),
    )
