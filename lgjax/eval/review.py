"""What a reviewer of LLaVA-Bench is asked: the picture in words, the question, and two answers to score.

The wording is ours; the rules of a `rule.json` of LLaVA's layout can be used in its place.
Source: spec/evaluation.md 1.6, 5.2.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgjax.data.schema import read_json
from lgjax.data.sources.common import plain_name
from lgjax.eval.chat_score import FAILED, Review, parse
from lgjax.eval.lines import (
    a_list,
    a_text,
    an_id,
    fields_of,
    lines_of,
    numbers_of,
    parse_json,
    shown,
    write_whole,
)
from lgjax.eval.question_file import FileQuestion
from lgjax.llm.request import LanguageModel, Message, Reply, Request

TEMPERATURE = 0.2
MAX_TOKENS = 1024
_SYSTEM = "You compare answers to questions about pictures, strictly and without favour."
_FORM = """\
Give each answer a whole score from 1 (useless) to 10 (perfect). Write the two scores on the first line, \
that of Answer 1 first, with one blank between them and nothing else on that line. Then explain both scores \
in a few sentences. Which answer stands first must not matter, nor which is longer."""
_ASPECTS = {
    "conv": "The question is part of a conversation. Judge whether each answer is correct for this picture, "
    "to the point and helpful.",
    "detail": "A detailed description was asked for. Judge how much of the picture each answer covers, how "
    "precise it is, and whether it names anything that is not there.",
    "complex": "The question needs reasoning. Judge whether each answer concludes rightly from what the "
    "picture shows, and how well it gives its reasons.",
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """How answers of one category are reviewed: what an answer is called, and the instruction."""

    role: str
    prompt: str


@dataclasses.dataclass(frozen=True)
class Context:
    """What a reviewer is told of a picture; boxes: "category: [x0, y0, x1, y1]" each, in [0, 1]."""

    captions: tuple[str, ...]
    boxes: tuple[str, ...]


def own_rules() -> dict[str, Rule]:
    """Our rules for the categories of LLaVA-Bench, COCO and in the wild."""
    rules = {name: Rule("Answer", f"{aspect}\n{_FORM}") for name, aspect in _ASPECTS.items()}
    return rules | {f"llava_bench_{name}": rule for name, rule in rules.items()}


def read_rules(path: Path) -> dict[str, Rule]:
    """Read a `rule.json`: category -> {"role", "prompt"}.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has another layout.
    """
    rules = {}
    for name, rule in fields_of(read_json(path), (), None, str(path)).items():
        where = f"{path}: {name}"
        fields = fields_of(rule, ("role", "prompt"), None, where)
        rules[name] = Rule(a_text(fields["role"], where), a_text(fields["prompt"], where))
    return rules


def read_contexts(path: Path) -> dict[str, Context]:
    """Read what is known of pictures, by their plain names: {"image", "captions", "instances"} a line.

    `instances` ({"category", "bbox"} each) may be missing; `caption` may hold a single text in the place of
    `captions`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line has another layout, or a picture has two.
    """
    contexts: dict[str, Context] = {}
    for where, line in lines_of(path):
        fields = fields_of(parse_json(line, where), ("image",), None, where)
        name = plain_name(a_text(fields["image"], f"{where}: image"))
        if name in contexts:
            raise ValueError(f"{where}: a second line for the picture '{name}'")
        captions = [fields["caption"]] if "caption" in fields else fields.get("captions", [])
        contexts[name] = Context(
            tuple(a_text(text, f"{where}: captions") for text in a_list(captions, f"{where}: captions")),
            tuple(_box(box, where) for box in a_list(fields.get("instances", []), f"{where}: instances")),
        )
    return contexts


def _box(value: Any, where: str) -> str:
    fields = fields_of(value, ("category", "bbox"), None, f"{where}: instances")
    numbers = numbers_of(fields["bbox"], 4, f"{where}: bbox")
    return f"{a_text(fields['category'], f'{where}: category')}: {numbers}"


def requests_of(
    rows: Sequence[tuple[FileQuestion, str, str]],
    contexts: Mapping[str, Context],
    rules: Mapping[str, Rule],
    model: str,
) -> list[Request]:
    """A request for each question with the reference answer and the model's.

    Raises:
        ValueError: nothing is known of a picture, or there is no rule for a category.
    """
    requests = []
    for question, reference, answer in rows:
        context = contexts.get(plain_name(question.image))
        if context is None:
            raise ValueError(f"{question.where}: no context for the picture '{question.image}'")
        category = question.category or "default"
        name = category if context.boxes or category.startswith("llava_bench_") else f"llava_bench_{category}"
        rule = rules.get(name) or rules.get(category)
        if rule is None:
            raise ValueError(
                f"{question.where}: no rule for the category '{category}'; there are {', '.join(rules)}"
            )
        messages = (
            Message("system", _SYSTEM),
            Message("user", _text(question, reference, answer, context, rule)),
        )
        requests.append(Request(model, messages, TEMPERATURE, MAX_TOKENS))
    return requests


def _text(question: FileQuestion, reference: str, answer: str, context: Context, rule: Rule) -> str:
    picture = "\n".join((*context.captions, *(("", *context.boxes) if context.boxes else ())))
    blocks = {"Picture": picture, "Question": question.text}
    blocks |= {f"{rule.role} 1": reference, f"{rule.role} 2": answer, "Task": rule.prompt}
    return "\n\n".join(f"[{name}]\n{text}\n[/{name}]" for name, text in blocks.items())


def ask(
    client: LanguageModel, questions: Sequence[FileQuestion], requests: Sequence[Request]
) -> list[Review]:
    """The reviews of all questions; one that the reviewer refuses to give counts as failed."""
    reviews = []
    for question, outcome in zip(questions, client.complete(requests), strict=True):
        content = outcome.text if isinstance(outcome, Reply) else ""
        reviews.append(Review(question.id, question.category or "default", content, parse(content)))
    return reviews


def read_reviews(path: Path) -> list[Review]:
    """Read a review file: "question_id", "category", and "tuple" or "content".

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line has another layout, or a question has two reviews.
    """
    reviews: dict[str | int, tuple[str, Review]] = {}
    for where, line in lines_of(path):
        fields = fields_of(parse_json(line, where), ("question_id",), None, where)
        number = an_id(fields["question_id"], where)
        if number in reviews:
            raise ValueError(f"{where}: question {number!r} was reviewed before, in {reviews[number][0]}")
        content = a_text(fields.get("content", ""), f"{where}: content")
        if "tuple" not in fields and "content" not in fields:
            raise ValueError(f"{where} has neither tuple nor content")
        scores = parse(content)
        if "tuple" in fields:
            reference, model = numbers_of(fields["tuple"], 2, f"{where}: tuple")
            scores = (float(reference), float(model))
        if scores != FAILED and min(scores) < 0:
            raise ValueError(
                f"{where}: tuple must be two scores, or -1 and -1, found {shown(fields['tuple'])}"
            )
        reviews[number] = (where, Review(number, str(fields.get("category", "default")), content, scores))
    return [review for _, review in reviews.values()]


def write_reviews(path: Path, reviews: Sequence[Review]) -> None:
    """Write a review file of LLaVA's layout."""
    rows = [review.to_json(number) for number, review in enumerate(reviews, 1)]
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
