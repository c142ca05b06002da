"""`lgjax eval scenes`: the scores of a checkpoint on composed scenes."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from lgjax.eval.running import NOTHING_CHOSEN, Shared


def scenes(
    running: Shared = NOTHING_CHOSEN,
    *,
    split: Literal["train", "combinations", "styles"] = "combinations",
    count: int = 100,
    seed: int = 1,
    size: int = 128,
    style: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME_OR_DIR")] = (),
    sweep_queries: tuple[int, ...] = (),
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
        sweep_queries: Describe with each of these numbers of object queries, too, for example 50 100 300, and
            show what they bring and what time they take.
    """
    from lgjax.data.drawings import STYLES
    from lgjax.data.scenes import SceneConfig
    from lgjax.eval.report import finish
    from lgjax.eval.scene_report import measure

    config = SceneConfig(size=size, styles=style or STYLES)
    report = measure(running, split, seed, count, config, sweep_queries)
    if report is not None:
        finish(report, running.out)
