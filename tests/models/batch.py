"""A small batch for the joined model, with rows of different length, phrases and padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lgjax.config import debug
from lgjax.models import llava_grounding
from lgjax.models.llava_grounding import Inputs, LlavaGrounding
from lgjax.models.splice import plan_batch, plan_row
from tests.weights import fill

CONFIG = debug()
MODEL = LlavaGrounding(CONFIG)


@functools.cache
def parameters() -> dict:
    return fill(llava_grounding.abstract_params(CONFIG))


def rows(count: int):
    rng = np.random.default_rng(0)
    ids = [[1, 5, -200, 9, 535, 17, 802], [1, -200, 535, 7, 802, 8, 802, 3, 11, 4], [1, 5, 6, -200, 12, 802]]
    plans = [plan_row(row, CONFIG.clip.num_patches, 535) for row in ids[:count]]
    clip = rng.standard_normal((count, 28, 28, 3)).astype(np.float32)
    pixels = rng.standard_normal((count, 128, 128, 3)).astype(np.float32)
    prompts = rng.uniform(0.3, 0.6, (count, 1, 4)).astype(np.float32)
    return plans, clip, pixels, prompts


def inputs(plans, clip, pixels, prompts, *, length: int, phrases: int, regions: int) -> Inputs:
    plan = plan_batch(plans, length)
    where = [np.flatnonzero(row.tokens == 802) for row in plans]
    positions = np.zeros((len(plans), phrases), np.int32)
    mask = np.zeros((len(plans), phrases), bool)
    for i, found in enumerate(where):
        positions[i, : len(found)], mask[i, : len(found)] = found, True
    padded = np.pad(prompts, ((0, 0), (0, regions - 1), (0, 0)), constant_values=0.9)
    real = np.arange(regions)[None].repeat(len(plans), 0) < 1
    plan = plan._replace(**{name: jnp.asarray(getattr(plan, name)) for name in plan._fields})
    return Inputs(
        jnp.asarray(clip),
        jnp.asarray(pixels),
        plan,
        jnp.asarray(positions),
        jnp.asarray(mask),
        jnp.asarray(padded),
        jnp.ones((len(plans), regions), jnp.int32),
        jnp.asarray(real),
    )


@jax.jit
def forward(params: dict, batch: Inputs):
    return MODEL.apply({"params": params}, batch, 20)


def assert_close(got, want, relative: float = 1e-5) -> None:
    """Hold the norm of the difference against the norm of the wanted values."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error < relative, f"relative difference {error:.1e}"
