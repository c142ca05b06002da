"""Conversations of LLaVA's layout: LLaVA-Instruct, the captions of CC3M-595K, or any file like them.

    folder/
      annotations/ (or here)
        llava_instruct_150k.json      or cap600k_brackets_all.json, chat.json, or `name`
      train2017/ (or images/train2017/, train2014/, images/, or here)
        000000000042.jpg              of CC3M: GCC_train_000000042.jpg

Source: spec/training_and_data.md 5.7.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgjax.data.images import image_size
from lgjax.data.schema import Phrase, Record, Source
from lgjax.data.sources.common import (
    Pictures,
    find_file,
    look_for,
    read_chat,
    read_records,
    without_overlaps,
)

NAMES = ("llava_instruct_150k.json", "cap600k_brackets_all.json", "chat.json")


def read(folder: Path, name: str | None = None) -> dict[str, Source]:
    """Read "chat" records without objects; one without an image is text only.

    Sizes are read from the pictures when the records are made.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or several are there and `name` is None.
    """
    present = [known for known in NAMES if look_for(folder, [known])]
    if name is None and len(present) > 1:
        raise ValueError(f"{folder} holds {' and '.join(present)}; say with `name` which one to read")
    file = find_file(folder, [name] if name else NAMES, __doc__)
    pictures = Pictures.below(folder, "train2017", "train2014")
    return {"train": Source(file, read_records(file), functools.partial(_make, pictures))}


def _make(pictures: Pictures, item: Mapping[str, Any]) -> Record:
    chat = read_chat(item["conversations"])
    image = pictures.path(item["image"]) if item.get("image") else None
    phrases, overlaps = without_overlaps(Phrase(turn=turn, span=span) for turn, span in chat.spans)
    return Record(
        id=str(item["id"]),
        kind="chat",
        image=image,
        size=image_size(image) if image else None,
        turns=chat.turns,
        phrases=phrases,
        dropped=overlaps,
    )
