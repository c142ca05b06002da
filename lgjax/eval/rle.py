"""Masks as COCO run-length codes {"size": [height, width], "counts": text}, compared without decoding them.

`lgjax.data.masks.encode` makes them. Source: spec/evaluation.md 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
from jaxtyping import Bool, Float64

Rle = dict[str, Any]
_tools: Any = pycocotools.mask


def area(code: Rle) -> int:
    """Pixels of a mask."""
    return int(_tools.area(code))


def shared_area(a: Rle, b: Rle) -> int:
    """Pixels that both masks have.

    Raises:
        ValueError: they differ in size.
    """
    if list(a["size"]) != list(b["size"]):
        raise ValueError(f"a mask has size {list(a['size'])}, the other {list(b['size'])}")
    return area(_tools.merge([a, b], intersect=True))


def union(codes: Iterable[Rle]) -> Rle:
    """One mask of all; there must be one or more."""
    merged = _tools.merge(list(codes))
    return {"size": [int(side) for side in merged["size"]], "counts": merged["counts"].decode()}


def bitmap(code: Rle) -> Bool[np.ndarray, "h w"]:
    """The mask as a bitmap."""
    return _tools.decode(code).astype(bool)


def ious(
    found: Sequence[Rle], targets: Sequence[Rle], crowds: Sequence[bool] | None = None
) -> Float64[np.ndarray, "f t"]:
    """IoU of every found mask with every target; 0 where both are empty.

    Against a target that is a crowd the area of what was found takes the place of the union.
    """
    if not found or not targets:
        return np.zeros((len(found), len(targets)))
    flags = [int(crowd) for crowd in crowds or [False] * len(targets)]
    return np.nan_to_num(np.asarray(_tools.iou(list(found), list(targets), flags), np.float64))
