"""Choosing queries for phrases."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lgjax.infer.select import select_queries


@given(st.integers(0, 10**6), st.floats(0.01, 0.9))
def test_threshold_is_strict_and_bounds_the_number(seed: int, threshold: float):
    logits = 3 * np.random.default_rng(seed).standard_normal((20, 3))
    probabilities = np.float32(np.exp(logits) / np.exp(logits).sum(0))
    for phrase, queries in enumerate(select_queries(probabilities, threshold)):
        chosen = set(queries.tolist())
        assert chosen == {q for q in range(20) if probabilities[q, phrase] > threshold}
        assert list(queries) == sorted(queries) and len(queries) <= np.ceil(1 / threshold)


def test_exactly_at_the_threshold_is_not_kept():
    assert [list(q) for q in select_queries(np.float32([[0.5], [0.5]]), 0.5)] == [[]]


def test_without_threshold_the_best_query_is_kept():
    probabilities = np.float32([[0.1, 0.7], [0.6, 0.2], [0.3, 0.1]])
    assert [list(q) for q in select_queries(probabilities, None)] == [[1], [0]]


@given(st.integers(0, 10**6), st.floats(0.0, 0.2), st.integers(1, 25))
def test_keep_leaves_the_best(seed: int, threshold: float, keep: int):
    logits = np.random.default_rng(seed).standard_normal((20, 3))
    probabilities = np.float32(np.exp(logits) / np.exp(logits).sum(0))
    whole = select_queries(probabilities, threshold)
    for phrase, queries in enumerate(select_queries(probabilities, threshold, keep)):
        assert len(queries) == min(keep, len(whole[phrase])) and list(queries) == sorted(queries)
        left_out = set(whole[phrase].tolist()) - set(queries.tolist())
        worst = min((probabilities[q, phrase] for q in queries), default=1)
        assert all(probabilities[q, phrase] <= worst for q in left_out)
