"""`lgjax eval referring`: REC and RES on RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lgjax.eval.running import NOTHING_CHOSEN, Shared

_Paths = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE")]
_Splits = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="SPLIT")]


def referring(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    /,
    running: Shared = NOTHING_CHOSEN,
    *,
    split_by: Literal["unc", "google", "umd"] = "unc",
    split: _Splits = (),
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    free: bool = False,
    train: _Paths = (),
    sweep_queries: tuple[int, ...] = (),
) -> None:
    """Measure one box (REC) and one mask (RES) for each referring sentence.

    The answer is forced to exactly one <seg>, whose best query counts; --free lets the model write its
    answer, of which the first <seg> counts, and says how many answers have none or several.

    Args:
        folder: Folder with refs(SPLIT_BY).p and instances.json, as REFER has them.
        running: Where predictions come from.
        split_by: Who split it: refcoco and refcoco+ unc, refcocog umd or google.
        split: val, test, testA, testB or train; may be given several times. Without it all but train.
        images: Folder with the pictures (COCO's, with or without the prefix of 2014).
        free: Let the model write its own answer.
        train: A file of training data whose pictures are looked for among those tested: refs(*).p, COCO's
            layout, or records with "image"; may be given several times.
        sweep_queries: Ask with each of these numbers of object queries, too, for example 50 100 300, and show
            what they bring and what time they take.
    """
    from lgjax.data.sources.common import Pictures, find_file
    from lgjax.eval import refer
    from lgjax.eval.referring_report import by_split, queries_table, questions_of, report_of
    from lgjax.eval.report import finish
    from lgjax.eval.run import predictions_for
    from lgjax.eval.sweep import by_queries

    splits = refer.read_samples(folder, split_by, split)
    pictures = Pictures.below(images or folder, "train2014", "train2017")
    questions = questions_of(splits, pictures, free=free)
    own = find_file(folder, [f"refs({split_by}).p"], None)
    training = [path for path in dict.fromkeys((own, *train)) if path != own or "train" not in splits]
    leaks = {name: refer.leaks(samples, training) for name, samples in splits.items()}
    options: dict[str, Any] = {"threshold": None, "ground": False}
    found = predictions_for(running, questions, **options)
    swept = by_queries(running, questions, sweep_queries, "sentences", **options)
    if found is None or swept is None:
        return
    paths = {question.id: question.path for question in questions}
    report = report_of(by_split(splits, found), leaks, paths, split_by=split_by, free=free)
    if swept:
        table = queries_table({(at.queries, at.seconds): by_split(splits, at.pairs) for at in swept})
        report = dataclasses.replace(report, tables=(*report.tables, table))
    finish(report, running.out)
