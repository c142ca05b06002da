"""Who says whether a phrase means the thing its box was matched to: a file, a list of words, or a model.

Source: spec/evaluation.md 1.5.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lgjax.eval.grounding_bench import TaggedAnswer, Verdicts
from lgjax.eval.lines import an_id, fields_of, lines_of, parse_json, shown, write_whole
from lgjax.eval.mentions import Lexicon


@runtime_checkable
class Judge(Protocol):
    """Gives verdicts on the pairs of answers; a pair without one counts as wrong."""

    @property
    def name(self) -> str: ...
    def judge(self, answers: Sequence[TaggedAnswer]) -> list[Verdicts]: ...


@dataclasses.dataclass(frozen=True)
class WordJudge:
    """Right is a phrase whose words name the class of the entity; which one of the class is not looked at.

    So it is milder than a reader: "the first person" may be any person. It needs no network.
    """

    lexicon: Lexicon
    name: str = "words"

    def judge(self, answers: Sequence[TaggedAnswer]) -> list[Verdicts]:
        """Verdicts on every pair of every answer."""
        out: list[Verdicts] = []
        for answer in answers:
            meant = [self.lexicon.meant(grounding.phrase) for grounding in answer.groundings]
            out.append({(phrase, e.id): e.category in meant[phrase] for phrase, e in answer.pairs})
        return out


@dataclasses.dataclass(frozen=True)
class VerdictFile:
    """Verdicts that were given before: {"question_id", "phrase_index", "gt_id", "correct"}, one a line.

    `phrase_index` counts the phrases of an answer from 0, `gt_id` is the id of COCO's annotation; where
    `phrase` is there, as `write_verdicts` leaves it, it must be the answer's. known: questions that may
    have verdicts although they are not scored.
    """

    path: Path
    known: frozenset[int | str] = frozenset()
    name: str = "verdict file"

    def judge(self, answers: Sequence[TaggedAnswer]) -> list[Verdicts]:
        """The file's verdicts on each answer.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a line is no verdict, a pair has two, or it is about a question, a phrase or an
                entity that is not there.
        """
        entities = {answer.question_id: {e.id for e in answer.entities} for answer in answers}
        phrases = {answer.question_id: [g.phrase for g in answer.groundings] for answer in answers}
        found: dict[int | str, dict[tuple[int, int | str], bool]] = {question: {} for question in entities}
        for where, line in lines_of(self.path):
            question, pair, right, phrase = _verdict(line, where)
            if question not in found and question in self.known:
                continue
            if question not in found:
                raise ValueError(f"{where}: question {question!r} is none of those asked")
            said = phrases[question]
            if pair[0] >= len(said) or phrase not in (None, said[pair[0]]):
                raise ValueError(
                    f"{where}: the answer to question {question!r} has no such phrase {pair[0]}; "
                    "the verdicts are on other answers"
                )
            if pair[1] not in entities[question]:
                raise ValueError(
                    f"{where}: gt_id {pair[1]!r} is no annotation of the picture of question {question!r}"
                )
            if pair in found[question]:
                raise ValueError(
                    f"{where}: a second verdict on phrase {pair[0]} and annotation {pair[1]!r} "
                    f"of question {question!r}"
                )
            found[question][pair] = right
        return [found[answer.question_id] for answer in answers]


def _verdict(line: str, where: str) -> tuple[int | str, tuple[int, int | str], bool, Any]:
    """Question, pair, whether it is right, and the words of the phrase where the line has them."""
    needed = ("question_id", "phrase_index", "gt_id", "correct")
    fields = fields_of(parse_json(line, where), needed, None, where)
    phrase, entity, right = fields["phrase_index"], fields["gt_id"], fields["correct"]
    if isinstance(phrase, bool) or not isinstance(phrase, int) or phrase < 0:
        raise ValueError(f"{where}: phrase_index must be a whole number from 0, found {shown(phrase)}")
    if isinstance(entity, bool) or not isinstance(entity, int | str):
        raise ValueError(f"{where}: gt_id must be a text or a whole number, found {shown(entity)}")
    if not isinstance(right, bool):
        raise ValueError(f"{where}: correct must be true or false, found {shown(right)}")
    return an_id(fields["question_id"], where), (phrase, entity), right, fields.get("phrase")


def write_verdicts(
    path: Path, answers: Sequence[TaggedAnswer], verdicts: Sequence[Verdicts], judge: str
) -> None:
    """Write every verdict that was given, with what it was about, as `VerdictFile` reads it."""
    lines = []
    for answer, given in zip(answers, verdicts, strict=True):
        for phrase, entity in answer.pairs:
            if (phrase, entity.id) in given:
                verdict = {
                    "question_id": answer.question_id,
                    "phrase_index": phrase,
                    "gt_id": entity.id,
                    "correct": given[phrase, entity.id],
                    "phrase": answer.groundings[phrase].phrase,
                    "category": entity.category,
                    "judge": judge,
                }
                lines.append(json.dumps(verdict, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))
