"""Which queries answer for a phrase."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float, Int


def select_queries(
    probabilities: Float[Array, "q p"] | Float[np.ndarray, "q p"],
    threshold: float | None,
    keep: int | None = None,
) -> list[Int[np.ndarray, " _"]]:
    """Queries of each phrase: those with a probability strictly above `threshold`, in query order.

    probabilities are a softmax over the queries; `threshold` None keeps the best query alone. At a
    threshold t a phrase has at most ceil(1 / t) - 1 queries; `keep` leaves at most so many of the best.
    Source: spec/grounding_model.md 6.
    """
    scores = np.asarray(probabilities)
    if threshold is None:
        return [np.asarray([best]) for best in scores.argmax(0)]
    ranked = np.argsort(-scores, axis=0, kind="stable")
    above = (scores > threshold).sum(0)
    # the best ones of a phrase, all of them where `keep` is None
    return [np.sort(order[:count][:keep]) for order, count in zip(ranked.T, above, strict=True)]
