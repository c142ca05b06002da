"""Word losses against numpy in float64, names as phrases against loops."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lgjax.losses.words import (
    NOTHING_WEIGHT,
    SHARPNESS,
    mean_word_loss,
    name_phrases,
    sphere,
    table_logits,
    word_loss,
)


def test_logits_are_scaled_cosines():
    rng = np.random.default_rng(0)
    states, table = rng.normal(size=(3, 5, 8)), rng.normal(size=(11, 8)) * 0.02
    found = table_logits(jnp.asarray(states), jnp.asarray(table))
    cosine = np.einsum("abd,vd->abv", states, table)
    cosine /= np.linalg.norm(states, axis=-1)[..., None] * np.linalg.norm(table, axis=-1)
    np.testing.assert_allclose(found, SHARPNESS * cosine, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(sphere(jnp.asarray(states)), axis=-1), np.sqrt(8), rtol=1e-5)


def test_zero_states_have_a_gradient():
    table = jnp.eye(4)
    slope = jax.grad(lambda states: mean_word_loss(table_logits(states, table), jnp.asarray([1]), 0))
    assert np.isfinite(slope(jnp.zeros((1, 4)))).all()


def test_loss_is_the_weighted_cross_entropy():
    rng = np.random.default_rng(1)
    logits, words = rng.normal(size=(6, 9)) * 3, jnp.asarray([4, 0, -1, 8, 0, 2])
    given = jnp.asarray(logits)
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weights = [1, NOTHING_WEIGHT, 0, 1, NOTHING_WEIGHT, 1]
    wanted = [
        -w * row[max(word, 0)] for w, row, word in zip(weights, log_softmax, words.tolist(), strict=True)
    ]
    np.testing.assert_allclose(word_loss(given, words, 0), wanted, rtol=1e-5)
    np.testing.assert_allclose(mean_word_loss(given, words, 0), np.sum(wanted) / 5, rtol=1e-5)
    assert mean_word_loss(given, jnp.full(6, -1), 0) == 0


@settings(deadline=None, max_examples=60)
@given(
    words=hnp.arrays(np.int32, (2, 6), elements=st.integers(-1, 3)),
    real=hnp.arrays(bool, (2, 6)),
)
def test_each_name_is_a_phrase_of_all_its_objects(words, real):
    found = name_phrases(jnp.asarray(words), jnp.asarray(real))
    for b in range(2):
        seen: dict[int, int] = {}
        for i in range(6):
            if real[b, i] and words[b, i] >= 0:
                seen.setdefault(words[b, i], i)
        assert set(np.flatnonzero(found.mask[b])) == set(seen.values())
        for i in range(6):
            known = real[b, i] and words[b, i] >= 0
            assert set(np.flatnonzero(found.objects[b, i])) == ({seen[words[b, i]]} if known else set())
