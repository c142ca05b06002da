"""What is asked for grounded captions, and the report on the answers. Source: spec/evaluation.md 6.2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lgjax.data.sources.common import Pictures
from lgjax.eval import rle, text_scores
from lgjax.eval.captions import Truth, caption_of, image_miou, score
from lgjax.eval.predictions import Prediction
from lgjax.eval.questions import Question
from lgjax.eval.report import Report, Table
from lgjax.eval.worst import Judged, worst
from lgjax.text.conversation import FLICKR_QUESTION
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER

MEASURES = ("METEOR %", "CIDEr %", "AP50 %", "mIoU %", "recall %", "recall, released rule %")
NOTES = (
    "All masks of a phrase are one mask, with the score of the best. mIoU: masks paired one to one, best IoU "
    "first, mean over the pairs of a picture, then over pictures. Recall: phrases with IoU and text "
    "similarity >= 0.5; GLaMM's released code stops at the first pair whose texts differ.",
    "CIDEr is 100 x the COCO tools' figure.",
)


def questions_of(truths: Sequence[Truth], pictures: Pictures) -> list[Question]:
    """One question a picture, the one that training asks for grounded captions."""
    text = FLICKR_QUESTION.removeprefix(f"{IMAGE_PLACEHOLDER}\n")
    return [
        Question(id=truth.id, image=truth.image, path=pictures.path(truth.image), text=text)
        for truth in truths
    ]


def report_of(answers: Sequence[tuple[Truth, Path, Prediction]]) -> Report:
    """The scores of all captions; answers are truths, paths of pictures and predictions.

    Raises:
        ValueError: a prediction is of a picture of another size.
        ImportError: nltk is not installed.
    """
    truths = [truth for truth, _, _ in answers]
    captions = [caption_of(truth, prediction) for truth, _, prediction in answers]
    s = score(truths, captions)
    shares = (s.meteor, s.cider, s.ap50, s.miou, s.recall, s.recall_released)
    rows = [
        (name, None if math.isnan(share) else 100 * share)  # nothing was to be found
        for name, share in zip(MEASURES, shares, strict=True)
    ]
    judged = []
    for (truth, path, prediction), caption in zip(answers, captions, strict=True):
        miou = image_miou(rle.ious(truth.masks, caption.masks))
        judged.append(Judged(miou, f"mIoU {miou:.2f}; {truth.captions[0]}", prediction, path))
    settings = answers[0][2].settings if answers else {}
    return Report(
        title=f"Grounded captions: {len(answers)} pictures",
        settings={
            **settings,
            "METEOR": text_scores.meteor_used(),
            "CIDEr": text_scores.CIDER,
            "text similarity": text_scores.SIMILARITY_USED,
        },
        tables=(Table("Scores", ("measure", "value"), tuple(rows)),),
        notes=NOTES,
        worst=worst(judged),
    )
