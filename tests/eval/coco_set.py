"""A small set in COCO's layout, and answers about it: perfect, empty, random."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from lgjax.data.masks import box_of, encode
from lgjax.eval import coco_instances
from lgjax.eval.predict import REGION_MASKS
from lgjax.eval.predictions import PhrasePrediction, Prediction

NAMES = {1: "person", 18: "dog", 3: "car"}
SIZES = ((48, 64), (60, 40), (32, 32), (50, 50))


def ellipse(size, centre, radii):
    rows, columns = np.indices(size)
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1


def content(crowd: bool = True) -> dict:
    """Four pictures: several instances of a class, overlapping ones, a crowd, and a picture without any."""
    shapes = [
        (1, 1, (12, 12), (9, 7)),
        (1, 1, (30, 40), (12, 15)),
        (1, 18, (34, 34), (6, 6)),  # in front of the second person
        (2, 3, (20, 20), (10, 16)),
        (2, 18, (45, 12), (8, 8)),
        (3, 18, (16, 16), (5, 9)),
    ]
    annotations = []
    for number, (image, category, centre, radii) in enumerate(shapes, 1):
        annotations.append(annotation(number, image, category, ellipse(SIZES[image - 1], centre, radii)))
    if crowd:
        mask = np.zeros(SIZES[1], bool)
        mask[30:40, 25:40] = True
        annotations.append({**annotation(99, 2, 1, mask), "iscrowd": 1})
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "height": height, "width": width}
        for i, (height, width) in enumerate(SIZES, 1)
    ]
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def annotation(number, image, category, mask) -> dict:
    x0, y0, x1, y1 = box_of(mask).tolist()
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": encode(mask),
    }


def write(folder: Path, data: dict) -> Path:
    file = folder / "instances.json"
    file.write_text(json.dumps(data))
    return file


def prediction(question, size, phrases) -> Prediction:
    """phrases: (words, [(box, score, code)]); the text is all words, one after the other."""
    text, said = "", []
    for words, rows in phrases:
        start = len(text) + bool(text)
        text = f"{text} {words}" if text else words
        boxes = np.asarray([row[0] for row in rows], float).reshape(-1, 4)
        scores = np.asarray([row[1] for row in rows], float)
        codes = tuple(row[2] for row in rows)
        said.append(PhrasePrediction(words, (start, len(text)), boxes, scores, codes))
    return Prediction(question.id, question.image, size, text, tuple(said), {"who": "test"})


def rows_of(annotations):
    out = []
    for one in annotations:
        x, y, width, height = one["bbox"]
        out.append(([x, y, x + width, y + height], 1.0, one["segmentation"]))
    return out


def perfect(truth, prompts, *, all_classes=False) -> dict[str, Prediction]:
    """The answers of who knows everything."""
    out = {}
    for question in coco_instances.asked(truth, prompts, all_classes=all_classes):
        if question.region is not None:
            blank = prediction(question, truth.pictures[question.picture].size, [])
            out[question.id] = replace(blank, extra={REGION_MASKS: [question.target]})
            continue
        there = [one for one in truth.annotations.get(question.picture, []) if not one["iscrowd"]]
        wanted = [question.category] if question.category is not None else truth.categories
        named = [(truth.categories[c], [one for one in there if one["category_id"] == c]) for c in wanted]
        phrases = [(f"the {name}", rows_of(some)) for name, some in named if some or question.category]
        out[question.id] = prediction(question, truth.pictures[question.picture].size, phrases)
    return out


def empty(truth, prompts) -> dict[str, Prediction]:
    """The answers of who says nothing."""
    return {
        q.id: prediction(q, truth.pictures[q.picture].size, []) for q in coco_instances.asked(truth, prompts)
    }


def random(truth, prompts, rng) -> dict[str, Prediction]:
    """The answers of who guesses: three boxes of any place, their masks the ellipses within."""
    out = {}
    for question in coco_instances.asked(truth, prompts):
        height, width = size = truth.pictures[question.picture].size
        rows = []
        for score in sorted(rng.random(3), reverse=True):
            (x0, x1), (y0, y1) = np.sort(rng.random(2)) * width, np.sort(rng.random(2)) * height
            radii = (max(y1 - y0, 1) / 2, max(x1 - x0, 1) / 2)
            mask = ellipse(size, ((y0 + y1) / 2, (x0 + x1) / 2), radii)
            rows.append(([x0, y0, x1, y1], float(score), encode(mask)))
        name = truth.categories[question.category] if question.category else rng.choice([*NAMES.values()])
        out[question.id] = prediction(question, size, [(f"the {name}", rows)])
    return out
