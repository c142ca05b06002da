"""How well a model sees composed scenes: what is asked about each, and how the answers are scored.

A box of a description is right when it has an IoU of at least 0.5 with a thing that its phrase names rightly;
each thing is found by one box at most, and each box finds one thing. Precision is the share of right boxes,
recall that of found things, both over all scenes. Source: none; the scenes are lgjax's own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL.Image
import scipy.optimize

from lgjax.data import scene_text
from lgjax.data.boxes import box_iou
from lgjax.data.drawings import classes
from lgjax.data.marks import picture_of
from lgjax.data.scenes import Scene, SceneConfig, Split
from lgjax.data.sources.scenes import Scenes
from lgjax.draw import deepest_point
from lgjax.eval.predictions import PhrasePrediction, Prediction
from lgjax.eval.questions import Question
from lgjax.infer.regions import Box, Click
from lgjax.text.conversation import REFERRING_ANSWER, REFERRING_QUESTION

Part = Literal["descriptions", "expressions", "regions", "presence"]
PARTS: tuple[Part, ...] = ("descriptions", "expressions", "regions", "presence")
ENOUGH = 0.5  # IoU of a right box


class Held(NamedTuple):
    """A scene with the name by which questions know it."""

    name: str
    scene: Scene


def held_out(split: Split, seed: int, count: int, config: SceneConfig) -> list[Held]:
    """The first scenes of a split.

    Raises:
        ValueError: a count below 1, or a seed below 0.
    """
    scenes = Scenes(split=split, seed=seed, count=count, config=config)
    return [Held(f"{split}-{seed}-{number:05d}", scenes.scene(number)) for number in range(count)]


def questions_of(held: Held, folder: Path) -> dict[Part, list[Question]]:
    """What is asked about a scene; its pictures are written into `folder`.

    One description, one expression for a single thing with the answer forced to one <seg>, the name of a
    thing by click, box and drawn mark, and one question each about a thing that is there and one that is not.
    `extra` of a question holds the thing's number, or the name that is asked for.
    """
    name, scene = held
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    view = scene_text.View(scene)
    plain, marked = f"{name}.png", f"{name}-marked.png"
    _save(scene.image, folder / plain)
    _save(picture_of(scene_text.records(scene, rng, name)["marks"]), folder / marked)

    def ask(kind: str, text: str, image: str = plain, **fields) -> Question:
        return Question(id=f"{name}-{kind}", image=image, path=folder / image, text=text, **fields)

    out: dict[Part, list[Question]] = {part: [] for part in PARTS}
    out["descriptions"].append(ask("description", scene_text.description(view, rng).question))
    single = [
        (text, e.objects[0]) for e in scene_text.expressions(view) if len(e.objects) == 1 for text in e.texts
    ]
    if single:
        text, thing = single[int(rng.integers(len(single)))]
        question = REFERRING_QUESTION.replace("{text}", text.lower())
        out["expressions"].append(
            ask("expression", question, answer=REFERRING_ANSWER, extra={"thing": thing})
        )
    pointed = [int(number) for number in rng.integers(len(scene.things), size=3)]
    click = deepest_point(scene.things[pointed[0]].mask)
    x0, y0, x1, y1 = scene.things[pointed[1]].box
    box = Box(x0, y0, min(x1, scene.image.width - 1), min(y1, scene.image.height - 1))
    asked = "What is the object % ?"
    out["regions"] += [
        ask("click", asked, regions=(Click(*click),), extra={"thing": pointed[0]}),
        ask("box", asked, regions=(box,), extra={"thing": pointed[1]}),
        ask("mark", f"What is the object <{pointed[2] + 1}> ?", marked, extra={"thing": pointed[2]}),
    ]
    names = list(view.groups)
    present = names[int(rng.integers(len(names)))]
    absent = view.absent()
    missing = absent[int(rng.integers(len(absent)))].name
    for kind, thing in (("present", present), ("absent", missing)):
        text = f"Is there {scene_text.article(thing)} in the picture?"
        out["presence"].append(ask(kind, text, extra={"name": thing}))
    return out


def _save(image: PIL.Image.Image, path: Path) -> None:
    """Write a picture that has its name when it is complete; other processes may write it, too."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    image.save(unfinished, "PNG")
    unfinished.rename(path)


@functools.cache
def _names() -> dict[str, str]:
    """The name of a class by its singular and its plural, in lower case."""
    named = {kind.name.lower(): kind.name for kind in classes()}
    return {kind.plural.lower(): kind.name for kind in classes()} | named


@functools.cache
def _pattern() -> re.Pattern[str]:
    longest_first = sorted(_names(), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")


def names_in(text: str) -> list[str]:
    """The classes that a text names, in their order: "two red cars" names a car, "a police car" no car.

    A name right in front of another is its attribute: "an orange fox" names no orange.
    """
    text = text.lower()
    found = list(_pattern().finditer(text))
    followed = {a for a, b in itertools.pairwise(found) if text[a.end() : b.start()].isspace()}
    return [_names()[match.group()] for match in found if match not in followed]


def name_of(phrase: str) -> str | None:
    """The class that a phrase is about: the first that it names ("the dog beside a cat" is a dog)."""
    return next(iter(names_in(phrase)), None)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a description found: numbers of its boxes, of the things, of right boxes (each with the IoU of its
    mask), of things that some box lies on, and the names that it gives to nothing in the picture."""

    boxes: int
    things: int
    mask_ious: tuple[float, ...]
    located: int
    wrong_names: tuple[str, ...]

    @property
    def right(self) -> int:
        """Right boxes, and as many found things."""
        return len(self.mask_ious)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 2 right / (boxes + things)."""
        return 2 * self.right / (self.boxes + self.things)


def score_description(scene: Scene, prediction: Prediction) -> Found:
    """Hold a description to its scene."""
    pairs = [(phrase, k) for phrase in prediction.phrases for k in range(len(phrase.boxes))]
    boxes = np.asarray([phrase.boxes[k] for phrase, k in pairs], float).reshape(-1, 4)
    ious = box_iou(boxes, np.asarray([thing.box for thing in scene.things], float))
    named = [name_of(phrase.text) for phrase, _ in pairs]
    same = np.asarray([[name == thing.kind.name for thing in scene.things] for name in named], bool)
    near = ious >= ENOUGH
    fits = near & same.reshape(near.shape)
    # as many pairs as there can be, and of these the closest
    rows, columns = scipy.optimize.linear_sum_assignment(
        np.where(fits, 1 + len(pairs) + ious, 0), maximize=True
    )
    matched = [(row, column) for row, column in zip(rows, columns, strict=True) if fits[row, column]]
    there = {thing.kind.name for thing in scene.things}
    return Found(
        boxes=len(pairs),
        things=len(scene.things),
        mask_ious=tuple(
            _mask_iou(pairs[row][0], pairs[row][1], scene.things[column].mask, prediction.size)
            for row, column in matched
        ),
        located=int(near.any(0).sum()) if len(pairs) else 0,
        wrong_names=tuple(name for name in names_in(prediction.text) if name not in there),
    )


def _mask_iou(phrase: PhrasePrediction, number: int, mask: np.ndarray, size: tuple[int, int]) -> float:
    if phrase.masks is None:
        return 0.0
    found = phrase.bitmaps(size)[number]
    return float((found & mask).sum() / (found | mask).sum())


def score_expression(scene: Scene, question: Question, prediction: Prediction) -> tuple[float, float]:
    """IoU of box and mask of the best query with the thing that was meant; 0 where there is none."""
    thing = scene.things[question.extra["thing"]]
    best = [phrase for phrase in prediction.phrases[:1] if len(phrase.boxes)]
    if not best:
        return 0.0, 0.0
    iou = box_iou(np.asarray(best[0].boxes[:1], float), np.asarray([thing.box], float))[0, 0]
    return float(iou), _mask_iou(best[0], 0, thing.mask, prediction.size)


def says_yes(text: str) -> bool | None:
    """Whether an answer claims that the thing is there; None where it says neither.

    "No, ...", "There is no ..." and "I see no ..." deny it, "Yes, ..." and "There is a ..." claim it.
    """
    words = re.findall(r"[a-z']+", text.lower())
    if words[:1] == ["yes"]:
        return True
    if {"no", "not", "none", "isn't", "aren't"} & set(words):
        return False
    return True if "yes" in words or text.lower().startswith(("there is", "there are")) else None


def share(values: Iterable[float | int | bool]) -> float | None:
    """The mean, of True and False the share of True; None of nothing."""
    values = list(values)
    return float(sum(values) / len(values)) if values else None


def total(found: Sequence[Found]) -> tuple[float, float, float, float | None, float]:
    """Precision, recall, F1, mean mask IoU of the right boxes and share of located things, over scenes."""
    right, boxes, things = (sum(getattr(one, name) for one in found) for name in ("right", "boxes", "things"))
    ious = [iou for one in found for iou in one.mask_ious]
    return (
        right / boxes if boxes else 0.0,
        right / things if things else 0.0,
        2 * right / (boxes + things) if boxes + things else 0.0,
        float(np.mean(ious)) if ious else None,
        sum(one.located for one in found) / things if things else 0.0,
    )
