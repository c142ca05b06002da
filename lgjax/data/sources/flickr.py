"""Flickr30k Entities as MDETR's converter writes it: one "image" a sentence, boxes with spans of its text.

    folder/
      annotations/ (or here)
        final_flickr_separateGT_train.json    also _val, _test
        flickr_masks.jsonl                    optional: {"id": annotation id, "segmentation": RLE} a line
      flickr30k-images/ (or images/, or here)
        1000092795.jpg

A sentence without any boxed phrase is no record: asking for it raises RecordError.
Source: spec/training_and_data.md 5.1, 6.2, 9.6, quirks Q19 and Q25.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgjax.data.schema import Phrase, Record, Source, Turn
from lgjax.data.sources.common import (
    Coco,
    Pictures,
    find_splits,
    look_for,
    read_coco,
    read_lines,
    size_of,
    things_of,
    without_overlaps,
)

BAD_SPAN = "span outside the caption"


def read(folder: Path) -> dict[str, Source]:
    """Read the splits that are there: "caption" records, one a sentence.

    A mask in `flickr_masks.jsonl` takes the place of the annotation's own `segmentation`.

    Raises:
        FileNotFoundError: there is no split.
        ValueError: a file is damaged.
    """
    names = {split: [f"final_flickr_separateGT_{split}.json"] for split in ("train", "val", "test")}
    files = find_splits(folder, names, __doc__)
    masks = _read_masks(look_for(folder, ["flickr_masks.jsonl"]))
    pictures = Pictures.below(folder, "flickr30k-images", "flickr30k_images")
    sources = {}
    for split, file in files.items():
        coco = read_coco(file)
        make = functools.partial(_make, coco, masks, pictures)
        sources[split] = Source(file, list(coco.images.values()), make)
    return sources


def _read_masks(path: Path | None) -> dict[Any, Any]:
    masks = {}
    for number, line in read_lines(path) if path else []:
        if missing := {"id", "segmentation"} - line.keys():
            raise ValueError(f"{path}: line {number} lacks '{min(missing)}'")
        masks[line["id"]] = line["segmentation"]
    return masks


def _make(coco: Coco, masks: Mapping[Any, Any], pictures: Pictures, sentence: Mapping[str, Any]) -> Record:
    annotations = coco.annotations.get(sentence["id"], [])
    masked = ({**a, "segmentation": masks.get(a["id"], a.get("segmentation"))} for a in annotations)
    things = things_of(masked, coco.categories)
    caption = sentence["caption"]
    named: dict[tuple[int, int], list[int]] = {}
    bad_spans = 0
    for annotation in annotations:
        for start, end in annotation["tokens_positive"]:
            if not 0 <= start < end <= len(caption):
                bad_spans += 1
            elif annotation["id"] in things.index:
                named.setdefault((start, end), []).append(things.index[annotation["id"]])
    if not named:
        raise ValueError("the sentence has no boxed phrase")
    all_phrases = (Phrase(turn=0, span=span, objects=tuple(who)) for span, who in named.items())
    phrases, overlaps = without_overlaps(all_phrases)
    path = pictures.path(sentence["file_name"])
    return Record(
        id=str(sentence["id"]),
        kind="caption",
        image=path,
        size=size_of(sentence, path),
        turns=(Turn("gpt", caption),),
        objects=things.objects,
        phrases=phrases,
        dropped=things.dropped + (BAD_SPAN,) * bad_spans + overlaps,
    )
