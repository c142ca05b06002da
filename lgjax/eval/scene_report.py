"""Composed scenes from questions to report: predictions of every part, the tables, the worst scenes drawn."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgjax.data.scenes import SceneConfig, Split
from lgjax.eval.drawing import drawn
from lgjax.eval.predictions import Prediction, cut
from lgjax.eval.questions import Question
from lgjax.eval.report import Cell, Example, Report, Table
from lgjax.eval.run import predictions_for
from lgjax.eval.running import Running
from lgjax.eval.scenes import (
    ENOUGH,
    PARTS,
    Found,
    Held,
    Part,
    held_out,
    name_of,
    questions_of,
    says_yes,
    score_description,
    score_expression,
    share,
    total,
)
from lgjax.eval.sweep import AtQueries, by_queries
from lgjax.eval.ungrounded import Judged, curve, judged
from lgjax.infer.request import Options

WORST = 10
TOLD: Part = "descriptions"
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
# how each part is asked; descriptions keep all that the lowest threshold asks for, and are cut to the others
OPTIONS: Mapping[Part, Mapping[str, Any]] = {
    "descriptions": {"max_tokens": 160, "threshold": THRESHOLDS[0]},
    "expressions": {"threshold": None, "ground": False},
    "regions": {"ground": False, "max_tokens": 32},
    "presence": {"max_tokens": 32},
}
Answers = list[tuple[Question, Prediction]]


def measure(
    running: Running, split: Split, seed: int, count: int, config: SceneConfig, queries: Sequence[int] = ()
) -> Report | None:
    """Ask about scenes and score the answers; None while other processes have parts to make.

    queries: describe with each of these numbers of object queries, too. Pictures and predictions are kept in
    the folder of --out, where there is one.

    Raises:
        ValueError: see `held_out` and `predictions_for`.
    """
    Options(threshold=running.threshold)  # refused before anything is asked
    held = held_out(split, seed, len(running.limited(range(count))), config)
    running = dataclasses.replace(running, limit=None)
    with contextlib.ExitStack() as stack:
        folder = running.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if running.predictions is None:
            running = dataclasses.replace(running, out=folder)
        pictures = folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        asked = [questions_of(one, pictures) for one in held]
        questions = {part: [question for one in asked for question in one[part]] for part in PARTS}
        # every process makes its share of all parts
        answers: dict[Part, Answers | None] = {}
        for part in PARTS:
            answers[part] = predictions_for(running, questions[part], part, **OPTIONS[part])
        swept = by_queries(running, questions[TOLD], queries, TOLD, **OPTIONS[TOLD])
    complete: dict[Part, Answers] = {part: pairs for part, pairs in answers.items() if pairs is not None}
    if swept is None or len(complete) < len(PARTS):
        return None
    settings = {"split": split, "seed": seed, "scenes": len(held), "size": config.size}
    report = report_of(held, complete, {**settings, "styles": [*config.styles]}, running.threshold)
    if not swept:
        return report
    return dataclasses.replace(report, tables=(*report.tables, _by_queries(held, swept, running.threshold)))


def report_of(
    held: Sequence[Held],
    answers: Mapping[Part, Answers],
    settings: Mapping[str, Any],
    threshold: float | None,
) -> Report:
    """The report of answers to all parts; settings are those of the scenes.

    Raises:
        ValueError: the descriptions were made with a higher threshold.
    """
    kept = [prediction for _, prediction in answers[TOLD]]
    described = [cut(prediction, threshold) for prediction in kept]
    found = [score_description(one.scene, p) for one, p in zip(held, described, strict=True)]
    rows = _questions(held, answers, found)
    said = ", ".join(f"{label} {_percent(value)}" for label, value, _ in rows)
    return Report(
        title=f"Composed scenes, split {settings['split']}",
        settings={**(described[0].settings if described else {}), **settings},
        tables=(
            _by_things(found),
            Table("Questions", ("question", "share", "asked"), rows),
            _by_threshold(held, kept),
            curve(_judged(held, kept), _thresholds(kept)),
        ),
        notes=(
            "Right: a box with IoU >= 0.5 to a thing that its phrase names rightly, one to one. Mask IoU is "
            "the mean of right boxes. Located: things with a box of IoU >= 0.5, whatever its name.",
            f"Questions: {said}.",
        ),
        worst=_worst(held, described, found),
    )


def _questions(
    held: Sequence[Held], answers: Mapping[Part, Answers], found: Sequence[Found]
) -> tuple[tuple[str, float | None, int], ...]:
    """Label, share of right ones (or mean IoU) and number of each kind of question."""
    scenes = {one.name: one.scene for one in held}
    referred = [
        score_expression(scenes[_parts(question)[0]], question, prediction)
        for question, prediction in answers["expressions"]
    ]
    pointed: dict[str, list[bool]] = {"click": [], "box": [], "mark": []}
    for question, prediction in answers["regions"]:
        name, kind = _parts(question)
        thing = scenes[name].things[question.extra["thing"]]
        pointed[kind].append(name_of(prediction.text) == thing.kind.name)
    said: dict[str, list[bool | None]] = {"present": [], "absent": []}
    for question, prediction in answers["presence"]:
        said[_parts(question)[1]].append(says_yes(prediction.text))
    present, absent = said["present"], said["absent"]
    return (
        ("expressions, box of the best query right", share(i >= ENOUGH for i, _ in referred), len(referred)),
        ("expressions, mean mask IoU", share(iou for _, iou in referred), len(referred)),
        *((f"name of the thing at a {kind}", share(hits), len(hits)) for kind, hits in pointed.items()),
        ("things that are there: yes", share(one is True for one in present), len(present)),
        ("things that are not there: no", share(one is False for one in absent), len(absent)),
        ("things that are not there: claimed", share(one is True for one in absent), len(absent)),
        ("descriptions that name what is not there", share(bool(f.wrong_names) for f in found), len(found)),
    )


def _parts(question: Question) -> tuple[str, str]:
    """The name of the scene and the kind of question."""
    name, _, kind = str(question.id).rpartition("-")
    return name, kind


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _by_things(found: Sequence[Found]) -> Table:
    rows: list[tuple[Cell, ...]] = [("all", len(found), *total(found))]
    for number in sorted({one.things for one in found}):
        some = [one for one in found if one.things == number]
        rows.append((str(number), len(some), *total(some)))
    columns = ("things", "scenes", "precision", "recall", "F1", "mask IoU", "located")
    return Table("Descriptions", columns, tuple(rows))


def _thresholds(kept: Sequence[Prediction]) -> list[float]:
    """Those that the predictions hold enough for."""
    own = max((prediction.settings.get("threshold") or 0.0 for prediction in kept), default=0.0)
    return [threshold for threshold in THRESHOLDS if threshold >= own]


def _by_threshold(held: Sequence[Held], kept: Sequence[Prediction]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for threshold in _thresholds(kept):
        pairs = zip(held, kept, strict=True)
        found = [score_description(one.scene, cut(prediction, threshold)) for one, prediction in pairs]
        rows.append((str(threshold), *total(found)))
    columns = ("threshold", "precision", "recall", "F1", "mask IoU", "located")
    return Table("Thresholds", columns, tuple(rows))


def _by_queries(held: Sequence[Held], swept: Sequence[AtQueries], threshold: float | None) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for queries, pairs, seconds in swept:
        described = [cut(prediction, threshold) for _, prediction in pairs]
        found = [score_description(one.scene, p) for one, p in zip(held, described, strict=True)]
        rows.append((str(queries), *total(found), seconds))
    columns = ("queries", "precision", "recall", "F1", "mask IoU", "located", "seconds a picture")
    return Table("Object queries", columns, tuple(rows))


def _judged(held: Sequence[Held], kept: Sequence[Prediction]) -> list[Judged]:
    """The phrases that name a class, and whether something of it is in their scene."""
    out = []
    for one, prediction in zip(held, kept, strict=True):
        there = {thing.kind.name for thing in one.scene.things}

        def present(_: Prediction, phrase: str, there: set[str] = there) -> bool | None:
            name = name_of(phrase)
            return None if name is None else name in there

        out += judged([prediction], present)
    return out


def _worst(
    held: Sequence[Held], described: Sequence[Prediction], found: Sequence[Found]
) -> tuple[Example, ...]:
    """The scenes with the lowest F1, of equals those with the worst masks, with what was said of them."""
    order = sorted(range(len(found)), key=lambda i: (found[i].f1, sum(found[i].mask_ious)))[:WORST]
    out = []
    for i in order:
        one, scene = found[i], held[i].scene
        names = ", ".join(thing.kind.name for thing in scene.things)
        title = f"{held[i].name}: F1 {one.f1:.2f}, {one.right} right of {one.boxes} boxes; there: {names}"
        out.append(Example(title, drawn(scene.image, described[i])))
    return tuple(out)
