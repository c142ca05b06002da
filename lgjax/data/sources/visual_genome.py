"""Visual Genome: a picture's regions, each a box and what is said of it.

    folder/
      annotations/ (or here)
        train.json                    also val.json, test.json
      VG_100K/ and VG_100K_2/ (or images/VG_100K/ ..., images/, or here)
        5.jpg

Source: spec/training_and_data.md 5.6.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgjax.data.schema import Expression, Record, Source
from lgjax.data.sources.common import Coco, Pictures, find_splits, read_coco, size_of, things_of
from lgjax.data.sources.refcoco import NO_TEXT


def read(folder: Path) -> dict[str, Source]:
    """Read the splits that are there: "referring" records, one a picture, with one expression a region.

    Raises:
        FileNotFoundError: there is no split.
        ValueError: a file is damaged.
    """
    names = {split: [f"{split}.json"] for split in ("train", "val", "test")}
    pictures = Pictures.below(folder, "VG_100K", "VG_100K_2")
    sources = {}
    for split, file in find_splits(folder, names, __doc__).items():
        coco = read_coco(file)
        sources[split] = Source(file, list(coco.images.values()), functools.partial(_make, coco, pictures))
    return sources


def _make(coco: Coco, pictures: Pictures, entry: Mapping[str, Any]) -> Record:
    annotations = coco.annotations.get(entry["id"], [])
    said = [annotation for annotation in annotations if annotation["caption"].strip()]
    # the category of all regions is the same and means nothing
    things = things_of(said, {})
    captions = {annotation["id"]: annotation["caption"] for annotation in said}
    path = pictures.path(entry["file_name"])
    return Record(
        id=str(entry["id"]),
        kind="referring",
        image=path,
        size=size_of(entry, path),
        objects=things.objects,
        expressions=tuple(
            Expression(texts=(captions[thing.id],), objects=(index,))
            for index, thing in enumerate(things.objects)
        ),
        dropped=things.dropped + (NO_TEXT,) * (len(annotations) - len(said)),
    )
