"""Instances with classes, from answers: COCO's average precision, and panoptic quality.

Average precision is COCOeval's own; panoptic quality is counted here, by the rule of panopticapi.
Source: spec/evaluation.md 7.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lgjax.eval.rle import Rle, bitmap

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MATCH = 0.5
Ids = Int[np.ndarray, "h w"]


def coco_ap(
    truth: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    kind: Literal["bbox", "segm"],
) -> dict[str, float]:
    """COCOeval's twelve numbers (`AP_NAMES`), in [0, 1]; -1 where no target is in the bin.

    truth: the content of a COCO annotation file; found: {"image_id", "category_id", "score", "bbox" (x, y,
    width, height) or "segmentation" (run-length code)} each.

    Raises:
        ValueError: something was found in a picture that `truth` does not have.
    """
    known = {image["id"] for image in truth["images"]}
    if odd := {one["image_id"] for one in found} - known:
        raise ValueError(f"image {min(odd, key=str)!r} is not in the annotations")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        coco: Any = COCO()
        # COCOeval writes into what it is given
        coco.dataset = {**truth, "annotations": [dict(one) for one in truth["annotations"]]}
        coco.createIndex()
        if found:
            results = coco.loadRes([dict(one) for one in found])
        else:
            results: Any = COCO()
            results.dataset = {**truth, "annotations": []}
            results.createIndex()
        evaluator = COCOeval(coco, results, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(AP_NAMES, map(float, evaluator.stats), strict=True))


class Instance(NamedTuple):
    """A mask (COCO run-length code) of a class; the score orders overlapping ones."""

    category: int | str
    mask: Rle
    score: float = 1.0
    crowd: bool = False


class Segments(NamedTuple):
    """A picture cut up: the number of the segment each pixel belongs to, and the class of each segment.

    Pixels with a number that has no class are background; void: the number of pixels that are not judged.
    """

    ids: Ids
    categories: Mapping[int, int | str]
    void: int | None = None


VOID = -1


def flatten(instances: Iterable[Instance], size: tuple[int, int]) -> Segments:
    """Give every pixel of a picture of `size` (height, width) to one instance; 0 is background.

    The better score is on top, then the smaller area, so a cup stays in front of its table. Crowds are void
    where nothing else is. Instances that are wholly covered are left out.
    """
    ids = np.zeros(size, np.int64)
    categories: dict[int, int | str] = {}
    masks = [(one, bitmap(one.mask)) for one in instances]
    for _, mask in filter(lambda pair: pair[0].crowd, masks):
        ids[mask] = VOID
    single = [pair for pair in masks if not pair[0].crowd]
    for number, (one, mask) in enumerate(sorted(single, key=lambda p: (p[0].score, -p[1].sum())), 1):
        ids[mask] = number
        categories[number] = one.category
    seen = set(np.unique(ids).tolist())
    return Segments(ids, {n: name for n, name in categories.items() if n in seen}, VOID)


@dataclasses.dataclass(frozen=True)
class Quality:
    """Counts of one class: matched segments and the sum of their IoUs, unmatched predictions and targets."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of what matched."""
        return self.iou / self.tp if self.tp else 0.0

    @property
    def rq(self) -> float:
        """Recognition quality: F1 of the matching."""
        weight = self.tp + self.fp / 2 + self.fn / 2
        return self.tp / weight if weight else 0.0

    @property
    def pq(self) -> float:
        return self.sq * self.rq

    def __add__(self, other: Quality) -> Quality:
        return Quality(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou + other.iou)


def panoptic_quality(pairs: Iterable[tuple[Segments, Segments]]) -> dict[int | str, Quality]:
    """Count matches of (target, predicted) cuts of pictures, for each class that occurs in either.

    A predicted and a target segment of one class match where their IoU is above 0.5; the target's void
    pixels do not count into the union. An unmatched prediction that is void for more than half is no fault.
    What is background in the target is judged: a thing found there is false.
    Source: spec/evaluation.md 7.

    Raises:
        ValueError: the two maps of a pair differ in size.
    """
    out: dict[int | str, Quality] = {}
    for number, (target, predicted) in enumerate(pairs):
        if target.ids.shape != predicted.ids.shape:
            sizes = f"{list(predicted.ids.shape)}, its target {list(target.ids.shape)}"
            raise ValueError(f"picture {number}: predicted map has size {sizes}")
        for category, quality in _one_picture(target, predicted):
            out[category] = out.get(category, Quality()) + quality
    return out


def mean_quality(qualities: Mapping[int | str, Quality]) -> float:
    """Mean PQ of the classes that occur; nan where there is none."""
    return float(np.mean([one.pq for one in qualities.values()])) if qualities else float("nan")


def _one_picture(target: Segments, predicted: Segments) -> Iterable[tuple[int | str, Quality]]:
    pairs, shared = np.unique(
        np.stack([target.ids, predicted.ids]).reshape(2, -1), axis=1, return_counts=True
    )
    common = {(int(t), int(p)): int(n) for (t, p), n in zip(pairs.T, shared, strict=True)}
    areas: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for both, count in common.items():
        for side, number in zip(areas, both, strict=True):
            side[number] = side.get(number, 0) + count
    void = {p: n for (t, p), n in common.items() if t == target.void}
    matched_targets, matched = set(), set()
    for (t, p), count in common.items():
        if t == target.void or t not in target.categories or p not in predicted.categories:
            continue
        if target.categories[t] != predicted.categories[p]:
            continue
        iou = count / (areas[0][t] + areas[1][p] - count - void.get(p, 0))
        if iou > MATCH:
            matched_targets.add(t)
            matched.add(p)
            yield target.categories[t], Quality(tp=1, iou=iou)
    for t, category in target.categories.items():
        if t not in matched_targets and t != target.void and t in areas[0]:
            yield category, Quality(fn=1)
    for p, category in predicted.categories.items():
        if p in matched or p not in areas[1] or void.get(p, 0) > MATCH * areas[1][p]:
            continue
        yield category, Quality(fp=1)
