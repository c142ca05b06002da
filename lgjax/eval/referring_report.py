"""What is asked for REC and RES, and the report on the answers. Source: spec/evaluation.md 3."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lgjax.data.sources.common import Pictures
from lgjax.eval.check import same_size
from lgjax.eval.predictions import Prediction
from lgjax.eval.questions import Question
from lgjax.eval.refer import Leak, Sample, picture_key
from lgjax.eval.referring import MASK_IOUS, box_overlaps, box_scores, mask_scores
from lgjax.eval.report import Cell, Report, Table
from lgjax.eval.worst import Judged, worst
from lgjax.text.conversation import REFERRING_ANSWER, REFERRING_QUESTION

Pairs = Sequence[tuple[Sample, Prediction]]
MEASURES = (
    *("sentences", "Acc@0.5 %", "Acc>0.5 %", "Acc GIoU %", "box IoU %", "cIoU %", "mIoU %"),
    *(f"Pr@{limit} %" for limit in MASK_IOUS),
)
NOTES = (
    "Acc@0.5: best box of the first <seg> with IoU >= 0.5; Acc>0.5: above 0.5, as the original counts in "
    "training; Acc GIoU: generalised IoU >= 0.5, as MDETR's evaluator. Boxes are continuous, in pixels; an "
    "answer without a box is wrong.",
    "cIoU: sum of intersections / sum of unions; mIoU: mean of the sentences' IoU (LISA's gIoU); masks are "
    "compared at the size of the picture; '-': predictions or annotations without masks.",
)


def questions_of(splits: Mapping[str, Sequence[Sample]], pictures: Pictures, *, free: bool) -> list[Question]:
    """One question for each sentence, worded as in training.

    Raises:
        ValueError: two sentences have one number.
    """
    samples: dict[str, Sample] = {}
    for sample in (sample for some in splits.values() for sample in some):
        first = samples.setdefault(sample.id, sample)
        if (first.image, first.text) != (sample.image, sample.text):
            raise ValueError(
                f"two sentences have the sent_id {sample.id}: '{first.text}' and '{sample.text}'"
            )
    return [
        Question(
            id=sample.id,
            image=sample.image,
            path=pictures.path(sample.image),
            text=REFERRING_QUESTION.replace("{text}", sample.text.lower()),
            answer=None if free else REFERRING_ANSWER,
        )
        for sample in samples.values()
    ]


def by_split(
    splits: Mapping[str, Sequence[Sample]], answers: Sequence[tuple[Question, Prediction]]
) -> dict[str, Pairs]:
    """The samples of each split that were asked about, with their predictions."""
    found = {question.id: prediction for question, prediction in answers}
    return {
        split: [(sample, found[sample.id]) for sample in samples if sample.id in found]
        for split, samples in splits.items()
    }


def report_of(
    pairs: Mapping[str, Pairs],
    leaks: Mapping[str, Sequence[Leak]],
    paths: Mapping[str | int, Path],
    *,
    split_by: str,
    free: bool,
) -> Report:
    """The figures of each split, with and without the pictures that were trained on.

    Raises:
        ValueError: a prediction that is not one phrase although the answer was forced, or is of a picture of
            another size.
    """
    figures: dict[str, tuple[Cell, ...]] = {}
    judged = []
    for split, some in pairs.items():
        _check(some, free)
        figures[split] = _figures(some)
        seen = frozenset().union(*(leak.pictures for leak in leaks[split]))
        if seen and (unseen := [pair for pair in some if picture_key(pair[0].image) not in seen]):
            figures[f"{split}, pictures not trained on"] = _figures(unseen)
        judged += _judged(some, paths)
    shares = [(split, len(some), *_answers(some)) for split, some in pairs.items()]
    rows = [(name, *(column[k] for column in figures.values())) for k, name in enumerate(MEASURES)]
    columns = ("split", "answers", "one <seg> %", "none %", "several %")
    first = next((prediction for some in pairs.values() for _, prediction in some), None)
    return Report(
        title="Referring: REC and RES",
        settings={
            **(first.settings if first else {}),
            "split by": split_by,
            "answer": "free" if free else "forced to one <seg>",
        },
        tables=(
            Table("REC and RES", ("measure", *figures), tuple(rows)),
            Table("Answers", columns, tuple(shares)),
            _leak_table(pairs, leaks),
        ),
        notes=NOTES,
        worst=worst(judged),
    )


def queries_table(runs: Mapping[tuple[int, float], Mapping[str, Pairs]]) -> Table:
    """What numbers of object queries bring, and the seconds they take; runs: (queries, seconds) -> pairs."""
    kept = ("Acc@0.5 %", "cIoU %", "mIoU %")
    rows = []
    for (queries, seconds), pairs in runs.items():
        for split, some in pairs.items():
            figures = dict(zip(MEASURES, _figures(some), strict=True))
            rows.append((str(queries), split, *(figures[name] for name in kept), seconds))
    return Table("Object queries", ("queries", "split", *kept, "seconds a picture"), tuple(rows))


def _check(pairs: Pairs, free: bool) -> None:
    for sample, prediction in pairs:
        same_size(prediction, sample.size)
        if len(prediction.phrases) != 1 and not free:
            raise ValueError(
                f"{prediction.where}: question {sample.id!r} has {len(prediction.phrases)} phrases; an "
                "answer that was forced has one (--free scores answers that were not)"
            )


def _figures(pairs: Pairs) -> tuple[Cell, ...]:
    """The values of `MEASURES`."""
    boxes = box_scores(
        [p.phrases[0].boxes[0] if _has_box(p) else None for _, p in pairs], [s.box for s, _ in pairs]
    )
    accuracies = (boxes.accuracy, boxes.accuracy_strict, boxes.accuracy_giou, boxes.mean_iou)
    row = (len(pairs), *map(_percent, accuracies))
    if any(s.mask is None or (_has_box(p) and p.phrases[0].masks is None) for s, p in pairs):
        return (*row, *[None] * (len(MEASURES) - len(row)))
    found = [p.phrases[0].masks[0] if _has_box(p) and p.phrases[0].masks else None for _, p in pairs]
    masks = mask_scores(found, [s.mask for s, _ in pairs if s.mask is not None])
    return (*row, *map(_percent, (masks.ciou, masks.miou, *masks.precision.values())))


def _has_box(prediction: Prediction) -> bool:
    return bool(prediction.phrases) and len(prediction.phrases[0].boxes) > 0


def _percent(share: float) -> float | None:
    return None if math.isnan(share) else 100 * share  # no sentence of the split was asked


def _answers(pairs: Pairs) -> tuple[float, float, float]:
    """Shares in percent of answers with one, no and several <seg>."""
    counts = [len(prediction.phrases) for _, prediction in pairs]
    total = max(len(counts), 1)
    one, none = counts.count(1), counts.count(0)
    return 100 * one / total, 100 * none / total, 100 * (len(counts) - one - none) / total


def _leak_table(pairs: Mapping[str, Pairs], leaks: Mapping[str, Sequence[Leak]]) -> Table:
    rows = [
        (split, leak.file, len({sample.image for sample, _ in some}), len(leak.pictures))
        for split, some in pairs.items()
        for leak in leaks[split]
    ]
    columns = ("split", "training file", "pictures tested", "of them trained on")
    return Table("Pictures that were trained on", columns, tuple(rows))


def _judged(pairs: Pairs, paths: Mapping[str | int, Path]) -> list[Judged]:
    out = []
    for sample, prediction in pairs:
        box = prediction.phrases[0].boxes[0] if _has_box(prediction) else None
        iou = float(box_overlaps([box], [sample.box])[0][0])
        out.append(Judged(iou, f'"{sample.text}": IoU {iou:.2f}', prediction, paths[sample.id]))
    return out
