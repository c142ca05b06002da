"""COCO panoptic: every class name in a picture is an expression for all its segments.

    folder/
      annotations/ (or here)
        panoptic_train2017.json       also _filter.json; val2017; or one other panoptic_train*.json
        panoptic_train2017/           (or beside annotations/) the maps: segment id = R + 256 G + 65536 B
          000000000042.png
        grounding_train2017.json      optional: the referring set of stage 1
      train2017/ (or images/train2017/, images/, or here)
        000000000042.jpg

With the referring set, its pictures get their referring expressions instead of class names.
Source: spec/training_and_data.md 5.2, 6.3.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from lgjax.data.images import ImageSize, load_image
from lgjax.data.masks import box_of, encode
from lgjax.data.schema import Object, Record, Source, read_json
from lgjax.data.sources import refcoco
from lgjax.data.sources.coco import expressions_by_name
from lgjax.data.sources.common import CROWD, Pictures, find_splits, look_for, size_of

EMPTY_SEGMENT = "segment without pixels"
_SUFFIX = re.compile(r"(?:-(?:other|merged|stuff))+$")


class _Panoptic(NamedTuple):
    segments: dict[Any, dict[str, Any]]
    names: dict[Any, str]
    maps: Pictures


def read(folder: Path) -> dict[str, Source]:
    """Read the splits that are there: "referring" records, one a picture; crowds are left out.

    The map of a picture is opened when its record is made. Pictures of the referring set that belong to a
    validation or test split of RefCOCO, RefCOCO+ or RefCOCOg are left out of "train".

    Raises:
        FileNotFoundError: there is no split.
        ValueError: a file is damaged, or several fit.
    """
    ends = ("2017_filter", "2017", "*")
    names = {split: [f"panoptic_{split}{end}.json" for end in ends] for split in ("train", "val")}
    merged = look_for(folder, [refcoco.MERGED])
    sources = {}
    for split, file in find_splits(folder, names, __doc__).items():
        data = read_json(file)
        try:
            segments = {annotation["image_id"]: annotation for annotation in data["annotations"]}
            classes = {c["id"]: _SUFFIX.sub("", c["name"]) for c in data["categories"]}
            images = [image for image in data["images"] if isinstance(image["id"], int | str)]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} is not of COCO's panoptic layout: {error!r}") from error
        stem = file.stem.removesuffix("_filter")
        maps = Pictures.below(folder, f"annotations/{stem}", stem)
        panoptic = _Panoptic(segments, classes, maps)
        pictures = Pictures.below(folder, f"{split}2017", f"{split}2014")
        referring = refcoco.read_merged(merged, folder) if merged and split == "train" else None
        if referring:
            images = [image for image in images if image["id"] not in referring.held_out]
        make = functools.partial(_make, panoptic, referring, pictures)
        sources[split] = Source(file, images, make)
    return sources


def _make(
    panoptic: _Panoptic, referring: refcoco.Referring | None, pictures: Pictures, entry: Mapping[str, Any]
) -> Record:
    if referring and entry["id"] in referring.sentences:
        return refcoco.make_record(referring, pictures, entry)
    path = pictures.path(entry["file_name"])
    size = size_of(entry, path)
    if entry["id"] not in panoptic.segments:
        raise ValueError("the picture has no panoptic annotation")
    annotation = panoptic.segments[entry["id"]]
    ids = _segment_ids(panoptic.maps.path(annotation["file_name"]), size)
    objects: list[Object] = []
    dropped: list[str] = []
    for segment in annotation["segments_info"]:
        mask = ids == segment["id"]
        if segment.get("iscrowd", 0):
            dropped.append(CROWD)
        elif not mask.any():
            dropped.append(EMPTY_SEGMENT)
        else:
            x0, y0, x1, y1 = box_of(mask).tolist()
            name = panoptic.names.get(segment["category_id"], "")
            objects.append(Object(box=(x0, y0, x1, y1), mask=encode(mask), name=name, id=segment["id"]))
    return Record(
        id=str(entry["id"]),
        kind="referring",
        image=path,
        size=size,
        objects=tuple(objects),
        expressions=expressions_by_name(objects),
        dropped=tuple(dropped),
    )


def _segment_ids(path: Path, size: ImageSize) -> Int64[np.ndarray, "height width"]:
    picture = load_image(path)
    if picture.size != size:
        raise ValueError(f"panoptic map '{path}' has size {picture.size}, its picture {size}")
    colours = np.asarray(picture, np.int64)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
