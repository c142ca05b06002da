"""Question files as LLaVA's evaluation has them: one JSON object a line.

{"question_id", "image", "text", "category"}; `category` may be missing, and other fields are kept.
Source: spec/evaluation.md 5.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgjax.eval.lines import a_text, an_id, fields_of, lines_of, parse_json
from lgjax.text.conversation import GROUNDING_SUFFIX


@dataclasses.dataclass(frozen=True)
class FileQuestion:
    """A question about a picture; `text` is without the suffix that asks for grounding."""

    id: str | int
    image: str
    text: str
    category: str | None
    fields: dict[str, Any]
    where: str

    @property
    def kept(self) -> dict[str, Any]:
        """What a prediction keeps of it."""
        return {} if self.category is None else {"category": self.category}


def read_questions(path: Path) -> list[FileQuestion]:
    """Read a question file; the suffix "(with grounding)" is taken off, as the model's prompt brings it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is no question, an id stands twice, or there are no questions.
    """
    questions: dict[str | int, FileQuestion] = {}
    for where, line in lines_of(path):
        question = _question(line, where)
        if question.id in questions:
            raise ValueError(
                f"{where}: question {question.id!r} stands in {questions[question.id].where} already"
            )
        questions[question.id] = question
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return list(questions.values())


def _question(line: str, where: str) -> FileQuestion:
    fields = fields_of(parse_json(line, where), ("question_id", "image", "text"), None, where)
    category = fields.get("category")
    if not a_text(fields["image"], f"{where}: image"):
        raise ValueError(f"{where}: image is empty")
    return FileQuestion(
        an_id(fields["question_id"], where),
        fields["image"],
        a_text(fields["text"], f"{where}: text").removesuffix(f" {GROUNDING_SUFFIX}"),
        None if category is None else str(category),
        fields,
        where,
    )


def of_category(questions: Sequence[FileQuestion], category: str) -> list[FileQuestion]:
    """The questions of one category, or "all"; where no question has one, all of them.

    Raises:
        ValueError: there are categories, but not this one.
    """
    there = sorted({question.category for question in questions if question.category is not None})
    if category == "all" or not there:
        return list(questions)
    if category not in there:
        raise ValueError(f"no question is of the category '{category}'; there are {', '.join(there)}, all")
    return [question for question in questions if question.category == category]
