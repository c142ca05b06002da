"""Visual-prompt chat: questions that point at instances with "<obj>".

    folder/
      annotations/ (or here)
        llava_instruct_150k_visual_prompt.json
        instances_train2014_filter.json   or instances_train2014.json, instances_train2017.json
      train2014/ (or train2017/, images/train2014/, images/, or here)
        COCO_train2014_000000000042.jpg   or 000000000042.jpg

Source: spec/training_and_data.md 5.4, spec/visual_prompts.md 7.1.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgjax.data.schema import Phrase, Record, Region, Source, Turn
from lgjax.data.sources.common import (
    Coco,
    Pictures,
    find_file,
    read_chat,
    read_coco,
    read_records,
    require,
    scene_of,
    without_overlaps,
)
from lgjax.text.conversation import VISUAL_PROMPT_MARK, VISUAL_PROMPT_TAG

_LONE_MARK = re.compile(rf"(?<!\S){VISUAL_PROMPT_MARK}(?!\S)")


def read(folder: Path) -> dict[str, Source]:
    """Read "chat" records, one a conversation, with all instances of the picture.

    What an "<obj>" points at is a region. A round whose region is not among the instances is dropped.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    file = find_file(folder, ["llava_instruct_150k_visual_prompt.json"], __doc__)
    names = ["instances_train2014_filter.json", "instances_train2014.json", "instances_train2017.json"]
    coco = read_coco(find_file(folder, names, __doc__))
    pictures = Pictures.below(folder, "train2014", "train2017")
    return {"train": Source(file, read_records(file), functools.partial(_make, coco, pictures))}


def with_tags(question: str, ids: Sequence[Any] | None) -> str:
    """The question with an "<obj>" for each of its ids; a lone "%" is read as one where it has ids.

    Raises:
        ValueError: their numbers differ.
    """
    if ids and VISUAL_PROMPT_TAG not in question:
        question = _LONE_MARK.sub(VISUAL_PROMPT_TAG, question)
    if (tags := question.count(VISUAL_PROMPT_TAG)) != len(ids or ()):
        raise ValueError(f"{tags} {VISUAL_PROMPT_TAG} but {len(ids or ())} ids in the question '{question}'")
    return question


def _make(coco: Coco, pictures: Pictures, item: Mapping[str, Any]) -> Record:
    chat = read_chat(item["conversations"])
    lists = item["q_gd_ls"]
    if 2 * len(lists) != len(chat.turns):
        raise ValueError(
            f"{len(chat.turns)} messages, but {len(lists)} entries in q_gd_ls; two to one expected"
        )
    image, size, things = scene_of(item["image"], coco, pictures)
    turns: list[Turn] = []
    regions: list[Region] = []
    phrases: list[Phrase] = []
    unknown: tuple[str, ...] = ()
    for number, ids in enumerate(lists):
        question, answer = chat.turns[2 * number : 2 * number + 2]
        text = with_tags(question.text, ids)
        _, missing = things.pick(ids or ())
        unknown += missing
        if missing:
            continue
        regions += [Region(len(turns), things.index[i]) for i in ids or ()]
        turns += [question._replace(text=text), answer]
        spans = (span for turn, span in chat.spans if turn == 2 * number + 1)
        phrases += [Phrase(turn=len(turns) - 1, span=span) for span in spans]
    require(turns, "round", things.dropped + unknown)
    kept, overlaps = without_overlaps(phrases)
    return Record(
        id=str(item["id"]),
        kind="chat",
        image=image,
        size=size,
        turns=tuple(turns),
        objects=things.objects,
        phrases=kept,
        regions=tuple(regions),
        dropped=things.dropped + unknown + overlaps,
    )
