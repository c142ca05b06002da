"""What models share, against plain float64."""

import jax
import numpy as np

from lgjax.models.decoder import mask_logits
from lgjax.models.layers import GroupNorm
from lgjax.models.position import sine_box_code


def test_masks_are_products_of_embeddings_and_pixels():
    rng = np.random.default_rng(1)
    embedding, features = (rng.normal(size=size).astype(np.float32) for size in ((2, 3, 8), (2, 5, 4, 8)))
    expected = np.einsum("bqc,bhwc->bqhw", *(x.astype(np.float64) for x in (embedding, features)))
    np.testing.assert_allclose(jax.jit(mask_logits)(embedding, features), expected, rtol=0, atol=1e-5)
    assert jax.jit(mask_logits)(embedding[:, :0], features).shape == (2, 0, 5, 4)


def test_box_codes_are_sines_and_cosines_in_turn():
    boxes = np.random.default_rng(2).uniform(size=(2, 3, 4)).astype(np.float32)
    angles = 2 * np.pi * boxes[..., [1, 0, 2, 3], None] / 10000.0 ** (np.arange(0, 8, 2) / 8)
    expected = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(2, 3, 32)
    np.testing.assert_allclose(
        jax.jit(sine_box_code, static_argnums=1)(boxes, 8), expected, rtol=0, atol=1e-6
    )


def test_group_norm_of_a_large_map_far_from_zero():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (2, 128, 96, 24)).astype(np.float32) * np.arange(1, 25, dtype=np.float32)
    scale, bias = rng.normal(size=(2, 24)).astype(np.float32)
    found = jax.jit(GroupNorm(groups=6).apply)({"params": {"scale": scale, "bias": bias}}, x)
    grouped = x.astype(np.float64).reshape(2, -1, 6, 4)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6)
