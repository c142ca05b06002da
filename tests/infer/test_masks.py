"""Masks of phrases: logits of the chosen queries, resized to the canvas as torch does, then cut."""

import numpy as np
import pytest

from lgjax.infer import engine


def test_masks_are_resized_before_they_are_cut():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    embedding, features = rng.normal(size=(2, 5, 8)), rng.normal(size=(2, 6, 6, 8))
    queries = np.asarray([[3, 0, 3], [1, 4, 2]], np.int32)
    logits = np.einsum("bqc,bhwc->bqhw", embedding, features)
    full = torch.nn.functional.interpolate(torch.from_numpy(logits), scale_factor=4, mode="bilinear").numpy()
    wanted = np.take_along_axis(full, queries[..., None, None], 1)
    found = np.asarray(engine.masks_of(np.float32(embedding), np.float32(features), queries))
    assert found.shape == (2, 3, 24, 24) and found.dtype == bool
    clear = np.abs(wanted) > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], wanted[clear] > 0)
    steps = np.take_along_axis(logits, queries[..., None, None], 1).repeat(4, 2).repeat(4, 3) > 0
    assert (found != steps).mean() > 0.02  # cut first, it would be something else
