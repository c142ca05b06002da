"""What is asked on COCO, and the report on the answers. Source: spec/evaluation.md 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lgjax.data.sources.common import Pictures
from lgjax.eval import rle
from lgjax.eval.coco_instances import Asked, Found, Prompts, Truth, found_in, results
from lgjax.eval.mentions import Lexicon
from lgjax.eval.predictions import Prediction, cut
from lgjax.eval.questions import Question
from lgjax.eval.report import Cell, Report, Table
from lgjax.eval.segmentation import (
    AP_NAMES,
    Instance,
    Quality,
    coco_ap,
    flatten,
    mean_quality,
    panoptic_quality,
)
from lgjax.eval.worst import Judged, worst
from lgjax.text.conversation import GROUNDING_SUFFIX, REFERRING_ANSWER, REFERRING_QUESTION

Answers = Sequence[tuple[Asked, Path, Prediction]]
POINTED = (
    "Each instance was pointed at by a {}; its mask is what the visual-prompt model took that for, its class "
    "the annotation's, its score 1. mIoU: mean over the instances."
)
DESCRIBE = f"Describe the image in detail. {GROUNDING_SUFFIX}"
POINT = "What is the object % ?"
NOTES = {
    "names": "Each class was asked for with one forced <seg>; all its boxes are instances of the class.",
    "boxes": POINTED.format("box"),
    "clicks": POINTED.format("click"),
    "description": "Each grounded phrase is an instance of the class that it is about, by words; phrases "
    "about no class or several make none; of two of one class that overlap above 0.5 the better stays.",
}


def questions_of(wanted: Sequence[Asked], truth: Truth, pictures: Pictures) -> list[Question]:
    """Questions worded as in training: referring expressions, a description, or what a region is."""
    out = []
    for one in wanted:
        path = pictures.path(one.image)
        if one.category is None:
            out.append(Question(id=one.id, image=one.image, path=path, text=DESCRIBE))
            continue
        if one.region is not None:
            out.append(Question(id=one.id, image=one.image, path=path, text=POINT, regions=(one.region,)))
            continue
        text = REFERRING_QUESTION.replace("{text}", truth.categories[one.category].lower())
        out.append(Question(id=one.id, image=one.image, path=path, text=text, answer=REFERRING_ANSWER))
    return out


def report_of(
    truth: Truth, answers: Answers, prompts: Prompts, threshold: float | None, *, all_classes: bool
) -> Report:
    """AP of boxes and masks, and panoptic quality of what is above `threshold` (None: of the best alone).

    Only what was asked about is judged.

    Raises:
        ValueError: a prediction is of a picture of another size.
    """
    truth = truth.about([asked for asked, _, _ in answers])
    lexicon = Lexicon.of(truth.categories.values())
    found = [one for asked, _, p in answers for one in found_in(asked, p, lexicon, truth)]
    masked = all(one.mask is not None for one in found)
    content = truth.content()
    boxes = coco_ap(content, results(found, "bbox"), "bbox")
    codes = coco_ap(content, results(found, "segm"), "segm") if masked else {}
    rows: list[tuple[Cell, ...]] = [(name, boxes[name], codes.get(name)) for name in AP_NAMES]
    tables, judged = [], []
    if masked:
        kept = [(asked, path, cut(p, threshold)) for asked, path, p in answers]
        above = [one for asked, _, p in kept for one in found_in(asked, p, lexicon, truth)]
        each = {picture: _quality(truth, above, picture) for picture in truth.pictures}
        total: dict[int | str, Quality] = {}
        for one in each.values():
            for category, quality in one.items():
                total[category] = total.get(category, Quality()) + quality
        rows += _panoptic_means(total)
        if prompts in ("boxes", "clicks"):
            ious = [
                float(rle.ious([one.mask], [asked.target])[0, 0])
                for (asked, _, _), one in zip(answers, found, strict=True)
                if one.mask is not None and asked.target is not None
            ]
            rows.append(("mIoU", None, sum(ious) / len(ious) if ious else None))
        tables.append(_panoptic_table(total, truth.categories))
        judged = [
            Judged(mean_quality(each[asked.picture]), _title(asked, each, truth), p, path)
            for asked, path, p in kept
            if each[asked.picture]
        ]
    settings = answers[0][2].settings if answers else {}
    return Report(
        title=f"COCO instances by {prompts}: {len(truth.pictures)} pictures",
        settings={
            **settings,
            "prompts": prompts,
            "classes asked for": "all" if all_classes else "those in the picture",
            "PQ above": threshold,
        },
        tables=(Table("Figures", ("figure", "boxes", "masks"), tuple(rows)), *tables),
        notes=(
            NOTES[prompts],
            "AP is pycocotools' (-1: no target in the bin). Panoptic quality is that of things: better "
            "scores, then smaller things lie on top; crowds are void; background is judged.",
        ),
        worst=worst(judged),
    )


def _quality(truth: Truth, found: Sequence[Found], picture: int) -> dict[int | str, Quality]:
    size = truth.pictures[picture].size
    mine = [
        Instance(one.category, one.mask, one.score) for one in found if one.picture == picture and one.mask
    ]
    return panoptic_quality([(flatten(truth.instances(picture), size), flatten(mine, size))])


def _panoptic_means(total: Mapping[int | str, Quality]) -> list[tuple[Cell, ...]]:
    """Rows of the means over the classes that occur, in [0, 1] as AP."""
    qualities = total.values()
    return [
        (name, None, sum(getattr(q, name.lower()) for q in qualities) / len(qualities) if total else None)
        for name in ("PQ", "SQ", "RQ")
    ]


def _panoptic_table(total: Mapping[int | str, Quality], names: Mapping[int, str]) -> Table:
    rows = [
        (names[int(category)], q.tp, q.fp, q.fn, q.pq, q.sq, q.rq) for category, q in sorted(total.items())
    ]
    columns = ("class", "right", "false", "missed", "PQ", "SQ", "RQ")
    return Table("Panoptic quality by class", columns, tuple(rows))


def _title(asked: Asked, each: Mapping[int, Mapping[int | str, Quality]], truth: Truth) -> str:
    qualities = each[asked.picture]
    missed = [truth.categories[int(category)] for category, q in qualities.items() if q.fn]
    return f"PQ {100 * mean_quality(qualities):.0f} %; missed: {', '.join(missed) or 'nothing'}"
