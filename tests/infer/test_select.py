"""Choosing queries for phrases."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lgjax.data.boxes import box_iou
from lgjax.infer.select import for_each_thing, merge_duplicates, select_queries


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
    probabilities = (np.exp(logits) / np.exp(logits).sum(0)).astype(np.float32)
    whole = select_queries(probabilities, threshold)
    for phrase, queries in enumerate(select_queries(probabilities, threshold, keep)):
        assert len(queries) == min(keep, len(whole[phrase])) and list(queries) == sorted(queries)
        left_out = set(whole[phrase].tolist()) - set(queries.tolist())
        worst = min((probabilities[q, phrase] for q in queries), default=1)
        assert all(probabilities[q, phrase] <= worst for q in left_out)


def boxes_of(rng: np.random.Generator, number: int) -> np.ndarray:
    """Boxes near three places, so that many lie on each other."""
    corners = rng.uniform(0, 0.6, (3, 2))[rng.integers(0, 3, number)] + rng.uniform(0, 0.1, (number, 2))
    return np.concatenate([corners, corners + rng.uniform(0.2, 0.3, (number, 2))], 1)


@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_merging_leaves_one_query_a_thing_and_loses_no_probability(seed: int, least_iou: float):
    rng = np.random.default_rng(seed)
    probabilities, boxes = rng.dirichlet(np.full(12, 0.3), 2).T, boxes_of(rng, 12)
    merged = merge_duplicates(probabilities, boxes, least_iou)
    np.testing.assert_allclose(merged.sum(0), probabilities.sum(0))
    ious = box_iou(boxes, boxes)
    for before, after in zip(probabilities.T, merged.T, strict=True):
        left = np.flatnonzero(after)
        assert before.argmax() in left
        assert all(ious[a, b] < least_iou for a in left for b in left if a != b)
        for gone in np.flatnonzero((after == 0) & (before > 0)):  # to one that is likelier and lies on it
            assert any(before[k] >= before[gone] and ious[k, gone] >= least_iou for k in left)


def test_two_halves_pass_a_threshold_together():
    boxes = np.asarray([[0, 0, 0.5, 0.5], [0.6, 0.6, 1, 1], [0, 0, 0.5, 0.48]])
    probabilities = np.asarray([[0.3, 0.1], [0.2, 0.8], [0.5, 0.1]])
    merged = merge_duplicates(probabilities, boxes, 0.7)
    np.testing.assert_allclose(merged, [[0, 0.2], [0.2, 0.8], [0.8, 0]], rtol=1e-6)


def test_boxes_apart_are_left_as_they_are():
    rng = np.random.default_rng(0)
    corners = rng.permutation(np.stack(np.meshgrid(range(4), range(3)), -1).reshape(-1, 2)) / 4
    probabilities = rng.dirichlet(np.ones(12), 3).T
    apart = np.concatenate([corners, corners + 0.2], 1)
    np.testing.assert_array_equal(merge_duplicates(probabilities, apart, 0.5), probabilities)


@given(st.integers(0, 10**6), st.floats(0.05, 0.9))
def test_the_threshold_of_a_number_of_things_is_shared_out_to_them(seed: int, threshold: float):
    probabilities = np.random.default_rng(seed).dirichlet(np.full(12, 0.3), 3).T
    scores = for_each_thing(probabilities, [1, 2, 4])
    np.testing.assert_array_equal(scores[:, 0], probabilities[:, 0])
    assert [list(queries) for queries in select_queries(scores, None)] == [
        list(queries) for queries in select_queries(probabilities, None)
    ]
    for phrase, number in enumerate([1, 2, 4]):
        kept = select_queries(scores, threshold)[phrase]
        assert set(kept) == set(np.flatnonzero(probabilities[:, phrase] * number > threshold))
