"""COCO instances: every category name in a picture is an expression for all its instances.

    folder/
      annotations/ (or here)
        instances_train2017.json      also val2017; 2014; or one other instances_train*.json
      train2017/ (or images/train2017/, images/, or here)
        000000000042.jpg

Source: spec/training_and_data.md 6.3.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lgjax.data.schema import Expression, Object, Record, Source
from lgjax.data.sources.common import CROWD, Coco, Pictures, find_splits, read_coco, size_of, things_of


def read(folder: Path) -> dict[str, Source]:
    """Read the splits that are there: "referring" records, one a picture; crowds are left out.

    A picture without instances is no record: asking for it raises RecordError.

    Raises:
        FileNotFoundError: there is no split.
        ValueError: a file is damaged, or several fit.
    """
    names = {
        split: [f"instances_{split}{end}.json" for end in ("2017", "2014", "*")] for split in ("train", "val")
    }
    sources = {}
    for split, file in find_splits(folder, names, __doc__).items():
        coco = read_coco(file)
        pictures = Pictures.below(folder, f"{split}2017", f"{split}2014")
        sources[split] = Source(file, list(coco.images.values()), functools.partial(_make, coco, pictures))
    return sources


def _make(coco: Coco, pictures: Pictures, entry: Mapping[str, Any]) -> Record:
    annotations = coco.annotations.get(entry["id"], [])
    single = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    things = things_of(single, coco.categories)
    crowds = (CROWD,) * (len(annotations) - len(single))
    path = pictures.path(entry["file_name"])
    return Record(
        id=str(entry["id"]),
        kind="referring",
        image=path,
        size=size_of(entry, path),
        objects=things.objects,
        expressions=expressions_by_name(things.objects),
        dropped=things.dropped + crowds,
    )


def expressions_by_name(objects: Iterable[Object]) -> tuple[Expression, ...]:
    """One expression for each class name, in order of appearance, for all objects of that name.

    Raises:
        ValueError: there is no object with a name.
    """
    named: dict[str, list[int]] = {}
    for index, thing in enumerate(objects):
        if thing.name:
            named.setdefault(thing.name, []).append(index)
    if not named:
        raise ValueError("no instance with a class name in the picture")
    return tuple(Expression(texts=(name,), objects=tuple(who)) for name, who in named.items())
