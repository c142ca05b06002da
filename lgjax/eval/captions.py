"""Grounded captions (GLaMM's GCG): how well masks and the phrases they belong to are found.

IoUs are those of one picture, targets by predictions (`lgjax.eval.rle.ious`); a phrase has one mask. METEOR
and CIDEr of the caption are in `lgjax.eval.text_scores`. Source: spec/evaluation.md 6.2.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

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
