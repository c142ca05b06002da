"""The visual-prompt model's promises: padding, batching, and which prompts see each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.config import debug
from lgjax.models.grounding import pad_images
from lgjax.models.prompting import Prompting
from tests.models.batch import assert_close
from tests.weights import random_parameters

MODEL = Prompting(debug().prompt, embed_size=24)
RNG = np.random.default_rng(0)
PIXELS = pad_images([RNG.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(2)])
PROMPTS = RNG.uniform(0.2, 0.7, (2, 3, 4)).astype(np.float32)
KINDS = np.asarray([[0, 1, 1], [1, 0, 0]], np.int32)


@functools.cache
def parameters() -> dict:
    one = jnp.ones((1, 1), jnp.int32)
    return random_parameters(MODEL, jnp.zeros((1, 64, 64, 3)), jnp.full((1, 1, 4), 0.5), one, one == 1)


@functools.partial(jax.jit, static_argnames="separate")
def run(params, pixels, prompts, kinds, mask, separate: bool):
    objects, predictions, _ = MODEL.apply({"params": params}, pixels, prompts, kinds, mask, separate)
    return objects, predictions[-1].mask_embedding, predictions[-1].boxes


def real(prompts: np.ndarray) -> np.ndarray:
    return np.ones(prompts.shape[:2], bool)


@pytest.mark.parametrize("separate", [False, True])
def test_padded_prompts_change_nothing(separate: bool):
    plain = run(parameters(), PIXELS, PROMPTS, KINDS, real(PROMPTS), separate=separate)
    padded = np.concatenate([PROMPTS, np.full((2, 2, 4), 0.9, np.float32)], 1)
    kinds, mask = np.pad(KINDS, ((0, 0), (0, 2))), np.pad(real(PROMPTS), ((0, 0), (0, 2)))
    for got, want in zip(
        run(parameters(), PIXELS, padded, kinds, mask, separate=separate), plain, strict=True
    ):
        assert_close(got[:, :3], want)
        assert np.isfinite(got).all()


@pytest.mark.parametrize("separate", [False, True])
def test_batch_equals_one_image_at_a_time(separate: bool):
    together = run(parameters(), PIXELS, PROMPTS, KINDS, real(PROMPTS), separate=separate)
    for i in range(2):
        part = slice(i, i + 1)
        alone = run(
            parameters(), PIXELS[part], PROMPTS[part], KINDS[part], real(PROMPTS[part]), separate=separate
        )
        for got, want in zip(together, alone, strict=True):
            assert_close(got[part], want)


def test_prompts_see_each_other_unless_separate():
    one = PROMPTS[:1, :1], KINDS[:1, :1], real(PROMPTS[:1, :1])
    alone = run(parameters(), PIXELS[:1], *one, separate=True)[0][0, 0]
    for separate in (True, False):
        among = run(parameters(), PIXELS, PROMPTS, KINDS, real(PROMPTS), separate=separate)[0][0, 0]
        error = np.linalg.norm(among - alone) / np.linalg.norm(alone)
        assert error < 1e-5 if separate else error > 1e-3


def test_clicks_and_boxes_are_read_differently():
    boxes = run(parameters(), PIXELS, PROMPTS, np.ones_like(KINDS), real(PROMPTS), separate=True)[0]
    clicks = run(parameters(), PIXELS, PROMPTS, np.zeros_like(KINDS), real(PROMPTS), separate=True)[0]
    assert np.linalg.norm(boxes - clicks) / np.linalg.norm(boxes) > 1e-2
