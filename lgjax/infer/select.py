"""Which queries answer for a phrase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Int

from lgjax.data.boxes import box_iou


def select_queries(
    probabilities: Float[Array, "q p"] | Float[np.ndarray, "q p"],
    threshold: float | None,
    keep: int | None = None,
) -> list[Int[np.ndarray, " _"]]:
    """Queries of each phrase: those with a probability strictly above `threshold`, in query order.

    probabilities are a softmax over the queries, or what `for_each_thing` made of it; `threshold` None keeps
    the best query alone. Of a softmax, a threshold t leaves a phrase at most ceil(1 / t) - 1 queries; `keep`
    leaves at most so many of the best.
    Source: spec/grounding_model.md 6.
    """
    scores = np.asarray(probabilities)
    if threshold is None:
        return [np.asarray([best]) for best in scores.argmax(0)]
    ranked = np.argsort(-scores, axis=0, kind="stable")
    above = (scores > threshold).sum(0)
    # the best ones of a phrase, all of them where `keep` is None
    return [np.sort(order[:count][:keep]) for order, count in zip(ranked.T, above, strict=True)]


def merge_duplicates(
    probabilities: Float[np.ndarray, "q p"], boxes: Float[np.ndarray, "q 4"], least_iou: float
) -> Float[np.ndarray, "q p"]:
    """Give the likeliest of the queries that see the same thing the probability of all of them.

    A softmax over the queries is shared among those that found the same thing, so that neither may pass a
    threshold that both would pass together. For each phrase, from the likeliest query on, a query takes the
    probability of every other whose box (x0, y0, x1, y1) overlaps its own with an IoU of at least
    `least_iou`; these are left with 0. Source: none; the released code leaves duplicates.
    """
    near = box_iou(boxes, boxes) >= least_iou
    merged = np.zeros_like(probabilities)
    for phrase, scores in enumerate(probabilities.T):
        free = np.ones(len(scores), bool)
        for query in np.argsort(-scores, kind="stable"):
            if free[query]:
                free[query] = False
                taken = free & near[query]
                merged[query, phrase] = scores[query] + scores[taken].sum()
                free &= ~taken
    return merged


def for_each_thing(
    probabilities: Float[np.ndarray, "q p"], numbers: Sequence[int]
) -> Float[np.ndarray, "q p"]:
    """How likely each query is one of the things of its phrase, which are `numbers` things; may pass 1.

    The softmax gives each of three dogs a third: times 3, "three dogs" and "a dog" can be held to the same
    threshold. Source: none; the released code holds shares to it.
    """
    return probabilities * np.asarray(numbers, probabilities.dtype)
