"""Answers about pictures of COCO as instances with classes.

Ways to ask (`Prompts`):

"names": one question for each class and picture, "Please detect the object according to the text CLASS
(referring)." with the forced answer "<seg>". Each box of that phrase is an instance of CLASS.

"description": one question for each picture. A phrase of the answer gets the class it is about, by words
(`lgjax.eval.mentions`: "a man on a horse" is a person); a phrase that is about no class, or about several,
makes no instance. Each box of a phrase is an instance. A thing that is named twice is found twice, so of two
instances of a class whose masks (boxes, where there are none) have an IoU above 0.5 the better one stays.

"boxes", "clicks": one question for each annotated instance, which is boxed, or clicked at the pixel of its
mask that is nearest to the mask's centre. What the visual-prompt model takes the region for is an instance of
the annotation's class with the score 1; the answer's words do not count.

Source: spec/evaluation.md 7.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from lgjax.data import masks
from lgjax.data.boxes import box_iou
from lgjax.data.sources.common import read_coco
from lgjax.eval import rle
from lgjax.eval.check import same_size
from lgjax.eval.mentions import Lexicon
from lgjax.eval.predict import REGION_MASKS
from lgjax.eval.predictions import Prediction
from lgjax.eval.rle import Rle
from lgjax.eval.segmentation import Instance
from lgjax.infer.regions import Box, Click

Prompts = Literal["names", "description", "boxes", "clicks"]
SAME = 0.5  # IoU above which two instances of a class are one thing


class Picture(NamedTuple):
    """A picture of the annotation file; size: (height, width)."""

    id: int
    image: str
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Truth:
    """A COCO annotation file: its pictures, names of classes, and what is annotated, with masks as codes."""

    pictures: dict[int, Picture]
    categories: dict[int, str]
    annotations: dict[int, list[dict[str, Any]]]

    def content(self) -> dict[str, Any]:
        """What COCOeval takes."""
        return {
            "images": [
                {"id": p.id, "file_name": p.image, "height": p.size[0], "width": p.size[1]}
                for p in self.pictures.values()
            ],
            "categories": [{"id": number, "name": name} for number, name in self.categories.items()],
            "annotations": [one for some in self.annotations.values() for one in some],
        }

    def instances(self, picture: int) -> list[Instance]:
        """The annotated instances of a picture, by class number."""
        return [
            Instance(one["category_id"], one["segmentation"], crowd=bool(one["iscrowd"]))
            for one in self.annotations.get(picture, [])
        ]

    def about(self, asked: Sequence[Asked]) -> Truth:
        """What these questions ask for, of their pictures, and the crowds there."""
        ids = {question.id for question in asked}
        pictures = {question.picture for question in asked}

        def kept(one: dict[str, Any]) -> bool:
            by_class = f"{one['image_id']}/{one['category_id']}"
            names = {str(one["image_id"]), by_class, f"{by_class}/{one['id']}"}
            return bool(one["iscrowd"]) or not names.isdisjoint(ids)

        return dataclasses.replace(
            self,
            pictures={number: self.pictures[number] for number in pictures},
            annotations={
                picture: [one for one in some if kept(one)]
                for picture, some in self.annotations.items()
                if picture in pictures
            },
        )


def read_truth(file: Path, limit: int | None = None) -> Truth:
    """Read an annotation file, or its first `limit` pictures.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged; the line names the annotation or picture.
    """
    coco = read_coco(file)
    pictures = {}
    for entry in list(coco.images.values())[:limit]:
        height, width = entry.get("height"), entry.get("width")
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            raise ValueError(f"{file}: image {entry['id']} needs height and width in pixels")
        pictures[entry["id"]] = Picture(entry["id"], entry["file_name"], (height, width))
    annotations = {}
    for image, some in coco.annotations.items():
        if image not in coco.images:
            raise ValueError(f"{file}: annotation {some[0]['id']} is of image {image}, which is not there")
        if image in pictures:
            size = pictures[image].size
            annotations[image] = [_checked(one, size, coco.categories, file) for one in some]
    return Truth(pictures, dict(coco.categories), annotations)


def _checked(
    one: dict[str, Any], size: tuple[int, int], names: Mapping[int, str], file: Path
) -> dict[str, Any]:
    """The annotation with its mask as a run-length code and all fields that COCOeval reads."""
    where = f"{file}: annotation {one['id']}"
    if one.get("category_id") not in names:
        raise ValueError(f"{where} has the class {one.get('category_id')}, which is none of the categories")
    try:
        x0, y0, x1, y1 = masks.box_from_xywh(one.get("bbox") or ())
        mask = masks.encode(masks.decode(one.get("segmentation") or [], (size[1], size[0])))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise ValueError(f"{where}: bbox {one['bbox']} must be finite numbers")
    area = one.get("area")
    return {
        "id": one["id"],
        "image_id": one["image_id"],
        "category_id": one["category_id"],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": float(area) if isinstance(area, int | float) else float(rle.area(mask)),
        "iscrowd": int(bool(one.get("iscrowd", 0))),
        "segmentation": mask,
    }


class Asked(NamedTuple):
    """A question about a picture.

    category: the class that was asked for, None in descriptions; region: a click or box in pixels that stands
    for `target`, the mask of an instance.
    """

    id: str
    image: str
    picture: int
    category: int | None
    region: Click | Box | None = None
    target: Rle | None = None


def asked(truth: Truth, prompts: Prompts, *, all_classes: bool = False) -> list[Asked]:
    """The questions: one a picture, one for each class that is in a picture (or all of the file's classes),
    or one for each instance that is no crowd.

    Their ids are "PICTURE", "PICTURE/CLASS" and "PICTURE/CLASS/ANNOTATION", the annotation file's numbers.
    """
    out = []
    for picture in truth.pictures.values():
        if prompts == "description":
            out.append(Asked(str(picture.id), picture.image, picture.id, None))
            continue
        if prompts in ("boxes", "clicks"):
            single = (one for one in truth.annotations.get(picture.id, []) if not one["iscrowd"])
            out += [_pointed(picture, one, prompts) for one in single]
            continue
        there = {one["category_id"] for one in truth.annotations.get(picture.id, [])}
        for category in truth.categories:
            if all_classes or category in there:
                out.append(Asked(f"{picture.id}/{category}", picture.image, picture.id, category))
    return out


def _pointed(picture: Picture, one: dict[str, Any], prompts: Prompts) -> Asked:
    """The question about one instance."""
    category, mask = one["category_id"], rle.bitmap(one["segmentation"])
    height, width = picture.size
    if prompts == "clicks" and mask.any():
        pixels = np.argwhere(mask)
        y, x = pixels[((pixels - pixels.mean(0)) ** 2).sum(1).argmin()].tolist()
        region = Click(x, y)
    else:
        x0, y0, side_x, side_y = one["bbox"]
        corners = np.clip([x0, y0, x0 + side_x, y0 + side_y], 0, [width, height, width, height])
        region = Box(*corners.tolist())
    number = f"{picture.id}/{category}/{one['id']}"
    return Asked(number, picture.image, picture.id, category, region, one["segmentation"])


class Found(NamedTuple):
    """An instance that an answer holds; box: (x0, y0, x1, y1) in pixels; mask: None where none was made."""

    picture: int
    category: int
    box: Float[np.ndarray, " 4"]
    score: float
    mask: Rle | None


def found_in(question: Asked, prediction: Prediction, lexicon: Lexicon, truth: Truth) -> list[Found]:
    """The instances of one answer; see the module's text.

    Raises:
        ValueError: the prediction's picture has another size than the annotation file says, or it lacks the
            mask of its region.
    """
    same_size(prediction, truth.pictures[question.picture].size)
    if question.region is not None and question.category is not None:
        mask = _region_mask(prediction)
        return [Found(question.picture, question.category, masks.box_of(rle.bitmap(mask)), 1.0, mask)]
    numbers = {name: number for number, name in truth.categories.items()}
    out = []
    for phrase in prediction.phrases:
        category = question.category
        if category is None:
            meant = lexicon.meant(phrase.text)
            if len(meant) != 1:
                continue
            category = numbers[meant.pop()]
        codes = phrase.masks if phrase.masks is not None else [None] * len(phrase.boxes)
        rows = zip(phrase.boxes, phrase.scores, codes, strict=True)
        out += [Found(question.picture, category, box, float(score), code) for box, score, code in rows]
    return out if question.category is not None else _distinct(out)


def _region_mask(prediction: Prediction) -> Rle:
    """What the model took the one region of a question for."""
    listed, (height, width) = prediction.extra.get(REGION_MASKS), prediction.size
    if isinstance(listed, list) and len(listed) == 1:
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            return masks.encode(masks.decode(listed[0], (width, height)))
    raise ValueError(
        f"{prediction.where}: extra must hold '{REGION_MASKS}', a list of one run-length code of the "
        "picture's size: what the model took the region for"
    )


def _distinct(found: Sequence[Found]) -> list[Found]:
    """Without those that repeat a better one of their class."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda f: -f.score):
        if all(other.category != one.category or _overlap(one, other) <= SAME for other in kept):
            kept.append(one)
    return kept


def _overlap(a: Found, b: Found) -> float:
    if a.mask is None or b.mask is None:
        return float(box_iou(a.box[None], b.box[None])[0, 0])
    return float(rle.ious([a.mask], [b.mask])[0, 0])


def results(found: Iterable[Found], kind: Literal["bbox", "segm"]) -> list[dict[str, Any]]:
    """COCO's list of results; instances without a mask are left out of "segm".

    Only one of box and mask is written: COCOeval takes the area of the box where it sees both.
    """
    out = []
    for one in found:
        line = {"image_id": one.picture, "category_id": one.category, "score": one.score}
        if kind == "bbox":
            x0, y0, x1, y1 = (float(v) for v in one.box)
            out.append({**line, "bbox": [x0, y0, x1 - x0, y1 - y0]})
        elif one.mask is not None:
            out.append({**line, "segmentation": one.mask})
    return out
