"""`lgjax eval scenes`: the scores of a checkpoint on composed scenes."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lgjax.eval.running import NOTHING_CHOSEN, Shared

if TYPE_CHECKING:
    from lgjax.eval.predictions import Prediction
    from lgjax.eval.questions import Question
    from lgjax.eval.report import Example, Report, Table
    from lgjax.eval.scenes import Found, Held

WORST = 10


def scenes(
    running: Shared = NOTHING_CHOSEN,
    *,
    split: Literal["train", "combinations", "styles"] = "combinations",
    count: int = 100,
    seed: int = 1,
    size: int = 128,
    style: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME_OR_DIR")] = (),
) -> None:
    """Measure a checkpoint on composed scenes: what it finds, names, points at and denies.

    Without --out only the table is printed.

    Args:
        running: Where predictions come from.
        split: "train" is as in training; "combinations" has pairs of classes that never meet there, "styles"
            classes in a style in which they are never drawn there; both have other backgrounds.
        count: How many scenes.
        seed: Another seed gives other scenes; training takes 0 unless told otherwise.
        size: Side of the pictures in pixels.
        style: Style of the drawings: noto, fluent, or a folder of PNGs named like the classes; may be given
            several times.
    """
    from lgjax.data.drawings import STYLES
    from lgjax.data.scenes import SceneConfig
    from lgjax.eval import scenes as measure
    from lgjax.eval.report import finish
    from lgjax.eval.run import predictions_for

    config = SceneConfig(size=size, styles=style or STYLES)
    with contextlib.ExitStack() as stack:
        if running.out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            own = running if running.predictions else dataclasses.replace(running, out=folder)
        else:
            folder, own = running.out, running
        pictures = folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        held = measure.held_out(split, seed, count, config)
        asked = [measure.questions_of(one, pictures) for one in held]
        pairs: dict[str, list[Any]] = {}
        for part in measure.PARTS:
            questions = [question for one in asked for question in one[part]]
            found = predictions_for(own, questions, part, **OPTIONS[part])
            if found is None:
                return
            pairs[part] = found
        settings = {
            "split": split,
            "seed": seed,
            "scenes": count,
            "size": size,
            "styles": list(config.styles),
        }
        finish(report_of(held, pairs, settings), running.out)


# how each part is asked; the threshold of the command line is that of the descriptions
OPTIONS: dict[str, dict[str, Any]] = {
    "descriptions": {"max_tokens": 160},
    "expressions": {"threshold": None, "ground": False},
    "regions": {"ground": False, "max_tokens": 32},
    "presence": {"max_tokens": 32},
}


def report_of(
    held: Sequence[Held], pairs: dict[str, list[tuple[Question, Prediction]]], settings: dict[str, Any]
) -> Report:
    """The tables and the worst scenes of answers to all parts; settings are those of the scenes."""
    from lgjax.eval import scenes as measure
    from lgjax.eval.report import Report

    described = [prediction for _, prediction in pairs["descriptions"]]
    found = [measure.score_description(one.scene, p) for one, p in zip(held, described, strict=True)]
    by_name = {one.name: one.scene for one in held}
    referred = [
        measure.score_expression(by_name[_scene_of(question)], question, prediction)
        for question, prediction in pairs["expressions"]
    ]
    pointed: dict[str, list[bool]] = {"click": [], "box": [], "mark": []}
    for question, prediction in pairs["regions"]:
        thing = by_name[_scene_of(question)].things[question.extra["thing"]]
        named = measure.name_of(prediction.text) == thing.kind.name
        pointed[str(question.id).rsplit("-", 1)[1]].append(named)
    said = {"present": [], "absent": []}
    for question, prediction in pairs["presence"]:
        said[str(question.id).rsplit("-", 1)[1]].append(measure.says_yes(prediction.text))
    from lgjax.eval.report import Table

    share = measure.share
    other = [
        (
            "expressions: box of the best query right (IoU >= 0.5)",
            share(i >= measure.ENOUGH for i, _ in referred),
            len(referred),
        ),
        ("expressions: mean mask IoU", sum(i for _, i in referred) / max(len(referred), 1), len(referred)),
        *((f"name of the thing at a {kind}", share(hits), len(hits)) for kind, hits in pointed.items()),
        ("thing that is there: yes", share(one is True for one in said["present"]), len(said["present"])),
        ("thing that is not there: no", share(one is False for one in said["absent"]), len(said["absent"])),
        (
            "thing that is not there: claimed",
            share(one is True for one in said["absent"]),
            len(said["absent"]),
        ),
        (
            "descriptions that name what is not there",
            share(bool(one.wrong_names) for one in found),
            len(found),
        ),
    ]
    run = described[0].settings if described else {}
    return Report(
        title=f"Composed scenes: {settings['split']}",
        settings={**run, **settings},
        tables=(_by_things(found), Table("Questions", ("question", "share", "asked"), tuple(other))),
        notes=(
            "Right: a box with IoU >= 0.5 to a thing that its phrase names rightly, one to one. Mask IoU is the "
            "mean of right boxes. Located: things with a box of IoU >= 0.5, whatever its name.",
            " ".join(f"{label}: {_percent(value)}." for label, value, _ in other),
        ),
        worst=_worst(held, described, found),
    )


def _scene_of(question: Question) -> str:
    return str(question.id).rsplit("-", 1)[0]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _by_things(found: Sequence[Found]) -> Table:
    from lgjax.eval.report import Table
    from lgjax.eval.scenes import total

    rows = [("all", len(found), *total(found))]
    for number in sorted({one.things for one in found}):
        some = [one for one in found if one.things == number]
        rows.append((str(number), len(some), *total(some)))
    columns = ("things", "scenes", "precision", "recall", "F1", "mask IoU", "located")
    return Table("Descriptions", columns, tuple(rows))


def _worst(
    held: Sequence[Held], described: Sequence[Prediction], found: Sequence[Found]
) -> tuple[Example, ...]:
    """The scenes with the lowest F1, of equals those with the worst masks, drawn with what was said."""
    from lgjax.eval.drawing import drawn
    from lgjax.eval.report import Example

    order = sorted(range(len(found)), key=lambda i: (found[i].f1, sum(found[i].mask_ious)))[:WORST]
    out = []
    for i in order:
        names = ", ".join(thing.kind.name for thing in held[i].scene.things)
        one = found[i]
        title = f"{held[i].name}: F1 {one.f1:.2f}, {one.right} right of {one.boxes} boxes; there: {names}"
        out.append(Example(title, drawn(held[i].scene.image, described[i])))
    return tuple(out)
