"""Referring expressions: one box (REC) or one mask (RES) for a sentence, and the original's own counters.

Source: spec/evaluation.md 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from lgjax.data.boxes import box_giou, box_iou
from lgjax.eval import rle
from lgjax.eval.rle import Rle

IOU = 0.5
MASK_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
_CANVAS = 1024  # side of the square on which the original counts pixels
Box = Float[np.ndarray, " 4"]


@dataclasses.dataclass(frozen=True)
class BoxScores:
    """Shares of samples in [0, 1], nan where there is none.

    accuracy: IoU >= 0.5; accuracy_strict: > 0.5; accuracy_giou: generalised IoU >= 0.5; mean_iou: of all
    samples. A sample without a box counts as IoU 0.
    """

    count: int
    accuracy: float
    accuracy_strict: float
    accuracy_giou: float
    mean_iou: float


def box_overlaps(
    predicted: Sequence[Box | None], targets: Sequence[Box]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """IoU and generalised IoU of each sample; 0 and -1 where there is no box."""
    out = np.tile([0.0, -1.0], (len(targets), 1))
    for row, (box, target) in enumerate(zip(predicted, targets, strict=True)):
        if box is not None:
            out[row] = box_iou(box[None], target[None])[0, 0], box_giou(box[None], target[None])[0, 0]
    return out[:, 0], out[:, 1]


def box_scores(predicted: Sequence[Box | None], targets: Sequence[Box]) -> BoxScores:
    """Compare one box (x0, y0, x1, y1) a sample, or None, with its target. Source: spec/evaluation.md 3.2."""
    iou, giou = box_overlaps(predicted, targets)
    return BoxScores(
        count=len(iou),
        accuracy=_mean(iou >= IOU),
        accuracy_strict=_mean(iou > IOU),
        accuracy_giou=_mean(giou >= IOU),
        mean_iou=_mean(iou),
    )


class MaskCounts(NamedTuple):
    """Pixels of each sample in which prediction and target agree, and which either of them has."""

    intersections: Int64[np.ndarray, " n"]
    unions: Int64[np.ndarray, " n"]

    @property
    def ious(self) -> Float64[np.ndarray, " n"]:
        """IoU of each sample; an empty target is met by an empty prediction (1) and by no other (0)."""
        empty = self.unions == 0
        return np.where(empty, 1.0, self.intersections / np.where(empty, 1, self.unions))


@dataclasses.dataclass(frozen=True)
class MaskScores:
    """ciou: sum of intersections / sum of unions; miou: mean IoU of the samples; precision: for each
    threshold t the share of samples with IoU >= t; precision_strict: with IoU > 0.5; no_target: share of the
    samples with an empty target that were answered with nothing. nan where there is nothing to divide by."""

    count: int
    ciou: float
    miou: float
    precision: dict[float, float]
    precision_strict: float
    no_target: float


def mask_counts(
    predicted: Sequence[Rle | None], targets: Sequence[Rle]
) -> tuple[MaskCounts, Int64[np.ndarray, " n"]]:
    """Count pixels of COCO run-length codes at the size of the picture; also the pixels of each target.

    None stands for an empty mask.

    Raises:
        ValueError: the two masks of a sample differ in size.
    """
    rows = []
    for number, (code, target) in enumerate(zip(predicted, targets, strict=True)):
        try:
            shared = 0 if code is None else rle.shared_area(code, target)
        except ValueError as error:
            raise ValueError(f"sample {number}: {error}") from error
        wanted, given = rle.area(target), 0 if code is None else rle.area(code)
        rows.append((shared, given + wanted - shared, wanted))
    columns = np.asarray(rows, np.int64).reshape(-1, 3).T
    return MaskCounts(columns[0], columns[1]), columns[2]


def mask_scores(predicted: Sequence[Rle | None], targets: Sequence[Rle]) -> MaskScores:
    """Compare one mask a sample (a COCO run-length code, None for nothing) with its target.

    Source: spec/evaluation.md 3.3.

    Raises:
        ValueError: see `mask_counts`.
    """
    counts, areas = mask_counts(predicted, targets)
    ious = counts.ious
    union = int(counts.unions.sum())
    return MaskScores(
        count=len(ious),
        ciou=int(counts.intersections.sum()) / union if union else float("nan"),
        miou=_mean(ious),
        precision={limit: _mean(ious >= limit) for limit in MASK_IOUS},
        precision_strict=_mean(ious > IOU),
        no_target=_mean(ious[areas == 0]),
    )


class Counted(NamedTuple):
    """Phrases with a target, and those of them whose box is right."""

    total: int
    correct: int


def training_accuracy(predicted: Iterable[Box], targets: Iterable[Float[np.ndarray, "_ 4"]]) -> Counted:
    """What the original counts in training: the best IoU with any target of the phrase is above 0.5.

    Phrases without a target are left out. Source: spec/evaluation.md 3.4.
    """
    best = [
        float(box_iou(box[None], boxes).max())
        for box, boxes in zip(predicted, targets, strict=True)
        if len(boxes)
    ]
    return Counted(len(best), sum(iou > IOU for iou in best))


class TrainingMasks(NamedTuple):
    """Counts of each sample in pixels of the picture, and what the original sums up of them."""

    scales: Float64[np.ndarray, " n"]
    intersections: Float64[np.ndarray, " n"]
    unions: Float64[np.ndarray, " n"]
    ciou: float
    miou: float


def training_masks(
    sizes: Sequence[tuple[int, int]],
    intersections: Float[np.ndarray, " n"] | Int64[np.ndarray, " n"],
    unions: Float[np.ndarray, " n"] | Int64[np.ndarray, " n"],
) -> TrainingMasks:
    """cIoU and mIoU as the original sums them up in training.

    sizes: (height, width) of each picture; the counts are pixels of its 1024-pixel canvas. Intersections and
    unions are brought to the picture's own pixels before they are summed. Source: spec/evaluation.md 3.4.
    """
    scales = np.asarray([_CANVAS / max(size) for size in sizes], float)
    shared, either = intersections / scales**2, unions / scales**2
    ious = np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
    ciou = float(shared.sum() / either.sum()) if either.sum() else float("nan")
    return TrainingMasks(scales, shared, either, ciou, _mean(ious))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
