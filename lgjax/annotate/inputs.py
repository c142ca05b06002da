"""What is annotated: pictures with their instances, and chats about them or captions to make chats of."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgjax.annotate.records import text_of
from lgjax.annotate.task import Instance, Task
from lgjax.annotate.writing import Chat, Scene, Style, caption_chat
from lgjax.data.masks import box_from_xywh
from lgjax.data.sources.common import Coco, plain_name, read_coco, read_records


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Items in the order of their file: chats, or scenes that a language model writes chats about.

    checksums: of the files that were read.
    """

    items: Sequence[Chat | Scene]
    coco: Coco
    checksums: tuple[str, ...] = ()

    def instances(self, image: str) -> tuple[Instance, ...]:
        """The instances of a picture; those without a box that lies in it are left out."""
        entry = self.coco.named.get(plain_name(image))
        if entry is None:
            return ()
        annotations = self.coco.annotations.get(entry["id"], [])
        found = (_instance(one, entry, self.coco.categories) for one in annotations)
        return tuple(one for one in found if one is not None)

    def task(self, chat: Chat, turn: int) -> Task:
        """One message of a chat, to be annotated."""
        return Task(text_of(chat["conversations"][turn]), self.instances(chat["image"]))


def read_inputs(
    instances: Path, chats: Path | None, captions: Path | None, style: Style | None = None
) -> Inputs:
    """Read a COCO file of instances, and either LLaVA-Instruct chats or COCO captions.

    Captions become chats as they are, one each; with a `style` the captions of a picture become one scene.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged or of another layout, both or none of chats and captions, or a picture
            of instances has no size.
    """
    if (chats is None) == (captions is None):
        raise ValueError("name either conversations (--chats) or captions (--captions)")
    if style is not None and captions is None:
        raise ValueError("conversations are written from captions: name them with --captions, not --chats")
    coco = read_coco(instances)
    if not coco.categories:
        raise ValueError(f"{instances} has no categories; is it a file of instances?")
    for entry in coco.images.values():
        if not all(
            isinstance(entry.get(side), int | float) and entry[side] > 0 for side in ("width", "height")
        ):
            raise ValueError(f"{instances}: image {entry['file_name']} has no width and height")
    if chats is not None:
        return Inputs(read_records(chats), coco, _checksums(instances, chats))
    assert captions is not None
    named = read_coco(captions)
    if wrong := [one["id"] for some in named.annotations.values() for one in some if not _has_caption(one)]:
        raise ValueError(f"{captions}: annotation {wrong[0]} has no text 'caption'")
    if stray := [i for i in named.annotations if i not in named.images]:
        raise ValueError(f"{captions}: a caption is about image {stray[0]}, which is not among its images")
    known = [(entry, named.annotations.get(i, [])) for i, entry in named.images.items()]
    inputs = Inputs((), coco, _checksums(instances, captions))
    if style is None:
        items: list[Chat | Scene] = [
            caption_chat(entry["file_name"], one["caption"], number)
            for entry, some in known
            for number, one in enumerate(some)
        ]
    else:
        items = [
            Scene(name := entry["file_name"], tuple(one["caption"] for one in some), inputs.instances(name))
            for entry, some in known
            if some
        ]
    return dataclasses.replace(inputs, items=items)


def _has_caption(annotation: Mapping[str, Any]) -> bool:
    return isinstance(annotation.get("caption"), str) and bool(annotation["caption"].strip())


def _instance(
    annotation: Mapping[str, Any], entry: Mapping[str, Any], categories: Mapping[Any, str]
) -> Instance | None:
    """An annotation with its box cut to the picture; None without a name or a box that has an area there."""
    category = categories.get(annotation.get("category_id"))
    try:
        corners = box_from_xywh(annotation.get("bbox") or ())
    except (TypeError, ValueError):
        return None
    sides = (entry["width"], entry["height"]) * 2
    box = tuple(min(max(v / side, 0.0), 1.0) for v, side in zip(corners, sides, strict=True))
    if not category or not (box[0] < box[2] and box[1] < box[3]):  # false for NaN too
        return None
    return Instance(annotation["id"], category, box, bool(annotation.get("iscrowd", 0)))


def _checksums(*paths: Path) -> tuple[str, ...]:
    sums = []
    for path in paths:
        with path.open("rb") as file:
            sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    return tuple(sums)
