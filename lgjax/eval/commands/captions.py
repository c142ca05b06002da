"""`lgjax eval captions`: grounded caption generation, as GLaMM measures it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from lgjax.eval.running import NOTHING_CHOSEN, Shared


def captions(
    captions: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CAPTIONS_JSON")],
    masks: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MASKS_JSON")],
    /,
    running: Shared = NOTHING_CHOSEN,
    *,
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
) -> None:
    """Measure grounded captions: METEOR and CIDEr of the text, AP50, mIoU and recall of the masks.

    The files are GLaMM's val_gcg_coco_caption_gt.json and val_gcg_coco_mask_gt.json, or others of their
    layout. METEOR needs nltk: pip install "lgjax[eval]".

    Args:
        captions: Captions in COCO's layout, with the list `labels` of their phrases.
        masks: Masks in COCO's layout, in the order of the labels.
        running: Where predictions come from.
        images: Folder with the pictures.
    """
    from lgjax.data.sources.common import Pictures
    from lgjax.eval.caption_report import questions_of, report_of
    from lgjax.eval.captions import read_truth
    from lgjax.eval.report import finish
    from lgjax.eval.run import predictions_for
    from lgjax.eval.text_scores import wordnet

    wordnet()  # what is not installed is said before any work is done
    truths = read_truth(captions, masks)
    pictures = Pictures.below(images or captions.parent)
    found = predictions_for(running, questions_of(truths, pictures))
    if found is not None:
        by_id = {truth.id: truth for truth in truths}
        finish(report_of([(by_id[q.id], q.path, p) for q, p in found]), running.out)
