"""A language model as the judge of Grounding-Bench: it reads the numbered things and the tagged answer.

Source: LLaVA-Grounding, section 2.5; spec/evaluation.md 1.5 (its prompt was not published; this one is ours).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from lgjax.eval.grounding_bench import TaggedAnswer, Verdicts
from lgjax.llm.request import LanguageModel, Message, Reply, Request

_TASK = """\
You check whether the phrases of a picture description point at the right things.

You cannot see the picture. You get a numbered list of all things annotated in it, one per line: its number, \
its class, and its box as left, top, right, bottom in fractions of the picture's width and height. Below it \
stands a description in which each located phrase is wrapped as (phrase)[P1: 3, 5]: phrase number 1 was \
located at the things 3 and 5.

Decide for every phrase and every thing behind it whether the phrase really speaks of that very thing. The \
class must fit what the phrase names. Where a phrase singles out one of several things of a class by order, \
place, size or by what was said of it before, it must be this one, as far as boxes and text let you tell; a \
phrase about several things may be located at each of them. The locations are guesses of a program: do not \
trust them.

Answer with one line for every pair and nothing else, in this form:
P1 3 yes
P1 5 no"""
_LINE = re.compile(r"^\W*P(\d+)\D+(\d+)\W+(yes|no)\b", re.IGNORECASE | re.MULTILINE)


def prompt(answer: TaggedAnswer) -> str:
    """The list of things and the tagged description of one answer."""
    height, width = answer.size
    numbers = {entity.id: number for number, entity in enumerate(answer.entities, 1)}
    things = []
    for entity in answer.entities:
        x0, y0, x1, y1 = entity.box
        box = f"[{x0 / width:.3f}, {y0 / height:.3f}, {x1 / width:.3f}, {y1 / height:.3f}]"
        things.append(f"{numbers[entity.id]}. {entity.category} {box}")
    tags: dict[int, list[str]] = {}
    for phrase, entity in answer.pairs:
        tags.setdefault(phrase, []).append(str(numbers[entity.id]))
    inserted: list[tuple[int, int, int, str]] = []
    for phrase, found in tags.items():
        start, end = answer.groundings[phrase].span
        tag = f")[P{phrase + 1}: {', '.join(found)}]"
        # at one place: ends, the shorter first, then bare marks, then beginnings, the longer first
        inserted += (
            [(start, 2, -end, "("), (end, 0, -start, tag)] if end > start else [(start, 1, 0, f"({tag}")]
        )
    text = answer.text
    for place, *_, piece in sorted(inserted, reverse=True):
        text = text[:place] + piece + text[place:]
    listed = "\n".join(things)
    return f"Things in the picture:\n{listed}\n\nDescription:\n{text}"


def parse(reply: str, answer: TaggedAnswer) -> Verdicts:
    """Read the verdicts of a reply on the pairs of an answer; of two on one pair the last counts."""
    pairs = {(phrase, entity.id) for phrase, entity in answer.pairs}
    found: dict[tuple[int, int | str], bool] = {}
    for phrase, number, word in _LINE.findall(reply):
        if 1 <= int(number) <= len(answer.entities):
            pair = int(phrase) - 1, answer.entities[int(number) - 1].id
            if pair in pairs:
                found[pair] = word.lower() == "yes"
    return found


@dataclasses.dataclass(frozen=True)
class ModelJudge:
    """Asks the model called `model` once for each answer that has something to judge."""

    client: LanguageModel
    model: str

    @property
    def name(self) -> str:
        return f"model {self.model}"

    def judge(self, answers: Sequence[TaggedAnswer]) -> list[Verdicts]:
        """The model's verdicts; none where it refuses to answer or answers something else."""
        asked = [answer for answer in answers if answer.pairs]
        outcomes = self.client.complete([request_of(answer, self.model) for answer in asked])
        given = {
            id(answer): parse(outcome.text, answer)
            for answer, outcome in zip(asked, outcomes, strict=True)
            if isinstance(outcome, Reply)
        }
        return [given.get(id(answer), {}) for answer in answers]


def request_of(answer: TaggedAnswer, model: str) -> Request:
    """What is asked about one answer: temperature 0, room for a line for each pair."""
    messages = (Message("system", _TASK), Message("user", prompt(answer)))
    return Request(model, messages, max_tokens=64 + 12 * len(answer.pairs))
