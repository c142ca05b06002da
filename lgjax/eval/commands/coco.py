"""`lgjax eval coco`: average precision and panoptic quality on COCO's instances."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lgjax.eval.running import NOTHING_CHOSEN, Shared


def coco(
    annotations: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INSTANCES_JSON")],
    /,
    running: Shared = NOTHING_CHOSEN,
    *,
    prompts: Literal["names", "description", "boxes", "clicks"] = "names",
    all_classes: bool = False,
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    keep: int = 100,
) -> None:
    """Measure boxes and masks of classes: COCO's AP, and panoptic quality of things.

    "names" asks for each class that is in a picture by its name; "description" asks for a description and
    takes each grounded phrase for an instance of the class that it is about; "boxes" and "clicks" point at
    each annotated instance and take the mask of the visual-prompt model.

    Args:
        annotations: instances_val2017.json, or another file of its layout.
        running: Where predictions come from. Panoptic quality takes the boxes above --threshold, with names
            AP takes all.
        prompts: How instances are asked for.
        all_classes: With names: ask for every class of the file in every picture, as a detector is measured.
        images: Folder with the pictures.
        keep: With names: boxes that are kept of each class and picture.
    """
    from lgjax.data.sources.common import Pictures
    from lgjax.eval.coco_instances import asked, read_truth
    from lgjax.eval.coco_report import questions_of, report_of
    from lgjax.eval.report import finish
    from lgjax.eval.run import predictions_for

    truth = read_truth(annotations)
    wanted = asked(truth, prompts, all_classes=all_classes)
    stem = annotations.stem.removeprefix("instances_")
    pictures = Pictures.below(images or annotations.parent, stem)
    options: dict[str, dict[str, Any]] = {
        "names": {"ground": False, "threshold": 0.0, "keep": keep},
        "description": {},
        "boxes": {"ground": False, "max_tokens": 1},  # the answer's words do not count
        "clicks": {"ground": False, "max_tokens": 1},
    }
    found = predictions_for(running, questions_of(wanted, truth, pictures), **options[prompts])
    if found is not None:
        by_id = {one.id: one for one in wanted}
        answers = [(by_id[str(q.id)], q.path, p) for q, p in found]
        finish(report_of(truth, answers, prompts, running.threshold, all_classes=all_classes), running.out)
