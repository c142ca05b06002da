"""Your own data: annotations in COCO's layout, and what is said about the pictures, one JSON object a line.

    folder/
      instances.json                the objects
      records.jsonl                 what is said: the split "train"; records_val.jsonl is "val", and so on
      images/ (or here)
        a.jpg

`instances.json` is a file as annotation tools export it for COCO. Pixels are counted from the top left
corner; `bbox` is x, y, width, height; `segmentation` (polygons or a run-length code) may be missing, then
only the box is learnt; `width` and `height` may be missing, then the picture is asked:
`{"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],`
` "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [10, 20, 200, 150],`
`                  "segmentation": [[10, 20, 210, 20, 210, 170]]}],`
` "categories": [{"id": 1, "name": "cat"}]}`

A line of `records.jsonl` is a chat or a list of expressions; `id` (for messages) is optional in both.

1. A chat. `turns` are question, answer, question, answer ... In an answer `<g_s> a cat <g_e> <seg>` marks a
   phrase; `objects` then has one entry for each <seg> of all answers in order: a list of annotation ids, or
   null where the phrase is marked but has no object. In a question `<obj>` points at an object; `regions`
   then has one annotation id for each <obj> of all questions in order. Without `image` it is text only:
   `{"image": "a.jpg", "turns": ["What is on <obj> ?", "<g_s> A cat <g_e> <seg> sleeps."],`
   ` "objects": [[7]], "regions": [8]}`
2. Expressions. Each names the same `objects` in one or several `texts`; training asks where they are:
   `{"image": "a.jpg", "expressions": [{"texts": ["left cat", "the sleeping cat"], "objects": [7]}]}`

A line that is no JSON stops the reading; any other fault is a RecordError that names the line.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgjax.data.schema import Expression, Phrase, Record, RecordError, Region, Source, check, read_json
from lgjax.data.sources.common import (
    Coco,
    Pictures,
    Things,
    find_file,
    plain_name,
    read_chat,
    read_coco,
    read_lines,
    scene_of,
)
from lgjax.text.conversation import SPEAKERS, VISUAL_PROMPT_TAG

_CHAT = ("id", "image", "turns", "objects", "regions")
_REFERRING = ("id", "image", "expressions")
_EXPRESSION = ("texts", "objects")
_TOKENS = re.compile("<g_s>|<g_e>|<seg>")
_WELL_MARKED = re.compile("((<g_s><g_e>)?<seg>)*")


def read(folder: Path) -> dict[str, Source]:
    """Read all records*.jsonl: "chat" and "referring" records.

    Raises:
        FileNotFoundError: `instances.json` or every records*.jsonl is missing.
        ValueError: a file is damaged, or two have the same split.
    """
    instances = find_file(folder, ["instances.json"], __doc__)
    files = sorted(folder.glob("records*.jsonl")) or [find_file(folder, ["records.jsonl"], __doc__)]
    coco, pictures = read_coco(instances), Pictures.below(folder)
    _check_unique(instances, coco)
    sources: dict[str, Source] = {}
    for file in files:
        split = file.stem.removeprefix("records").strip("_-") or "train"
        if split in sources:
            raise ValueError(f"{file} and {sources[split].file} are both the split '{split}'; join them")
        sources[split] = Source(file, read_lines(file), functools.partial(_make, file, coco, pictures))
    return sources


def _check_unique(file: Path, coco: Coco) -> None:
    """Ids and names that occur twice would tie phrases to the wrong objects.

    An empty `segmentation`, as tools write it for boxes, becomes none.
    """
    entries = {
        "image id": [i["id"] for i in read_json(file)["images"]],
        "file_name": [i["file_name"] for i in coco.images.values()],
        "annotation id": [a["id"] for some in coco.annotations.values() for a in some],
    }
    for what, names in entries.items():
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{file}: {what} {twice[0]!r} occurs twice")
    for annotation in (a for some in coco.annotations.values() for a in some):
        if annotation.get("segmentation") == []:
            del annotation["segmentation"]


def _make(file: Path, coco: Coco, pictures: Pictures, item: tuple[int, Mapping[str, Any]]) -> Record:
    number, line = item
    try:
        record = _record(line, f"line {number}", coco, pictures)
        check(record)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise RecordError(f"{file}: line {number}: {error}") from error
    return record


def _record(line: Mapping[str, Any], default_id: str, coco: Coco, pictures: Pictures) -> Record:
    if ("turns" in line) == ("expressions" in line):
        raise ValueError("a line has either 'turns' (a chat) or 'expressions'")
    _check_fields(line, _CHAT if "turns" in line else _REFERRING, "the line")
    scene = None
    if name := line.get("image"):
        scene = scene_of(_text(name, "image"), coco, pictures)
        if not scene.image.is_file():
            raise ValueError(f"picture '{scene.image}' is not there")
    elif "expressions" in line:
        raise ValueError("expressions need an 'image'")
    things = scene.things if scene else Things()
    listed = name and plain_name(name) in coco.named
    where = f"'{name}'{'' if listed else ' (which is not listed)'}" if name else "a line without image"
    record = _chat(line, things, where) if "turns" in line else _referring(line, things, where)
    return Record(
        id=str(line.get("id", default_id)),
        image=scene.image if scene else None,
        size=scene.size if scene else None,
        objects=things.objects,
        dropped=things.dropped,
        **record,
    )


def _chat(line: Mapping[str, Any], things: Things, where: str) -> dict[str, Any]:
    texts = [_text(text, "a turn") for text in _list(line["turns"], "turns")]
    if not texts or len(texts) % 2:
        raise ValueError(f"turns must be question, answer, question, answer ..., found {len(texts)}")
    for index, text in enumerate(texts):
        _check_tokens(text, index)
    chat = read_chat([{"from": SPEAKERS[i % 2], "value": text} for i, text in enumerate(texts)])
    tags = [i for i, text in enumerate(texts) for _ in range(text.count(VISUAL_PROMPT_TAG))]
    objects = _per_token(line, "objects", "<seg>", len(chat.spans), "a list of annotation ids or null")
    regions = _per_token(line, "regions", VISUAL_PROMPT_TAG, len(tags), "an annotation id")
    phrases = [
        Phrase(turn=turn, span=span, objects=_known([] if ids is None else ids, things, where))
        for (turn, span), ids in zip(chat.spans, objects, strict=True)
    ]
    return {
        "kind": "chat",
        "turns": chat.turns,
        "phrases": tuple(phrases),
        "regions": tuple(
            Region(turn, _known([i], things, where)[0]) for turn, i in zip(tags, regions, strict=True)
        ),
    }


def _referring(line: Mapping[str, Any], things: Things, where: str) -> dict[str, Any]:
    expressions = []
    for index, item in enumerate(_list(line["expressions"], "expressions")):
        _check_fields(item, _EXPRESSION, f"expression {index}")
        if missing := set(_EXPRESSION) - item.keys():
            raise ValueError(f"expression {index} lacks '{min(missing)}'")
        texts = tuple(_text(text, "a text") for text in _list(item["texts"], "texts"))
        expressions.append(Expression(texts=texts, objects=_known(item["objects"], things, where)))
    return {"kind": "referring", "expressions": tuple(expressions)}


def _check_fields(item: Any, fields: Sequence[str], what: str) -> None:
    if not isinstance(item, dict):
        raise ValueError(f"{what} must be an object, found {type(item).__name__}")
    if unknown := item.keys() - set(fields):
        raise ValueError(f"{what} has unknown field '{min(unknown)}'; expected {', '.join(fields)}")


def _check_tokens(text: str, index: int) -> None:
    tokens = "".join(_TOKENS.findall(text))
    if index % 2 and not _WELL_MARKED.fullmatch(tokens):
        raise ValueError(f"turn {index} has {tokens}; each phrase is <g_s> phrase <g_e> <seg>")
    if not index % 2 and tokens:
        raise ValueError(f"turn {index} is a question and cannot have {tokens}")
    if index % 2 and VISUAL_PROMPT_TAG in text:
        raise ValueError(f"turn {index} is an answer and cannot have {VISUAL_PROMPT_TAG}")


def _per_token(line: Mapping[str, Any], field: str, token: str, count: int, entry: str) -> list[Any]:
    entries = _list(line.get(field, []), field)
    if len(entries) != count:
        raise ValueError(
            f"{count} {token}, but {len(entries)} entries in '{field}'; each {token} needs {entry}"
        )
    return entries


def _known(ids: Any, things: Things, where: str) -> tuple[int, ...]:
    for i in _list(ids, "objects"):
        if not isinstance(i, int | str) or i not in things.index:
            known = ", ".join(map(repr, things.index)) or "none"
            unusable = f" ({', '.join(sorted(set(things.dropped)))})" if things.dropped else ""
            raise ValueError(
                f"annotation id {i!r} is not among those of {where} in instances.json: {known}{unusable}"
            )
    return things.pick(ids)[0]


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, found {type(value).__name__}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be a text that is not blank, found {value!r}")
    return value
