"""Masks of objects: from polygons and run-length codes to bitmaps of the picture or of the square canvas.

Source: spec/training_and_data.md 7, 14.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import pycocotools.mask
from jaxtyping import Bool, Float64, UInt8

from lgjax.data.images import ImageSize, Number, Placement
from lgjax.data.schema import Box, Object, Record, Segmentation

OTHER_SIZE = "mask of another size than the picture"
EMPTY_POLYGON = "empty polygon"
NO_SEGMENTATION = "mask that is no COCO segmentation"
_FAR = 4  # sides of the picture; what lies farther away is no coordinate of it


def encode(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Turn a bitmap into a compressed COCO run-length code that JSON can hold."""
    code: Any = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(v) for v in code["size"]], "counts": code["counts"].decode()}


def decode(mask: Segmentation, size: ImageSize) -> Bool[np.ndarray, "height width"]:
    """Turn a segmentation into a bitmap of a picture of `size` (width, height).

    Raises:
        ValueError: `OTHER_SIZE`, `EMPTY_POLYGON` or `NO_SEGMENTATION`.
    """
    return pycocotools.mask.decode(_code(mask, size)).astype(bool)


def _code(mask: Segmentation, size: ImageSize) -> Any:
    """The run-length code of a segmentation; pycocotools itself crashes or reads stray memory at bad ones."""
    width, height = size
    if isinstance(mask, dict):
        return _checked_runs(mask, width, height)
    polygons = []
    for polygon in mask:
        try:
            numbers = np.asarray(polygon, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(NO_SEGMENTATION) from error
        if numbers.ndim != 1 or not (np.abs(numbers) <= _FAR * max(size)).all():  # NaN is refused, too
            raise ValueError(NO_SEGMENTATION)
        if len(numbers) >= 6 and len(numbers) % 2 == 0:
            polygons.append(numbers.tolist())
    if not polygons:
        raise ValueError(EMPTY_POLYGON)
    return pycocotools.mask.merge(_from_objects(polygons, height, width))


def _from_objects(things: Any, height: int, width: int) -> Any:
    return pycocotools.mask.frPyObjects(things, height, width)


def _checked_runs(mask: dict[str, Any], width: int, height: int) -> Any:
    """The code as pycocotools takes it, whose runs fill the picture."""
    try:
        size, counts = [int(side) for side in mask["size"]], mask["counts"]
        text = counts.encode() if isinstance(counts, str) else counts
        runs = _runs(text) if isinstance(text, bytes) else [int(run) for run in text]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(NO_SEGMENTATION) from error
    if size != [height, width]:
        raise ValueError(OTHER_SIZE)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(NO_SEGMENTATION)
    return mask if text is not counts or isinstance(counts, bytes) else _from_objects(mask, height, width)


def _runs(text: bytes) -> list[int]:
    """Lengths of runs from COCO's text: five bits a character, lowest first; from the fourth run on they are
    differences to the run before the last."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError("a character that is no digit of a run-length code")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the run-length code ends within a number")
    return runs


def on_canvas(
    mask: Segmentation, placement: Placement, side: int | None = None
) -> Bool[np.ndarray, "side side"]:
    """Turn a segmentation of a picture into a bitmap of its square canvas, `side` cells wide (default: all).

    Polygons are scaled and then filled, run-length codes take the nearest pixel; the padding stays False.
    Source: spec/training_and_data.md 7 (quirk Q17).

    Raises:
        ValueError: see `decode`.
    """
    side = side or placement.canvas
    sizes = np.asarray(placement.scaled) * side / placement.canvas
    if not isinstance(mask, dict):
        scale = sizes / placement.size
        scaled = [(np.reshape(p, (-1, 2)) * scale).ravel().tolist() for p in mask if len(p) % 2 == 0]
        return decode(scaled, (side, side))
    out = np.zeros((side, side), bool)
    columns, rows = (max(1, round(cells)) for cells in sizes)
    picture = PIL.Image.fromarray(decode(mask, placement.size))
    out[:rows, :columns] = np.asarray(picture.resize((columns, rows), PIL.Image.Resampling.NEAREST))
    return out


def shares(mask: Bool[np.ndarray, "h w"], side: int) -> Float64[np.ndarray, "side side"]:
    """Share of each cell of a grid over the middle square of a picture (what CLIP sees) that a mask covers.

    Raises:
        ValueError: the square has fewer pixels than cells.
    """
    square = min(mask.shape)
    if square < side:
        raise ValueError(f"a picture of {square} pixels has no {side} x {side} cells")
    top, left = ((length - square) // 2 for length in mask.shape)
    edges = np.arange(side) * square // side
    inside = mask[top : top + square, left : left + square].astype(np.float64)
    sums = np.add.reduceat(np.add.reduceat(inside, edges, axis=0), edges, axis=1)
    lengths = np.diff([*edges.tolist(), square]).astype(np.float64)
    return sums / (lengths[:, None] * lengths)


def box_of(mask: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, " 4"]:
    """The tight box (x0, y0, x1, y1) of a bitmap, its far edges one past the last pixel; zeros if empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4)
    return np.asarray([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)


def pack(masks: Bool[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w8"]:
    """Put eight cells of a row into one byte, the first in its highest bit; w is a multiple of 8."""
    return np.packbits(masks, axis=-1)


def fault_of(thing: Object, size: ImageSize) -> str | None:
    """Why an object cannot be used in a picture of `size`, in words that name no number; None if it can."""
    width, height = size
    x0, y0, x1, y1 = thing.box
    if not (x1 > x0 and y1 > y0):
        return "box without area"
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        return "box outside the picture"
    if thing.mask is None:
        return None
    try:
        code = _code(thing.mask, size)
    except ValueError as error:
        return str(error)
    if not int(pycocotools.mask.area(code)):
        return "empty mask" if isinstance(thing.mask, dict) else EMPTY_POLYGON
    return None


def clean(record: Record) -> Record:
    """Drop the objects that cannot be used from a record and from all that names them, with their reasons.

    Phrases lose them (and may be left without any), expressions without an object left are dropped, and so
    are questions and rounds with a region that is gone.
    """
    if record.size is None:
        return record
    faults = [fault_of(thing, record.size) for thing in record.objects]
    if not any(faults):
        return record
    kept = [i for i, fault in enumerate(faults) if fault is None]
    place = {old: new for new, old in enumerate(kept)}

    def still(numbers: Sequence[int]) -> tuple[int, ...]:
        return tuple(place[i] for i in numbers if i in place)

    lost_rounds = {region.turn // 2 for region in record.regions if region.object not in place}
    turns = [i for i in range(len(record.turns)) if i // 2 not in lost_rounds]
    moved = {old: new for new, old in enumerate(turns)}
    expressions = [(e, still(e.objects)) for e in record.expressions]
    return dataclasses.replace(
        record,
        objects=tuple(record.objects[i] for i in kept),
        turns=tuple(record.turns[i] for i in turns),
        phrases=tuple(
            dataclasses.replace(p, turn=moved[p.turn], objects=still(p.objects))
            for p in record.phrases
            if p.turn in moved
        ),
        regions=tuple(
            r._replace(turn=moved[r.turn], object=place[r.object]) for r in record.regions if r.turn in moved
        ),
        expressions=tuple(
            dataclasses.replace(e, objects=numbers)
            for e, numbers in expressions
            if numbers and (e.question is None or len(numbers) == len(e.objects))
        ),
        marks=still(record.marks),
        dropped=record.dropped + tuple(fault for fault in faults if fault),
    )


def box_from_xywh(box: Sequence[Number]) -> Box:
    """Turn COCO's (x, y, width, height) into (x0, y0, x1, y1).

    Raises:
        ValueError: other than four numbers.
    """
    if len(box) != 4:
        raise ValueError(f"bbox {list(box)} has {len(box)} numbers, expected x, y, width, height")
    x, y, width, height = map(float, box)
    return (x, y, x + width, y + height)
