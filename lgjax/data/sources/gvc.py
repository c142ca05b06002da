"""Grounded visual chat: conversations whose answers have grounding tokens, with COCO instances behind them.

    folder/
      annotations/ (or here)
        grounded_visual_chat_data.json
        instances_train2017_gvc.json      or instances_train2014.json, instances_train2017.json
      train2014/ (or train2017/, images/train2014/, images/, or here)
        COCO_train2014_000000000042.jpg   or 000000000042.jpg

Source: spec/training_and_data.md 5.3, 6.4, 9.3, quirks Q7 and Q15.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgjax.data.schema import Phrase, Record, Source
from lgjax.data.sources.common import (
    Coco,
    Pictures,
    find_file,
    read_chat,
    read_coco,
    read_records,
    scene_of,
    without_overlaps,
)


def read(folder: Path) -> dict[str, Source]:
    """Read "chat" records, one a conversation, with all instances of the picture, crowds included.

    The k-th <seg> of a conversation takes entry k of `q_gd_ls`, or of `gd_ls` where that is missing; null
    gives a phrase without objects.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    file = find_file(folder, ["grounded_visual_chat_data.json"], __doc__)
    names = ["instances_train2017_gvc.json", "instances_train2014.json", "instances_train2017.json"]
    coco = read_coco(find_file(folder, names, __doc__))
    pictures = Pictures.below(folder, "train2014", "train2017")
    return {"train": Source(file, read_records(file), functools.partial(make, coco, pictures))}


def make(coco: Coco, pictures: Pictures, item: Mapping[str, Any]) -> Record:
    """The record of one conversation.

    Raises:
        KeyError, TypeError, ValueError: it is damaged, or has another number of <seg> than of id lists.
    """
    chat = read_chat(item["conversations"])
    key = "q_gd_ls" if "q_gd_ls" in item else "gd_ls"
    grounded = item.get(key)
    lists = [None] * len(chat.spans) if grounded is None else grounded
    if len(lists) != len(chat.spans):
        raise ValueError(f"{len(chat.spans)} <seg> in the answers, but {len(lists)} entries in {key}")
    image, size, things = scene_of(item["image"], coco, pictures)
    named: list[Phrase] = []
    unknown: tuple[str, ...] = ()
    for (turn, span), ids in zip(chat.spans, lists, strict=True):
        who, missing = things.pick(ids or ())
        unknown += missing
        named.append(Phrase(turn=turn, span=span, objects=who))
    phrases, overlaps = without_overlaps(named)
    return Record(
        id=str(item["id"]),
        kind="chat",
        image=image,
        size=size,
        turns=chat.turns,
        objects=things.objects,
        phrases=phrases,
        dropped=things.dropped + unknown + overlaps,
    )
