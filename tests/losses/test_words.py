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
    choice_loss,
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


def test_phrases_choose_their_queries():
    """Against loops in float64; padded phrases, those without a query do not count."""
    rng = np.random.default_rng(2)
    logits, positive = rng.normal(size=(2, 7, 4)) * 4, rng.random((2, 7, 4)) < 0.3
    positive[0, :, 1], positive[0, 2, 0], positive[1, 0, 3] = False, True, True
    mask = np.asarray([[True, True, True, False], [True, False, False, True]])
    logits[~np.broadcast_to(mask[:, None], logits.shape)] = -100
    wanted = np.zeros(2)
    for b, p in zip(*np.nonzero(mask), strict=True):
        chance = np.exp(logits[b, :, p]) / np.exp(logits[b, :, p]).sum()
        own = positive[b, :, p]
        if own.any():
            wanted[b] -= np.log(chance[own]).mean()
    inputs = jnp.asarray(logits), jnp.asarray(positive), jnp.asarray(mask)
    np.testing.assert_allclose(choice_loss(*inputs), wanted, rtol=1e-5)
    slope = jax.grad(lambda logits: choice_loss(logits, *inputs[1:]).sum())(inputs[0])
    assert np.isfinite(slope).all() and not np.any(np.asarray(slope).swapaxes(1, 2)[~mask])


def test_the_best_choice_is_an_even_one():
    """Two queries of a phrase share its probability: the loss is log 2, and nowhere less."""
    positive = jnp.asarray([[[True], [True], [False]]])
    least = choice_loss(jnp.asarray([[[20.0], [20.0], [-20.0]]]), positive, jnp.ones((1, 1), bool))
    np.testing.assert_allclose(least, np.log(2), rtol=1e-5)
    uneven = choice_loss(jnp.asarray([[[21.0], [20.0], [-20.0]]]), positive, jnp.ones((1, 1), bool))
    assert float(uneven[0]) > float(least[0])


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
