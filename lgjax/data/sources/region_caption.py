"""Region captions of RefCOCO: what is said of an instance answers a question that points at it.

    folder/
      annotations/ (or here)
        grounding_train2017_instruct.json  and  instances_train2017_refcoco.json
        or grounding_train2017.json        and  instances_train2017.json
      train2017/ (or train2014/, images/train2017/, images/, or here)
        000000000042.jpg

The first pair was never released; `build` writes it, and without it the records are made of the second pair.
Source: spec/training_and_data.md 5.5, spec/visual_prompts.md 7.1.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgjax.data.questions import REGION
from lgjax.data.schema import Expression, Record, Source
from lgjax.data.sources import refcoco
from lgjax.data.sources.common import (
    Coco,
    Pictures,
    Scene,
    find_file,
    look_for,
    plain_name,
    read_coco,
    read_records,
    require,
    scene_of,
)
from lgjax.data.sources.visual_prompt import with_tags
from lgjax.text.conversation import VISUAL_PROMPT_MARK, VISUAL_PROMPT_TAG

INSTRUCT = "grounding_train2017_instruct.json"
INSTANCES = "instances_train2017_refcoco.json"
NO_REGION = "question that points at nothing"


def read(folder: Path) -> dict[str, Source]:
    """Read "region" records, one a picture, with all its instances and one expression a described instance.

    Expressions have a question only where the file has one.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    pictures = Pictures.below(folder, "train2017", "train2014")
    names = [INSTANCES, "instances_train2017.json", "instances_train2014.json"]
    if file := look_for(folder, [INSTRUCT]):
        coco = read_coco(find_file(folder, names, __doc__))
        by_picture: dict[str, dict[str, Any]] = {}
        for index, item in enumerate(read_records(file)):
            if not isinstance(item, dict) or not isinstance(item.get("image"), str):
                raise ValueError(f"{file}: record {index} has no 'image'")
            first = {"id": item.get("id", item["image"]), "image": item["image"], "chats": []}
            by_picture.setdefault(plain_name(item["image"]), first)["chats"].append(item)
        make = functools.partial(_from_chats, coco, pictures)
        return {"train": Source(file, list(by_picture.values()), make)}
    file = find_file(folder, [INSTRUCT, refcoco.MERGED], __doc__)
    referring = refcoco.read_merged(file, folder)
    coco = read_coco(find_file(folder, names, __doc__))
    images = [referring.coco.images.get(image, {"id": image}) for image in referring.sentences]
    return {"train": Source(file, images, functools.partial(_from_sentences, referring, coco, pictures))}


def _from_sentences(
    referring: refcoco.Referring, coco: Coco, pictures: Pictures, entry: Mapping[str, Any]
) -> Record:
    scene = scene_of(entry["file_name"], coco, pictures)
    expressions, dropped = refcoco.expressions_of(referring.sentences[entry["id"]], scene.things)
    return _record(entry["id"], scene, expressions, dropped)


def _from_chats(coco: Coco, pictures: Pictures, item: Mapping[str, Any]) -> Record:
    scene = scene_of(item["image"], coco, pictures)
    expressions: list[Expression] = []
    dropped: tuple[str, ...] = ()
    for chat in item["chats"]:
        messages = [message["value"] for message in chat["conversations"]]
        for question, answers, ids in zip(messages[::2], messages[1::2], chat["q_gd_ls"], strict=True):
            if ids is None:
                dropped += (NO_REGION,)
                continue
            who, missing = scene.things.pick(ids)
            dropped += missing
            texts = tuple(t for t in ([answers] if isinstance(answers, str) else answers) if t.strip())
            if missing or not texts:
                dropped += () if texts else (refcoco.NO_TEXT,)
                continue
            question = with_tags(question.replace("<image>", "").strip(), ids)
            expressions.append(Expression(texts=texts, objects=who, question=question))
    return _record(item["id"], scene, tuple(expressions), dropped)


def _record(name: Any, scene: Scene, expressions: tuple[Expression, ...], dropped: tuple[str, ...]) -> Record:
    require(expressions, "expression", scene.things.dropped + dropped)
    return Record(
        id=str(name),
        kind="region",
        image=scene.image,
        size=scene.size,
        objects=scene.things.objects,
        expressions=expressions,
        dropped=scene.things.dropped + dropped,
    )


def build(grounding: Path, instances: Path, out: Path) -> None:
    """Write the two files of region captions, in the layout of the original, into the folder `out`.

    grounding: the merged referring file; pictures of other splits, which the file itself or a refs(*).p
    below its folder names, are left out. instances: those of train2017. The questions of `REGION` are taken
    in turn. Every file is there whole or not at all.
    Source: spec/training_and_data.md 5.5.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or no sentence is about an instance.
    """
    referring = refcoco.read_merged(grounding, grounding.parent)
    coco = read_coco(instances)
    records: list[dict[str, Any]] = []
    used: dict[Any, None] = {}
    for image, sentences in referring.sentences.items():
        known = {annotation["id"] for annotation in coco.annotations.get(image, [])}
        for instance, said in sentences.items():
            texts = [sentence["raw"] for sentence in said if sentence["raw"].strip()]
            if instance not in known or image not in coco.images or not texts:
                continue
            question = REGION[len(records) % len(REGION)]
            name = coco.images[image]["file_name"]
            messages = (
                ("human", question.replace(VISUAL_PROMPT_TAG, VISUAL_PROMPT_MARK)),
                ("gpt", texts),
            )
            records.append(
                {
                    "id": Path(plain_name(name)).stem,
                    "image": name,
                    "conversations": [{"from": speaker, "value": value} for speaker, value in messages],
                    "q_gd_ls": [[instance]],
                }
            )
            used[image] = None
    if not records:
        raise ValueError(f"no sentence of {grounding} is about an instance of {instances}")
    data = {
        "images": [coco.images[image] for image in used],
        "annotations": [annotation for image in used for annotation in coco.annotations[image]],
        "categories": [{"id": number, "name": name} for number, name in coco.categories.items()],
    }
    _write(out / INSTANCES, data)
    _write(out / INSTRUCT, records)


def _write(path: Path, data: Any) -> None:
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(data))
    os.replace(part, path)
