"""The chunked loss against the whole one in float64, whatever the chunk; rows that do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.config import IGNORE_LABEL
from lgjax.losses.language import language_loss

RNG = np.random.default_rng(0)
HEAD = RNG.normal(size=(8, 11)).astype(np.float32)
HIDDEN = RNG.normal(size=(3, 13, 8)).astype(np.float32)
LABELS = np.where(RNG.random((3, 13)) < 0.4, IGNORE_LABEL, RNG.integers(0, 11, (3, 13))).astype(np.int32)


def loss(hidden, weights, chunk: int = 4, labels=LABELS, label_weights=None):
    rows = jnp.asarray(weights, jnp.float32)
    return language_loss(hidden, jnp.asarray(labels), lambda h: h @ HEAD, rows, chunk, label_weights)


def whole(weights) -> tuple[float, int]:
    total, count = 0.0, 0
    for row, weight in enumerate(weights):
        for t in range(12):
            if LABELS[row, t + 1] != IGNORE_LABEL and weight:
                scores = HIDDEN[row, t].astype(np.float64) @ HEAD
                total += np.log(np.exp(scores).sum()) - scores[LABELS[row, t + 1]]
                count += 1
    return total, count


@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 64])
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 0, 1), (0, 0, 0)])
def test_sum_and_count(chunk, weights):
    total, count = loss(jnp.asarray(HIDDEN), weights, chunk)
    want, number = whole(weights)
    assert count == number
    np.testing.assert_allclose(total, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [4, 5, 64])
def test_labels_may_weigh_more(chunk):
    """A weight belongs to the label, not to the state that predicts it."""
    shares = RNG.uniform(0.5, 4, LABELS.shape).astype(np.float32)
    found = loss(jnp.asarray(HIDDEN), (1, 0, 2), chunk, label_weights=jnp.asarray(shares))
    total = weights = 0.0
    for row, t in np.ndindex(3, 12):
        if LABELS[row, t + 1] != IGNORE_LABEL:
            scores = HIDDEN[row, t].astype(np.float64) @ HEAD
            weight = (1, 0, 2)[row] * float(shares[row, t + 1])
            total += weight * (np.log(np.exp(scores).sum()) - scores[LABELS[row, t + 1]])
            weights += weight
    np.testing.assert_allclose(found, (total, weights), rtol=1e-5)


def test_gradients_do_not_depend_on_the_chunk():
    def grad(chunk: int):
        return jax.grad(lambda hidden: loss(hidden, (1, 1, 1), chunk)[0])(jnp.asarray(HIDDEN))

    np.testing.assert_allclose(grad(3), grad(13), atol=1e-6)


def test_padding_changes_nothing():
    longer = np.pad(HIDDEN, ((0, 1), (0, 6), (0, 0)), constant_values=3.0)
    labels = np.pad(LABELS, ((0, 1), (0, 6)), constant_values=IGNORE_LABEL)
    found = loss(jnp.asarray(longer), (1, 1, 1, 1), labels=labels)
    np.testing.assert_allclose(found, loss(jnp.asarray(HIDDEN), (1, 1, 1)), rtol=1e-6)
