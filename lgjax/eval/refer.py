"""Test samples of RefCOCO, RefCOCO+ and RefCOCOg, and which of their pictures were trained on.

    folder/
      refs(unc).p           also refs(google).p, refs(umd).p
      instances.json

Source: spec/evaluation.md 3.1.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from lgjax.data import masks
from lgjax.data.schema import read_json
from lgjax.data.sources.common import find_file, plain_name, read_coco, read_lines
from lgjax.data.sources.refcoco import read_refs
from lgjax.eval.rle import Rle

SPLITS = ("train", "val", "test", "testA", "testB", "testC")
_PICTURE_FIELDS = ("image", "file_name", "image_id", "id")


class Sample(NamedTuple):
    """One sentence and what it names.

    image: file name; size: (height, width); box: (x0, y0, x1, y1) in pixels; mask: COCO run-length code, None
    where the annotation has no segmentation.
    """

    id: str
    image: str
    size: tuple[int, int]
    text: str
    box: Float64[np.ndarray, " 4"]
    mask: Rle | None


def refs_of_split(refs: Iterable[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """The refs of a split, by REFER's rule.

    testA, testB and testC keep every ref whose split has that last letter in its name, "test" every one with
    "test" in it; train and val must be equal.

    Raises:
        ValueError: no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split '{split}' is none of {', '.join(SPLITS)}")
    if split in ("train", "val"):
        return [ref for ref in refs if ref["split"] == split]
    wanted = "test" if split == "test" else split[-1]
    return [ref for ref in refs if wanted in ref["split"]]


def read_samples(folder: Path, split_by: str, splits: Sequence[str] = ()) -> dict[str, list[Sample]]:
    """The samples of each split, one for each sentence, in the order of the file.

    Without `splits`: of all that the file has, but "train".

    Raises:
        FileNotFoundError: refs(split_by).p or instances.json is not there.
        ValueError: a file is damaged, a ref names an unknown picture or annotation, or a split is empty.
    """
    file = find_file(folder, [f"refs({split_by}).p"], __doc__)
    refs = read_refs(file)
    known = sorted({ref["split"] for ref in refs})
    chosen = {split: refs_of_split(refs, split) for split in splits or (s for s in known if s in SPLITS[1:])}
    if not chosen or (empty := [split for split, some in chosen.items() if not some]):
        lost = f"the split {empty[0]}" if chosen else "any test split"
        raise ValueError(f"{file} has no sentence of {lost}; its splits: {', '.join(known) or 'none'}")
    instances = find_file(folder, ["instances.json"], __doc__)
    coco = read_coco(instances)
    annotations = {one["id"]: one for some in coco.annotations.values() for one in some}

    def samples_of(ref: dict[str, Any]) -> list[Sample]:
        picture, annotation = coco.images.get(ref["image_id"]), annotations.get(ref["ann_id"])
        where = f"{file}: ref {ref.get('ref_id', '')} (annotation {ref['ann_id']})"
        if picture is None or annotation is None:
            lost = f"picture {ref['image_id']}" if picture is None else "annotation"
            raise ValueError(f"{where}: {instances} has no such {lost}")
        return _samples(ref, picture, annotation, where)

    return {split: [sample for ref in some for sample in samples_of(ref)] for split, some in chosen.items()}


def _samples(
    ref: dict[str, Any], picture: dict[str, Any], annotation: dict[str, Any], where: str
) -> list[Sample]:
    try:
        size = (int(picture["height"]), int(picture["width"]))
        box = np.asarray(masks.box_from_xywh(annotation["bbox"]), float)
        mask = _mask(annotation.get("segmentation"), size)
    except KeyError as error:
        raise ValueError(f"{where}: its picture or annotation lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    samples = []
    for number, sentence in enumerate(ref["sentences"]):
        fields = sentence if isinstance(sentence, dict) else {}
        text = fields.get("sent") or fields.get("raw")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: sentence {number} has no text")
        name = str(fields.get("sent_id", f"{ref['ann_id']}/{number}"))
        samples.append(Sample(name, picture["file_name"], size, text, box, mask))
    return samples


def _mask(segmentation: Any, size: tuple[int, int]) -> Rle | None:
    """All polygons as one mask. Source: spec/evaluation.md 3.1 (sum, then > 0)."""
    if not segmentation:
        return None
    return masks.encode(masks.decode(segmentation, (size[1], size[0])))


class Leak(NamedTuple):
    """Which of the tested pictures a file of training data names."""

    file: str
    pictures: frozenset[str]


def leaks(samples: Sequence[Sample], training: Sequence[Path]) -> list[Leak]:
    """Compare the tested pictures with those of each training file.

    Files: refs(*).p (their split "train"), COCO's layout ("images" with file_name), or a list or lines of
    records with "image" or "image_id". Pictures of COCO are known by their number, whatever their prefix.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file names no picture.
    """
    tested = {picture_key(sample.image) for sample in samples}
    return [Leak(str(path), frozenset(tested & pictures_of(path))) for path in training]


def pictures_of(path: Path) -> frozenset[str]:
    """Keys of the pictures that a file of training data names; see `leaks`.

    Raises:
        FileNotFoundError, ValueError: see `leaks`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".p":
        return frozenset(picture_key(ref["image_id"]) for ref in refs_of_split(read_refs(path), "train"))
    if path.suffix == ".jsonl":
        records: Any = [record for _, record in read_lines(path)]
    else:
        records = read_json(path)
        records = records.get("images") if isinstance(records, dict) else records
    names = [_picture_name(record) for record in records] if isinstance(records, list) else []
    found = frozenset(picture_key(name) for name in names if name is not None)
    if not found:
        raise ValueError(f"{path} names no picture: expected COCO's layout, or records with 'image'")
    return found


def _picture_name(record: Any) -> str | int | None:
    fields = record if isinstance(record, dict) else {}
    return next((fields[name] for name in _PICTURE_FIELDS if isinstance(fields.get(name), str | int)), None)


@functools.cache
def picture_key(name: str | int) -> str:
    """What tells pictures apart: the number of a COCO picture, else the file's name without its ending."""
    stem = Path(plain_name(Path(str(name)).name)).stem
    return str(int(stem)) if stem.isdecimal() else stem
