"""`lgjax eval flickr`: phrase grounding on Flickr30k Entities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from lgjax.eval.running import NOTHING_CHOSEN, Shared


def flickr(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    /,
    running: Shared = NOTHING_CHOSEN,
    *,
    split: str = "test",
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    keep: int = 10,
) -> None:
    """Measure recall of phrase grounding: the captions of a picture are given, their phrases are to be found.

    Args:
        folder: Folder of Flickr30k Entities: Sentences, Annotations and test.txt.
        running: Where predictions come from.
        split: train, val or test: the list of pictures to take.
        images: Folder with the pictures.
        keep: Boxes that are kept of each phrase, best first; recall@k needs k of them.
    """
    from lgjax.data.sources.common import Pictures
    from lgjax.eval.flickr import read_items
    from lgjax.eval.flickr_report import questions_of, report_of
    from lgjax.eval.report import finish
    from lgjax.eval.run import predictions_for

    items = read_items(folder, split)
    pictures = Pictures.below(images or folder, "flickr30k-images", "flickr30k_images")
    found = predictions_for(running, questions_of(items, pictures), threshold=0.0, keep=keep)
    if found is not None:
        by_id = {item.id: item for item in items}
        finish(report_of([(by_id[str(q.id)], q.path, p) for q, p in found], split), running.out)
