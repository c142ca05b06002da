"""Six annotated pictures of COCO with questions, and predictors that are perfect, blind, or guess."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lgjax.eval.predictions import PhrasePrediction, Prediction, to_line

DATA = Path(__file__).with_name("data")
INSTANCES, CAPTIONS = DATA / "instances.json", DATA / "captions.json"
COCO = json.loads(INSTANCES.read_text())
NAMES = {category["id"]: category["name"] for category in COCO["categories"]}
Boxes = Callable[[list[float], dict], list[list[float]]]  # of a true box and its picture: the predicted ones


def things(image: dict) -> list[dict]:
    """The annotations of a picture that are no crowds."""
    return [a for a in COCO["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]


def corners(bbox: list[float]) -> list[float]:
    x, y, width, height = bbox
    return [x, y, x + width, y + height]


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def questions(folder: Path) -> Path:
    """A question about each picture, one more of another category, with the suffix that is taken off."""
    rows = [
        {
            "question_id": i,
            "image": image["file_name"],
            "text": "Describe it. (with grounding)",
            "category": "detail",
        }
        for i, image in enumerate(COCO["images"])
    ]
    other = {
        "question_id": "other",
        "image": COCO["images"][0]["file_name"],
        "text": "Why?",
        "category": "conv",
    }
    return write_lines(folder / "questions.jsonl", [*rows, other])


def predict(boxes: Boxes, scores: Callable[[int], list[float]] = lambda n: [0.9] * n) -> list[Prediction]:
    """A predictor that names every annotated thing, once, and locates it by `boxes`."""
    found = []
    for number, image in enumerate(COCO["images"]):
        text, phrases = "There is", []
        for thing in things(image):
            words = f"a {NAMES[thing['category_id']]}"
            start = len(text) + 1
            text += f" {words} and"
            some = np.asarray(boxes(corners(thing["bbox"]), image), float).reshape(-1, 4)
            span = (start, start + len(words))
            phrases.append(PhrasePrediction(words, span, some, np.asarray(scores(len(some)), float), None))
        size = image["height"], image["width"]
        found.append(
            Prediction(
                number, image["file_name"], size, text, tuple(phrases), {"threshold": 0.2, "model": "toy"}
            )
        )
    return found


def guess(seed: int) -> Boxes:
    rng = np.random.default_rng(seed)

    def boxes(_: list[float], image: dict) -> list[list[float]]:
        x, y = np.sort(rng.random((2, 2)), axis=1) * [[image["width"]], [image["height"]]]
        return [[x[0], y[0], x[1], y[1]]]

    return boxes


def write_predictions(path: Path, predictions: list[Prediction]) -> Path:
    return write_lines(path, [to_line(prediction) for prediction in predictions])
