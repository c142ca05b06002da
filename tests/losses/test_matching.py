"""Assignments against scipy: optimal on random, degenerate, padded and rectangular problems."""

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from lgjax.losses.matching import assign, assign_all

one = jax.jit(assign)
many = jax.jit(assign_all)


def check(cost: np.ndarray, count: int, found: np.ndarray) -> None:
    """Valid, and no dearer than scipy's."""
    queries = cost.shape[1]
    assert (found[count:] == -1).all()
    matched = np.flatnonzero(found >= 0)
    assert len(matched) == min(count, queries) and len(set(found[matched])) == len(matched)
    rows, columns = linear_sum_assignment(cost[:count].astype(np.float64))
    best = cost[rows, columns].astype(np.float64).sum()
    total = cost[matched, found[matched]].astype(np.float64).sum()
    assert total <= best + 1e-4 * (1 + abs(best))


def costs(rng: np.random.Generator, n: int, t: int, q: int, kind: str) -> np.ndarray:
    if kind == "independent":
        return rng.normal(size=(n, t, q)).astype(np.float32)
    if kind == "shared":  # all objects want the same queries, as in training
        return (rng.normal(size=(n, t, q)) * 0.1 + 5 * rng.normal(size=(n, 1, q))).astype(np.float32)
    return rng.integers(0, 3, (n, t, q)).astype(np.float32)  # ties


@pytest.mark.parametrize("kind", ["independent", "shared", "ties"])
@pytest.mark.parametrize(("t", "q"), [(1, 7), (6, 6), (12, 40), (9, 4)])
def test_random_problems(kind, t, q):
    rng = np.random.default_rng(t * q)
    problems = costs(rng, 200, t, q, kind)
    counts = rng.integers(0, t + 1, 200).astype(np.int32)
    for cost, count, found in zip(problems, counts, np.asarray(many(problems, counts)), strict=True):
        check(cost, int(count), found)


@pytest.mark.parametrize("queries", [20, 4])
def test_padding_holds_anything(queries):
    rng = np.random.default_rng(0)
    cost = costs(rng, 1, 8, queries, "shared")[0]
    want = np.asarray(one(cost, 5))
    for junk in (np.nan, np.inf, -1e30, 0.0):
        padded = cost.copy()
        padded[5:] = junk
        assert np.array_equal(one(padded, 5), want)


def test_in_step_and_one_after_the_other_agree():
    rng = np.random.default_rng(1)
    problems = costs(rng, 30, 10, 25, "shared")
    counts = rng.integers(0, 11, 30).astype(np.int32)
    assert np.array_equal(jax.jit(jax.vmap(assign))(problems, counts), many(problems, counts))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_costs_that_are_not_finite_end_the_search(bad):
    cost = costs(np.random.default_rng(2), 1, 6, 9, "independent")[0]
    cost[:, 3] = bad
    cost[2] = bad
    found = np.asarray(one(cost, 6))
    assert len(set(found.tolist())) == 6 and (found >= 0).all()
    assert 3 not in np.delete(found, 2)


@pytest.mark.parametrize(("t", "q"), [(20, 8), (8, 20), (6, 1)])
def test_what_cannot_be_used_is_the_last_choice(t, q):
    """As few as must be of costs that are not finite, and the least total of the others."""
    rng = np.random.default_rng(4)
    problems = costs(rng, 200, t, q, "shared")
    problems[rng.random(problems.shape) < 0.4] = np.inf
    problems[rng.random(problems.shape) < 0.1] = np.nan
    counts = rng.integers(1, t + 1, 200).astype(np.int32)
    for cost, count, found in zip(problems, counts, np.asarray(many(problems, counts)), strict=True):
        usable = np.isfinite(cost)
        plain = np.where(usable, cost, 1e6).astype(np.float64)
        check(plain, int(count), found)
        matched = np.flatnonzero(found >= 0)
        rows, columns = linear_sum_assignment(plain[:count])
        best, taken = plain[rows, columns], plain[matched, found[matched]]
        assert (taken == 1e6).sum() == (best == 1e6).sum()
        np.testing.assert_allclose(taken[taken < 1e6].sum(), best[best < 1e6].sum(), atol=1e-3)


@pytest.mark.slow
def test_training_sizes():
    rng = np.random.default_rng(3)
    problems = costs(rng, 88, 100, 300, "shared")
    counts = rng.integers(0, 101, 88).astype(np.int32)
    for cost, count, found in zip(problems, counts, np.asarray(many(problems, counts)), strict=True):
        check(cost, int(count), found)
