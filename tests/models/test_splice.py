"""Splicing against a reference that cuts and joins Python lists, and the faults it must report."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.config import IGNORE_LABEL, IMAGE_TOKEN
from lgjax.models.splice import plan_batch, plan_row, splice

PATCHES, WIDTH, MARK = 3, 4, 7

rows = st.lists(
    st.tuples(
        st.lists(st.one_of(st.just(IMAGE_TOKEN), st.just(MARK), st.integers(0, 20)), min_size=1, max_size=9),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=4,
)


def word(token: int) -> np.ndarray:
    return np.sin(token + np.arange(WIDTH)).astype(np.float32)


def embed(ids):
    assert np.asarray(ids).min() >= 0
    return jnp.asarray(np.sin(np.asarray(ids)[..., None] + np.arange(WIDTH)).astype(np.float32))


def reference(batch, images, objects, in_order):
    """Walk through the tokens one by one, as the description of the original reads."""
    embeds, labels = [], []
    for row, ids in enumerate(batch):
        vectors, targets, used, nth = [], [], 0, 0
        last = max((i for i, token in enumerate(ids) if token == IMAGE_TOKEN), default=None)
        for i, token in enumerate(ids):
            if token == IMAGE_TOKEN:
                vectors.extend(images[row, used])
                targets.extend([IGNORE_LABEL] * PATCHES)
                used += 1
            elif token == MARK and last is not None and i > last:
                vectors.append(objects[row][nth if in_order else 0])
                targets.append(IGNORE_LABEL)
                nth += 1
            else:
                vectors.append(word(token))
                targets.append(token)
        embeds.append(np.array(vectors))
        labels.append(targets)
    return embeds, labels


@settings(max_examples=60, deadline=None)
@given(rows=rows, in_order=st.booleans(), padding=st.integers(0, 5))
def test_equals_list_reference(rows, in_order, padding):
    batch = [ids for ids, _ in rows]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(len(batch), 9, PATCHES, WIDTH)).astype(np.float32)
    objects = rng.normal(size=(len(batch), 9, WIDTH)).astype(np.float32)
    want, labels = reference(batch, images, objects, in_order)
    plans = []
    for ids in batch:
        last = max((i for i, token in enumerate(ids) if token == IMAGE_TOKEN), default=len(ids))
        marks = sum(token == MARK for token in ids[last:]) if in_order else None
        plans.append(plan_row(ids, PATCHES, MARK, num_objects=marks, labels=ids))
    longest = max(len(row) for row in want)
    plan = plan_batch(plans, longest + padding)
    got = np.asarray(
        splice(embed, plan, jnp.asarray(images.reshape(len(batch), -1, WIDTH)), jnp.asarray(objects))
    )
    assert got.shape == (len(batch), longest + padding, WIDTH)
    for i, row in enumerate(want):
        n = len(row)
        assert plan.lengths[i] == n
        np.testing.assert_array_equal(got[i, :n], row)
        np.testing.assert_array_equal(got[i, n:], 0)
        np.testing.assert_array_equal(plan.labels[i], labels[i] + [IGNORE_LABEL] * (longest + padding - n))
        np.testing.assert_array_equal(plan.mask[i], np.arange(longest + padding) < n)


def test_without_percent_id_a_mark_is_a_word():
    plan = plan_batch([plan_row([1, IMAGE_TOKEN, MARK], PATCHES, labels=[1, IMAGE_TOKEN, MARK])])
    assert plan.tokens[0].tolist() == [1, -1, -1, -1, MARK]
    assert plan.labels[0].tolist() == [1, *[IGNORE_LABEL] * PATCHES, MARK]
    assert (plan.objects == -1).all()


def test_collator_padding_stays_masked():
    row = plan_row([5, IMAGE_TOKEN, 6, 0, 0], PATCHES, mask=[True, True, True, False, False])
    assert plan_batch([row]).mask[0].tolist() == [True] * 5 + [False] * 2


def test_text_only_needs_no_features():
    plan = plan_batch([plan_row([4, 5], PATCHES), plan_row([6], PATCHES)])
    got = splice(embed, plan)
    np.testing.assert_array_equal(got, [[word(4), word(5)], [word(6), np.zeros(WIDTH)]])


def test_dtype_is_that_of_the_words():
    plan = plan_batch([plan_row([4, IMAGE_TOKEN, MARK], PATCHES, MARK)])
    half = splice(
        lambda ids: embed(ids).astype(jnp.bfloat16),
        plan,
        jnp.ones((1, PATCHES, WIDTH)),
        jnp.ones((1, 1, WIDTH)),
    )
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: plan_row([1, IMAGE_TOKEN, MARK, MARK], PATCHES, MARK, num_objects=1),
            "1 object features for 2",
        ),
        (
            lambda: plan_row([MARK, IMAGE_TOKEN], PATCHES, MARK, num_objects=1),
            "1 object features for 0 marks",
        ),
        (lambda: plan_row([MARK, 4], PATCHES, MARK, num_objects=1), "1 object features for 0 marks"),
        (lambda: plan_row([1, 2], PATCHES, labels=[1]), "2 token ids, but 1 labels"),
        (lambda: plan_batch([plan_row([1, IMAGE_TOKEN], PATCHES)], 3), "4 positions, more than the 3"),
    ],
)
def test_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
