"""`lgjax eval referring`: REC and RES on RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    """
    from lgjax.data.sources.common import Pictures, find_file
    from lgjax.eval import refer
    from lgjax.eval.referring_report import questions_of, report_of
    from lgjax.eval.report import finish
    from lgjax.eval.run import predictions_for

    splits = refer.read_samples(folder, split_by, split)
    pictures = Pictures.below(images or folder, "train2014", "train2017")
    questions = questions_of(splits, pictures, free=free)
    own = find_file(folder, [f"refs({split_by}).p"], None)
    training = [path for path in dict.fromkeys((own, *train)) if path != own or "train" not in splits]
    leaks = {name: refer.leaks(samples, training) for name, samples in splits.items()}
    found = predictions_for(running, questions, threshold=None, ground=False)
    if found is None:
        return
    answers = {question.id: prediction for question, prediction in found}
    paths = {question.id: question.path for question, _ in found}
    pairs = {
        name: [(sample, answers[sample.id]) for sample in samples if sample.id in answers]
        for name, samples in splits.items()
    }
    finish(report_of(pairs, leaks, paths, split_by=split_by, free=free), running.out)
