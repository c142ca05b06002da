"""Grounded captions (GLaMM's GCG): how well masks and the phrases they belong to are found.

IoUs are those of one picture, targets by predictions (`lgjax.eval.rle.ious`); a phrase has one mask. METEOR
and CIDEr of the caption are in `lgjax.eval.text_scores`. Source: spec/evaluation.md 6.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from lgjax.data import masks
from lgjax.data.schema import read_json
from lgjax.eval import rle, text_scores
from lgjax.eval.check import same_size
from lgjax.eval.predictions import Prediction
from lgjax.eval.rle import Rle
from lgjax.eval.segmentation import coco_ap

IOU = 0.5
SIMILARITY = 0.5
Rule = Literal["released", "skip"]


def pair(ious: Float[np.ndarray, "t p"]) -> list[tuple[int, int]]:
    """Pair targets and predictions one to one, best IoU first, as long as it is above 0."""
    left = np.array(ious, np.float64)
    pairs = []
    while left.size and left.max() > 0:
        best = np.unravel_index(left.argmax(), left.shape)
        pairs.append((int(best[0]), int(best[1])))
        left[best[0], :] = left[:, best[1]] = 0
    return pairs


def image_miou(ious: Float[np.ndarray, "t p"]) -> float:
    """Mean IoU of the pairs of one picture, 0 without any; what stays without a partner does not count."""
    pairs = pair(ious)
    return float(np.mean([ious[both] for both in pairs])) if pairs else 0.0


def phrase_matches(
    ious: Float[np.ndarray, "t p"], similarities: Float[np.ndarray, "t p"], rule: Rule = "skip"
) -> list[tuple[int, int]]:
    """Targets that were found: pairs, one to one, best IoU first, with IoU and text similarity >= 0.5.

    The released code ends at the first pair whose texts differ; the natural rule goes on with the next.
    """
    left = np.array(ious, np.float64)
    found = []
    while left.size and left.max() >= IOU:
        best = np.unravel_index(left.argmax(), left.shape)
        if similarities[best] >= SIMILARITY:
            found.append((int(best[0]), int(best[1])))
            left[best[0], :] = left[:, best[1]] = 0
        elif rule == "released":
            break
        else:
            left[best] = 0
    return found


class Truth(NamedTuple):
    """A picture with its reference captions, and the phrases of the first of them, one mask each.

    size: (height, width), None where nothing is marked.
    """

    id: str | int
    image: str
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    masks: tuple[Rle, ...]

    @property
    def size(self) -> tuple[int, int] | None:
        return (self.masks[0]["size"][0], self.masks[0]["size"][1]) if self.masks else None


def read_truth(captions: Path, mask_file: Path) -> list[Truth]:
    """Read GLaMM's two files: COCO's layout, captions with `labels`, and masks in the order of the labels.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a field is missing or of another type, a picture has no caption, or not one mask a label.
    """
    told = read_json(captions)
    marked = read_json(mask_file)
    names = {}
    for file, data in ((mask_file, marked), (captions, told)):
        for number, image in enumerate(_list(data, "images", file)):
            where = f"{file}: image {number}"
            key = _field(image, "id", (str, int), where)
            names[key] = image.get("file_name") or names.get(key) or f"{key}.jpg"
    texts: dict[Any, list[dict[str, Any]]] = {}
    for number, one in enumerate(_list(told, "annotations", captions)):
        where = f"{captions}: annotation {number}"
        _field(one, "caption", (str,), where)
        texts.setdefault(_field(one, "image_id", (str, int), where), []).append(one)
    found: dict[Any, list[Rle]] = {}
    for number, one in enumerate(_list(marked, "annotations", mask_file)):
        where = f"{mask_file}: annotation {number}"
        code = _field(one, "segmentation", (dict,), where)
        key = _field(one, "image_id", (str, int), where)
        found.setdefault(key, []).append(_mask(code, found.get(key), where))
    out = []
    for image in told["images"]:
        key = image["id"]
        if key not in texts:
            raise ValueError(f"{captions}: image {key!r} has no caption")
        labels = texts[key][0].get("labels", [])
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"{captions}: labels of image {key!r} must be a list of texts")
        codes = found.get(key, [])
        if len(labels) != len(codes):
            counts = f"{len(labels)} labels, but {len(codes)} masks in {mask_file}"
            raise ValueError(f"{captions}: image {key!r} has {counts}")
        said = tuple(one["caption"] for one in texts[key])
        out.append(Truth(key, names[key], said, tuple(labels), tuple(codes)))
    return out


def _list(data: Any, name: str, file: Path) -> list[Any]:
    if not isinstance(data, dict) or not isinstance(data.get(name), list):
        raise ValueError(f"{file} has no list '{name}'; expected COCO's layout")
    return data[name]


def _field(item: Any, name: str, kinds: tuple[type, ...], where: str) -> Any:
    if not isinstance(item, dict) or not isinstance(item.get(name), kinds):
        wanted = " or ".join({str: "a text", int: "a number", dict: "an object"}[kind] for kind in kinds)
        raise ValueError(f"{where} needs '{name}', {wanted}")
    return item[name]


def _mask(code: Any, earlier: Sequence[Rle] | None, where: str) -> Rle:
    """The mask as a compressed code, of the size of the picture's other masks."""
    try:
        size = [int(side) for side in code["size"]]
        mask = masks.encode(masks.decode(code, (size[1], size[0])))
    except (KeyError, TypeError, ValueError, IndexError):
        raise ValueError(f"{where}: segmentation is no run-length code of COCO") from None
    if earlier and earlier[0]["size"] != mask["size"]:
        raise ValueError(f"{where}: mask of size {size}, an earlier one of its picture {earlier[0]['size']}")
    return mask


class Caption(NamedTuple):
    """An answer: its text, and the phrases that have a mask."""

    text: str
    phrases: tuple[str, ...]
    masks: tuple[Rle, ...]
    scores: tuple[float, ...]


def caption_of(truth: Truth, prediction: Prediction) -> Caption:
    """What an answer holds; all masks of a phrase are one mask, with the score of the best.

    Raises:
        ValueError: the prediction's picture has another size than the masks of the truth.
    """
    if truth.size is not None:
        same_size(prediction, truth.size)
    some = [phrase for phrase in prediction.phrases if phrase.masks]
    return Caption(
        prediction.text,
        tuple(phrase.text for phrase in some),
        tuple(rle.union(phrase.masks or ()) for phrase in some),
        tuple(float(phrase.scores[0]) for phrase in some),
    )


@dataclasses.dataclass(frozen=True)
class Scores:
    """meteor, ap50, miou, recall and recall_released in [0, 1], cider in [0, 10]; nan without any target.

    recall: phrases of the truth that were found by `phrase_matches`, over all phrases.
    """

    meteor: float
    cider: float
    ap50: float
    miou: float
    recall: float
    recall_released: float


def score(
    truths: Sequence[Truth],
    captions: Sequence[Caption],
    similarity: Callable[[str, str], float] = text_scores.stem_similarity,
) -> Scores:
    """Score captions; `similarity` says how alike two phrases are, in [0, 1] (GLaMM: cosine of BERT's means).

    Raises:
        ImportError: nltk is not installed.
    """
    overlaps = [rle.ious(t.masks, c.masks) for t, c in zip(truths, captions, strict=True)]
    alike = [_similarities(t, c, similarity) for t, c in zip(truths, captions, strict=True)]
    pairs = list(zip(overlaps, alike, strict=True))
    targets = sum(len(truth.labels) for truth in truths)

    def recall(rule: Rule) -> float:
        return sum(len(phrase_matches(*one, rule)) for one in pairs) / targets if targets else float("nan")

    said, references = [c.text for c in captions], [t.captions for t in truths]
    return Scores(
        meteor=_mean(text_scores.meteor(said, references)),
        cider=_mean(text_scores.cider(said, references)),
        ap50=_ap50(truths, captions),
        miou=_mean([image_miou(one) for one in overlaps]),
        recall=recall("skip"),
        recall_released=recall("released"),
    )


def _similarities(
    truth: Truth, caption: Caption, similarity: Callable[[str, str], float]
) -> Float64[np.ndarray, "t p"]:
    rows = [[similarity(label, phrase) for phrase in caption.phrases] for label in truth.labels]
    return np.asarray(rows, np.float64).reshape(len(truth.labels), len(caption.phrases))


def _ap50(truths: Sequence[Truth], captions: Sequence[Caption]) -> float:
    """COCOeval's AP50 of masks, all of one class."""
    annotations, found = [], []
    for number, (truth, caption) in enumerate(zip(truths, captions, strict=True)):
        shared = {"image_id": number, "category_id": 1}
        annotations += [
            {**shared, "segmentation": code, "area": rle.area(code), "iscrowd": 0, "bbox": [0, 0, 0, 0]}
            for code in truth.masks
        ]
        rows = zip(caption.masks, caption.scores, strict=True)
        found += [{**shared, "segmentation": code, "score": score} for code, score in rows]
    sizes = [truth.size or (1, 1) for truth in truths]
    content = {
        "images": [{"id": n, "height": height, "width": width} for n, (height, width) in enumerate(sizes)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{**one, "id": number} for number, one in enumerate(annotations, 1)],
    }
    return coco_ap(content, found, "segm")["AP50"] if annotations else float("nan")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
