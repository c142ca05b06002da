"""RefCOCO, RefCOCO+ and RefCOCOg: the files of REFER, or all three merged into one of COCO's layout.

    folder/
      refs(unc).p  instances.json         REFER: one refs(<split_by>).p, or `split_by` says which
      train2014/ (or images/train2014/, train2017/, images/, ../images/mscoco/images/train2014/, or here)
        COCO_train2014_000000000042.jpg

    folder/
      annotations/ (or here)
        grounding_train2017.json          merged: COCO annotations with `split` and `sentences`
      refcoco/refs(unc).p  refcoco+/...   optional, at any place below: which pictures to leave out
      train2017/ (or as above)

Texts stay as they were written. Source: spec/training_and_data.md 5.2, 6.3.
"""

from __future__ import annotations

import builtins
import functools
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lgjax.data.schema import Expression, Record, Source
from lgjax.data.sources.common import (
    UNKNOWN_ID,
    Coco,
    Pictures,
    Things,
    find_file,
    has_fields,
    look_for,
    read_coco,
    require,
    size_of,
    things_of,
)

MERGED = "grounding_train2017.json"
NO_TEXT = "expression without a text"
_PLAIN_TYPES = ("bytes", "dict", "float", "int", "list", "set", "str", "tuple")

Sentences = dict[Any, dict[Any, list[dict[str, Any]]]]


class Referring(NamedTuple):
    """A split: annotations, and the sentences of each annotation id of each picture id.

    held_out: ids of pictures that are in a validation or test split.
    """

    coco: Coco
    sentences: Sentences
    held_out: frozenset[Any] = frozenset()


def read(folder: Path, split_by: str | None = None) -> dict[str, Source]:
    """Read "referring" records, one a picture and split, with one expression for each referred annotation.

    The merged file is taken when it is there and `split_by` is None; it has only "train", without the
    pictures of any validation or test split. REFER's files have all their splits, and "train" without the
    pictures of the others.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: a file is damaged, or several refs(*).p are there and `split_by` is None.
    """
    places = "../images/mscoco/images/train2014", "mscoco/images/train2014"
    pictures = Pictures.below(folder, "train2014", "train2017", *places)
    if split_by is None and (merged := look_for(folder, [MERGED])):
        return {"train": _source(merged, read_merged(merged, folder), pictures)}
    try:
        file = find_file(folder, [f"refs({split_by or '*'}).p"], __doc__)
    except ValueError as error:
        raise ValueError(f"{error}, or say which with split_by (--split-by)") from error
    coco = read_coco(find_file(folder, ["instances.json"], __doc__))
    splits: dict[str, Sentences] = {}
    refs = read_refs(file)
    held_out = {ref["image_id"] for ref in refs if ref["split"] != "train"}
    for ref in refs:
        if ref["split"] == "train" and ref["image_id"] in held_out:
            continue
        by_annotation = splits.setdefault(ref["split"], {}).setdefault(ref["image_id"], {})
        by_annotation.setdefault(ref["ann_id"], []).extend(ref["sentences"])
    return {split: _source(file, Referring(coco, sentences), pictures) for split, sentences in splits.items()}


def _source(file: Path, referring: Referring, pictures: Pictures) -> Source:
    images = [referring.coco.images.get(i, {"id": i}) for i in referring.sentences]
    return Source(file, images, functools.partial(make_record, referring, pictures))


def read_merged(file: Path, folder: Path) -> Referring:
    """Read the training split of the merged file without the pictures that any other split has.

    What belongs to other splits is said by the file itself and by all refs(*).p below `folder`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file is damaged.
    """
    coco = read_coco(file)
    entries = [a for annotations in coco.annotations.values() for a in annotations]
    others = [ref for path in sorted(folder.rglob("refs(*).p")) for ref in read_refs(path)]
    held_out = frozenset(e["image_id"] for e in (*entries, *others) if e.get("split", "train") != "train")
    sentences: Sentences = {}
    referred: dict[Any, dict[Any, dict[str, Any]]] = {}
    for entry in entries:
        image = entry["image_id"]
        if image not in held_out:
            # the id of the instance; the merged file may have numbered its entries anew
            instance = entry.get("ann_id", entry["id"])
            referred.setdefault(image, {}).setdefault(instance, {**entry, "id": instance})
            sentences.setdefault(image, {}).setdefault(instance, []).extend(entry.get("sentences") or [])
    annotations = {image: list(by_id.values()) for image, by_id in referred.items()}
    return Referring(Coco(coco.images, annotations, coco.categories), sentences, held_out)


def make_record(referring: Referring, pictures: Pictures, entry: Mapping[str, Any]) -> Record:
    """Make the record of the picture `entry`; its objects are the referred annotations."""
    path = pictures.path(entry["file_name"])
    sentences = referring.sentences[entry["id"]]
    annotations = referring.coco.annotations.get(entry["id"], [])
    things = things_of((a for a in annotations if a["id"] in sentences), referring.coco.categories)
    expressions, dropped = expressions_of(sentences, things)
    require(expressions, "expression", things.dropped + dropped)
    return Record(
        id=str(entry["id"]),
        kind="referring",
        image=path,
        size=size_of(entry, path),
        objects=things.objects,
        expressions=expressions,
        dropped=things.dropped + dropped,
    )


def expressions_of(
    sentences: Mapping[Any, list[dict[str, Any]]], things: Things
) -> tuple[tuple[Expression, ...], tuple[str, ...]]:
    """One expression for each annotation id, with all its sentences that are not blank; what was dropped.

    Raises:
        KeyError: a sentence lacks 'raw'.
    """
    expressions: list[Expression] = []
    dropped: list[str] = []
    for instance, said in sentences.items():
        texts = tuple(sentence["raw"] for sentence in said if sentence["raw"].strip())
        if instance not in things.index:
            dropped.append(UNKNOWN_ID)
        elif not texts:
            dropped.append(NO_TEXT)
        else:
            expressions.append(Expression(texts=texts, objects=(things.index[instance],)))
    return tuple(expressions), tuple(dropped)


def read_refs(path: Path) -> list[dict[str, Any]]:
    """Read a refs(*).p of REFER: a pickled list of dictionaries. Only plain values are admitted.

    Raises:
        ValueError: it is damaged, of another layout, or holds anything but plain values.
    """
    try:
        with path.open("rb") as file:
            refs = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    # a damaged pickle can raise nearly anything
    except Exception as error:
        raise ValueError(f"{path} is refused: {error}") from error
    fields = ("split", "image_id", "ann_id")
    if not isinstance(refs, list):
        raise ValueError(f"{path} must hold a list of refs, found {type(refs).__name__}")
    for index, ref in enumerate(refs):
        if not has_fields(ref, fields) or not isinstance(ref.get("sentences"), list):
            raise ValueError(f"{path}: ref {index} must have {', '.join(fields)} and a list of sentences")
    return refs


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if module in ("builtins", "__builtin__") and name in _PLAIN_TYPES:
            return getattr(builtins, name)
        raise pickle.UnpicklingError(
            f"it holds '{module}.{name}'; only lists, dictionaries, texts and numbers"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")
