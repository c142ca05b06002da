"""What the readers share: finding files and pictures, annotations by picture, objects, turns and phrases.

Source: spec/training_and_data.md 5, 6.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lgjax.data.images import ImageSize, image_size
from lgjax.data.masks import box_from_xywh
from lgjax.data.schema import Box, Object, Phrase, Turn, read_json
from lgjax.text.markup import parse_text
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER

UNKNOWN_ID = "annotation id not among the instances of the image"
BAD_BOX = "annotation without a box of four numbers"
OVERLAP = "phrase that overlaps a longer one"
CROWD = "crowd"
_YEAR_PREFIX = re.compile(r"COCO_(?:train|val)2014_(?=\d+\.)")


def look_for(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the file that fits the first of `names` (patterns of `Path.glob`), or None.

    It may lie in `folder` or in its folder `annotations`.

    Raises:
        ValueError: several files of one place fit a name.
    """
    for name in names:
        for place in _places(folder):
            found = sorted(path for path in place.glob(name) if path.is_file())
            if len(found) > 1:
                files = ", ".join(path.name for path in found)
                raise ValueError(f"several files in {place} fit '{name}': {files}; leave one of them there")
            if found:
                return found[0]
    return None


def find_file(folder: Path, names: Sequence[str], doc: str | None) -> Path:
    """Return what `look_for` finds; `doc`, the reader's docstring, shows the layout in indented lines.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `look_for`.
    """
    return find_splits(folder, {"": names}, doc)[""]


def find_splits(folder: Path, names: Mapping[str, Sequence[str]], doc: str | None) -> dict[str, Path]:
    """Return the files of those splits that are there, at least one; `names` are those of each split.

    Raises:
        FileNotFoundError: there is none.
        ValueError: see `look_for`.
    """
    found = {split: path for split, some in names.items() if (path := look_for(folder, some))}
    if not found:
        tree = "\n".join(line for line in (doc or "").splitlines() if line.startswith("    "))
        wanted = " or ".join(name for some in names.values() for name in some)
        places = " or ".join(map(str, _places(folder)))
        missing = "" if folder.is_dir() else " (there is no such folder)"
        raise FileNotFoundError(f"no {wanted} in {places}{missing}; expected layout:\n{tree}")
    return found


def _places(folder: Path) -> tuple[Path, Path]:
    return folder / "annotations", folder


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The folders in which the pictures of a dataset may lie, best first."""

    folders: tuple[Path, ...]

    @classmethod
    def below(cls, folder: Path, *names: str) -> Pictures:
        """Look in the folders `names` below `folder` or its folder `images`, in `images`, and in `folder`."""
        named = [place / name for name in names for place in (folder, folder / "images")]
        return cls((*(p for p in (*named, folder / "images") if p.is_dir()), folder))

    def path(self, name: str) -> Path:
        """The path of the picture `name`, with or without COCO's prefix of 2014; a missing one is not tested.

        Where there is none, it is the path that would have come first.
        """
        plain = plain_name(name)
        spellings = [name]
        if (number := Path(plain).stem).isdigit() and len(number) == 12:
            prefixed = (f"COCO_{split}2014_{Path(plain).name}" for split in ("train", "val"))
            spellings += [plain, *(str(Path(plain).with_name(p)) for p in prefixed)]
        paths = (folder / spelling for folder in self.folders for spelling in dict.fromkeys(spellings))
        return next((path for path in paths if path.is_file()), self.folders[0] / name)


def plain_name(name: str) -> str:
    """The name of a COCO picture without the prefix it had in 2014."""
    return _YEAR_PREFIX.sub("", name)


@dataclasses.dataclass(frozen=True)
class Coco:
    """A file of COCO's layout: pictures by id, their annotations in the order of the file, category names."""

    images: dict[Any, dict[str, Any]]
    annotations: dict[Any, list[dict[str, Any]]]
    categories: dict[Any, str]

    @functools.cached_property
    def named(self) -> dict[str, dict[str, Any]]:
        """Pictures by their plain name."""
        return {plain_name(entry["file_name"]): entry for entry in self.images.values()}


def read_coco(path: Path) -> Coco:
    """Read a file of COCO's layout; categories may be missing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON, or of another layout.
    """
    data = read_json(path)
    for field in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(field), list):
            raise ValueError(f"{path} has no list '{field}'; expected COCO's layout")
    annotations: dict[Any, list[dict[str, Any]]] = {}
    for annotation in _with_fields(path, data["annotations"], "annotation", ("id", "image_id")):
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    images = _with_fields(path, data["images"], "image", ("id", "file_name"))
    categories = _with_fields(path, data.get("categories", []), "category", ("id", "name"))
    return Coco({i["id"]: i for i in images}, annotations, {c["id"]: c["name"] for c in categories})


def _with_fields(path: Path, items: list[Any], kind: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    for index, item in enumerate(items):
        if not has_fields(item, fields):
            raise ValueError(f"{path}: {kind} {index} must be an object with {' and '.join(fields)}")
    return items


def has_fields(item: Any, fields: Iterable[str]) -> bool:
    """Whether it is a dictionary with a number or a text in each of `fields`."""
    return isinstance(item, dict) and all(isinstance(item.get(field), int | str) for field in fields)


def read_records(path: Path) -> list[Any]:
    """Read a JSON file that is one list.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON, or no list.
    """
    data = read_json(path)
    if not isinstance(data, list):
        raise ValueError(f"{path} must be a list of records, found {type(data).__name__}")
    return data


def read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read a JSONL file: its objects with their line numbers, from 1; blank lines are left out.

    Raises:
        ValueError: a line that is no JSON object.
    """
    out = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is no JSON in UTF-8: {error}") from error
            if not isinstance(item, dict):
                raise ValueError(f"{path}: line {number} must be an object, found {type(item).__name__}")
            out.append((number, item))
    return out


class Things(NamedTuple):
    """Objects of a picture, the index of each by its annotation id, and why others were dropped."""

    objects: tuple[Object, ...] = ()
    index: Mapping[Any, int] = {}
    dropped: tuple[str, ...] = ()

    def pick(self, ids: Iterable[Any]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The objects with these annotation ids, each once, and a reason for each id that is unknown."""
        ids = list(dict.fromkeys(ids))
        known = tuple(self.index[i] for i in ids if i in self.index)
        return known, (UNKNOWN_ID,) * (len(ids) - len(known))


def things_of(annotations: Iterable[Mapping[str, Any]], categories: Mapping[Any, str]) -> Things:
    """Make objects of COCO annotations; those without a usable `bbox` are dropped, crowds are marked."""
    objects: list[Object] = []
    dropped: list[str] = []
    for annotation in annotations:
        if (box := _box_of(annotation)) is None:
            dropped.append(BAD_BOX)
            continue
        objects.append(
            Object(
                box=box,
                mask=annotation.get("segmentation"),
                name=categories.get(annotation.get("category_id"), ""),
                crowd=bool(annotation.get("iscrowd", 0)),
                id=annotation["id"],
            )
        )
    return Things(tuple(objects), {thing.id: i for i, thing in enumerate(objects)}, tuple(dropped))


def _box_of(annotation: Mapping[str, Any]) -> Box | None:
    try:
        box = box_from_xywh(annotation.get("bbox") or ())
    except (TypeError, ValueError):
        return None
    return box if all(map(math.isfinite, box)) else None


def require(left: Sequence[Any], what: str, dropped: Iterable[str]) -> None:
    """Refuse a record that has nothing left.

    Raises:
        ValueError: `left` is empty; with the reasons in `dropped`.
    """
    if not left:
        raise ValueError(f"no {what} is left: {', '.join(sorted(set(dropped))) or 'there was none'}")


def size_of(entry: Mapping[str, Any], path: Path) -> ImageSize:
    """The size of a picture as its annotation file states it, or else as the file at `path` does.

    Raises:
        FileNotFoundError, ValueError: see `image_size`.
    """
    if "width" in entry and "height" in entry:
        width, height = entry["width"], entry["height"]
        if not all(isinstance(side, int | float) and side == side // 1 for side in (width, height)):
            raise ValueError(f"width {width!r} and height {height!r} of '{path.name}' must be whole numbers")
        return int(width), int(height)
    return image_size(path)


class Scene(NamedTuple):
    """A picture with all its annotated objects."""

    image: Path
    size: ImageSize
    things: Things


def scene_of(name: str, coco: Coco, pictures: Pictures) -> Scene:
    """Find the picture `name`; one that is not in the annotation file has no objects.

    Raises:
        FileNotFoundError, ValueError: see `image_size`.
    """
    entry = coco.named.get(plain_name(name), {})
    path = pictures.path(entry.get("file_name", name))
    annotations = coco.annotations.get(entry["id"], []) if entry else []
    return Scene(path, size_of(entry, path), things_of(annotations, coco.categories))


class Chat(NamedTuple):
    """Turns without tokens, and for each <seg> of the answers its turn and span, in order."""

    turns: tuple[Turn, ...]
    spans: tuple[tuple[int, tuple[int, int]], ...]


def read_chat(conversation: Sequence[Mapping[str, Any]]) -> Chat:
    """Read a conversation of LLaVA's layout, {"from", "value"} each; a first message of "gpt" is dropped.

    Source: spec/training_and_data.md 5.3, spec/language_model.md 7.2.
    """
    started = conversation[1:] if conversation and conversation[0]["from"] == "gpt" else conversation
    turns: list[Turn] = []
    spans: list[tuple[int, tuple[int, int]]] = []
    for number, message in enumerate(started):
        text = message["value"]
        if IMAGE_PLACEHOLDER in text:
            text = text.replace(IMAGE_PLACEHOLDER, "").strip()
        markup = parse_text(text)
        turns.append(Turn(message["from"], markup.text))
        if message["from"] == "gpt":
            spans += [(number, (phrase.start, phrase.end)) for phrase in markup.phrases]
    return Chat(tuple(turns), tuple(spans))


def without_overlaps(phrases: Iterable[Phrase]) -> tuple[tuple[Phrase, ...], tuple[str, ...]]:
    """Sort phrases into reading order; of two that overlap the longer stays, the other gives a reason."""
    kept: list[Phrase] = []
    dropped: list[str] = []
    for phrase in sorted(phrases, key=lambda p: p.span[0] - p.span[1]):
        if any(_overlap(phrase, other) for other in kept):
            dropped.append(OVERLAP)
        else:
            kept.append(phrase)
    return tuple(sorted(kept, key=lambda p: (p.turn, p.span))), tuple(dropped)


def _overlap(a: Phrase, b: Phrase) -> bool:
    return a.turn == b.turn and a.span[0] < b.span[1] and b.span[0] < a.span[1]
