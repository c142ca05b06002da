"""Phrase grounding of Flickr30k Entities: its files, and recall of the first k boxes of a phrase.

    folder/
      train.txt  val.txt  test.txt   one number of a picture a line
      Sentences/1007129816.txt       five captions with marked phrases
      Annotations/1007129816.xml     boxes

Source: spec/evaluation.md 4.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from lgjax.data.boxes import box_iou
from lgjax.eval.predictions import Prediction

IOU = 0.5
RANKS = (1, 5, 10)
ALL = "all"
NOT_VISUAL = "0"  # the chain of phrases that are nowhere in the picture
Protocol = Literal["any", "merged"]
_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)+)\s+(.*?)\](?!\S)")
_STRAY = re.compile(r"(?<!\S)\[|\](?!\S)")


class NamedPhrase(NamedTuple):
    """Words of a sentence that name the things of a chain; `span` are its characters [start, end)."""

    text: str
    first_word: int
    chain: str
    types: tuple[str, ...]
    span: tuple[int, int]


class Sentence(NamedTuple):
    """A caption, its words joined with single blanks."""

    text: str
    phrases: tuple[NamedPhrase, ...]


def parse_sentence(line: str) -> Sentence:
    """Read "[/EN#chain/type/... words] words ..." (one line of a file of Sentences).

    Raises:
        ValueError: a bracket that opens or closes no phrase.
    """
    said: list[str] = []
    phrases = []
    end = 0
    for found in _PHRASE.finditer(line):
        said += _plain(line[end : found.start()])
        named = found[3].split()
        start = len(" ".join([*said, ""]))
        text = " ".join(named)
        types = tuple(found[2].split("/")[1:])
        phrases.append(NamedPhrase(text, len(said), found[1], types, (start, start + len(text))))
        said += named
        end = found.end()
    said += _plain(line[end:])
    return Sentence(" ".join(said), tuple(phrases))


def _plain(piece: str) -> list[str]:
    if stray := _STRAY.search(piece):
        raise ValueError(f"bracket '{stray[0]}' in '{piece.strip()}' belongs to no '[/EN#number/type words]'")
    return piece.split()


def read_sentences(path: Path) -> list[Sentence]:
    """The captions of a picture, one a line; a line that has none is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8, or see `parse_sentence`.
    """
    out = []
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            out.append(parse_sentence(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return out


class Annotation(NamedTuple):
    """A picture's size (height, width) and the boxes of each chain, (x0, y0, x1, y1) float64 [n, 4].

    A chain that is the whole scene, or has no box, is not among them.
    """

    size: tuple[int, int]
    boxes: dict[str, Float64[np.ndarray, "_ 4"]]


def read_annotation(path: Path) -> Annotation:
    """Read the boxes of a picture; as the dataset's own reader does, 1 is taken from every coordinate.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no XML, or lacks a number.
    """
    try:
        root = xml.etree.ElementTree.fromstring(path.read_bytes())
    except xml.etree.ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XML: {error}") from error
    size = (_number(root, "size/height", path), _number(root, "size/width", path))
    boxes: dict[str, list[list[int]]] = {}
    for thing in root.iterfind("object"):
        for corners in thing.findall("bndbox")[:1]:
            box = [_number(corners, side, path) - 1 for side in ("xmin", "ymin", "xmax", "ymax")]
            for name in thing.iterfind("name"):
                boxes.setdefault((name.text or "").strip(), []).append(box)
    return Annotation(size, {chain: np.asarray(rows, float) for chain, rows in boxes.items()})


def _number(element: xml.etree.ElementTree.Element, name: str, path: Path) -> int:
    text = element.findtext(name, "").strip()
    if not re.fullmatch(r"-?\d+", text):
        raise ValueError(f"{path}: {element.tag}/{name} must be a whole number, found '{text}'")
    return int(text)


class Item(NamedTuple):
    """A caption that is grounded as a whole: only those of its phrases that have a box, and their boxes."""

    id: str
    image: str
    size: tuple[int, int]
    text: str
    phrases: tuple[NamedPhrase, ...]
    targets: tuple[Float64[np.ndarray, "_ 4"], ...]


def read_items(folder: Path, split: str) -> list[Item]:
    """The captions of a split with the phrases to be found; a caption without any is none.

    Raises:
        FileNotFoundError: the list of pictures, or the sentences or boxes of one of them, are not there.
        ValueError: a file is damaged, or nothing is to be found.
    """
    listed = folder / f"{split}.txt"
    if not listed.is_file():
        raise FileNotFoundError(f"no file {listed}: it lists the pictures of the split, one number a line")
    items = []
    for name in listed.read_text(encoding="utf-8").split():
        files = folder / "Sentences" / f"{name}.txt", folder / "Annotations" / f"{name}.xml"
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"no file {file}, but {listed} lists picture {name}")
        annotation = read_annotation(files[1])
        for number, sentence in enumerate(read_sentences(files[0])):
            boxed = [p for p in sentence.phrases if p.chain != NOT_VISUAL and p.chain in annotation.boxes]
            if boxed:
                targets = tuple(annotation.boxes[phrase.chain] for phrase in boxed)
                image, size = f"{name}.jpg", annotation.size
                items.append(Item(f"{name}/{number}", image, size, sentence.text, tuple(boxed), targets))
    if not items:
        raise ValueError(f"{listed}: no sentence of its pictures has a phrase with a box")
    return items


class GroundedPhrase(NamedTuple):
    """A phrase with the boxes of its chain and those predicted, best first; (x0, y0, x1, y1)."""

    types: tuple[str, ...]
    targets: Float[np.ndarray, "_ 4"]
    boxes: Float[np.ndarray, "_ 4"]


def first_hit(phrase: GroundedPhrase, protocol: Protocol) -> float:
    """Rank, from 1, of the first box with IoU >= 0.5 with a target; inf if there is none.

    "any": with any box of the chain; "merged": with the smallest box around all of them.
    """
    targets = phrase.targets
    if protocol == "merged" and len(targets):
        targets = np.concatenate([targets[:, :2].min(0), targets[:, 2:].max(0)])[None]
    if not len(phrase.boxes) or not len(targets):
        return float("inf")
    hits = np.flatnonzero((box_iou(phrase.boxes, targets) >= IOU).any(1))
    return float(hits[0] + 1) if len(hits) else float("inf")


def recall(
    phrases: Sequence[GroundedPhrase], protocol: Protocol, ranks: Sequence[int] = RANKS
) -> dict[str, dict[str, float]]:
    """Share of phrases that one of the first k boxes hits: {"R@k" or "upper_bound": {type: share}}.

    "all" stands for all phrases; a phrase counts in each of its types; with fewer boxes than k those that are
    there are taken, and all of them for "upper_bound".
    """
    groups: dict[str, list[float]] = {ALL: []}
    for phrase in phrases:
        rank = first_hit(phrase, protocol)
        for name in (ALL, *dict.fromkeys(phrase.types)):
            groups.setdefault(name, []).append(rank)
    limits = {f"R@{k}": float(k) for k in ranks} | {"upper_bound": np.finfo(float).max}
    return {
        title: {
            name: float(np.mean(np.asarray(hits) <= k)) if hits else float("nan")
            for name, hits in groups.items()
        }
        for title, k in limits.items()
    }


def grounded(item: Item, prediction: Prediction) -> list[GroundedPhrase]:
    """The phrases of a caption with what was predicted for each, in order.

    Raises:
        ValueError: the prediction has another number of phrases.
    """
    if len(prediction.phrases) != len(item.phrases):
        counts = f"{len(prediction.phrases)} phrases, the sentence has {len(item.phrases)} with boxes"
        raise ValueError(f"{prediction.where}: question {item.id!r} has {counts}")
    pairs = zip(item.phrases, item.targets, prediction.phrases, strict=True)
    return [GroundedPhrase(named.types, targets, found.boxes) for named, targets, found in pairs]
