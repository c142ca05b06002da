"""What is asked on Flickr30k Entities, and the report on the answers. Source: spec/evaluation.md 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lgjax.data.sources.common import Pictures
from lgjax.eval.check import same_size
from lgjax.eval.flickr import ALL, GroundedPhrase, Item, Protocol, first_hit, grounded, recall
from lgjax.eval.predictions import Prediction
from lgjax.eval.questions import Question
from lgjax.eval.report import Report, Table
from lgjax.eval.worst import Judged, worst
from lgjax.text.conversation import FLICKR_QUESTION
from lgjax.text.markup import mark_phrases
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER

PROTOCOLS: tuple[tuple[Protocol, str], ...] = (("any", "any-box"), ("merged", "merged-box"))
NOTES = (
    "A phrase is hit if one of its first k boxes has IoU >= 0.5 with a target: in any-box with any box of "
    "its chain, in merged-box with the smallest box around them. The upper bound takes all boxes kept.",
    "Phrases whose chain has no box in the picture are not asked for; one with several types counts in each.",
)


def questions_of(items: Sequence[Item], pictures: Pictures) -> list[Question]:
    """One question for each caption, worded as in training; the answer is forced to the caption."""
    return [
        Question(
            id=item.id,
            image=item.image,
            path=pictures.path(item.image),
            text=FLICKR_QUESTION.removeprefix(f"{IMAGE_PLACEHOLDER}\n"),
            answer=mark_phrases(item.text, [phrase.span for phrase in item.phrases]),
        )
        for item in items
    ]


def report_of(answers: Sequence[tuple[Item, Path, Prediction]], split: str) -> Report:
    """Recall over all phrases and for each type; answers are captions, paths of pictures and predictions.

    Raises:
        ValueError: a prediction with another number of phrases than its caption has to be found, or of a
            picture of another size.
    """
    phrases: list[GroundedPhrase] = []
    judged = []
    for item, path, prediction in answers:
        same_size(prediction, item.size)
        some = grounded(item, prediction)
        phrases += some
        missed = [
            named.text for named, one in zip(item.phrases, some, strict=True) if first_hit(one, "any") > 1
        ]
        title = f"missed {', '.join(missed)}" if missed else "all phrases hit"
        judged.append(Judged(1 - len(missed) / len(some), title, prediction, path))
    shares = {title: recall(phrases, protocol) for protocol, title in PROTOCOLS}
    columns = ("R@1 %", "R@5 %", "R@10 %", "upper bound %")
    main = [(title, *(100 * found[ALL] for found in shares[title].values())) for _, title in PROTOCOLS]
    tables = [Table("Recall over all phrases", ("protocol", *columns), tuple(main))]
    for _, title in PROTOCOLS:
        types = [name for name in shares[title]["R@1"] if name != ALL]
        counts = {name: sum(name in phrase.types for phrase in phrases) for name in types}
        rows = [
            (name, counts[name], *(100 * found[name] for found in shares[title].values()))
            for name in sorted(types)
        ]
        tables.append(Table(f"By type, {title}", ("type", "phrases", *columns), tuple(rows)))
    settings = answers[0][2].settings if answers else {}
    return Report(
        title=f"Flickr30k Entities, {split}: {len(phrases)} phrases of {len(answers)} captions",
        settings={**settings, "split": split, "answer": "forced to the caption"},
        tables=tuple(tables),
        notes=NOTES,
        worst=worst(judged),
    )
