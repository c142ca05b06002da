"""Deformable attention against a float64 loop over points, and its gradient against plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.models import deformable
from lgjax.models.deformable import DeformableAttention, multi_scale_deformable_attention, sample_then_project
from lgjax.models.position import level_starts
from tests.train.counting import traced_flops

SIZES = ((5, 7), (3, 4), (1, 2))


def inputs(seed: int, batch: int = 2, queries: int = 3, heads: int = 2, channels: int = 4, points: int = 2):
    rng = np.random.default_rng(seed)
    tokens = sum(h * w for h, w in SIZES)
    value = rng.standard_normal((batch, tokens, heads, channels))
    locations = rng.uniform(-0.3, 1.3, (batch, queries, heads, len(SIZES), points, 2))
    # the gradient jumps where a coordinate crosses a pixel centre: keep samples away from it
    scale = np.asarray([(w, h) for h, w in SIZES])[:, None]
    pixels = locations * scale - 0.5
    near = np.abs(pixels - np.round(pixels)) < 1e-2
    locations = np.where(near, (np.round(pixels) + 0.3 + 0.5) / scale, locations)
    weights = rng.random((batch, queries, heads, len(SIZES), points))
    return [np.float32(x) for x in (value, locations, weights)]


def loop_reference(value, locations, weights) -> np.ndarray:
    batch, queries, heads, levels, points, _ = locations.shape
    out = np.zeros((batch, queries, heads, value.shape[-1]))
    starts = level_starts(SIZES)
    for b, q, m, level, p in np.ndindex(batch, queries, heads, levels, points):
        height, width = SIZES[level]
        x, y = locations[b, q, m, level, p].astype(np.float64) * (width, height) - 0.5
        x0, y0 = int(np.floor(x)), int(np.floor(y))
        for yi, xi in ((y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1)):
            if 0 <= yi < height and 0 <= xi < width:
                share = (1 - abs(x - xi)) * (1 - abs(y - yi)) * weights[b, q, m, level, p]
                out[b, q, m] += share * value[b, starts[level] + yi * width + xi, m]
    return out.reshape(batch, queries, -1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_sampling_equals_a_loop_in_float64(seed: int):
    arrays = inputs(seed)
    got = multi_scale_deformable_attention(*map(jnp.asarray, arrays), SIZES)
    np.testing.assert_allclose(got, loop_reference(*arrays), atol=5e-6)


def naive(value, locations, weights):
    """The same sum written with dense hat functions, for autodiff."""
    total, start = 0.0, 0
    for level, (height, width) in enumerate(SIZES):
        pixels = locations[:, :, :, level] * jnp.asarray([width, height]) - 0.5
        hat_x = jnp.maximum(0, 1 - jnp.abs(pixels[..., 0, None] - jnp.arange(width)))
        hat_y = jnp.maximum(0, 1 - jnp.abs(pixels[..., 1, None] - jnp.arange(height)))
        part = value[:, start : start + height * width]
        part = part.reshape(value.shape[0], height, width, *value.shape[2:])
        total = total + jnp.einsum(
            "bqmpy,bqmpx,bqmp,byxmc->bqmc", hat_y, hat_x, weights[:, :, :, level], part
        )
        start += height * width
    return total.reshape(*total.shape[:2], -1)


def test_gradient_equals_autodiff_of_the_dense_form():
    arrays = [jnp.asarray(x) for x in inputs(7)]
    direction = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 8)), jnp.float32)

    def ours(*x):
        return (multi_scale_deformable_attention(*x, SIZES) * direction).sum()

    def dense(*x):
        return (naive(*x) * direction).sum()

    for got, want in zip(
        jax.grad(ours, (0, 1, 2))(*arrays), jax.grad(dense, (0, 1, 2))(*arrays), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=2e-5)


def unprojected(seed: int):
    """Tokens of 6 channels, and kernel and bias that make the values of two heads of 4 of them."""
    rng = np.random.default_rng(seed)
    _, locations, weights = inputs(seed)
    tokens = rng.standard_normal((2, sum(h * w for h, w in SIZES), 6))
    kernel, bias = rng.standard_normal((6, 8)), rng.standard_normal(8)
    return [np.float32(x) for x in (tokens, kernel, bias, locations, weights)]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_values_may_be_projected_after_sampling(seed: int):
    """With samples outside the maps, where a value is zero and not the bias."""
    tokens, kernel, bias, *where = unprojected(seed)
    got = sample_then_project(*map(jnp.asarray, (tokens, kernel, bias, *where)), SIZES)
    value = (np.float64(tokens) @ kernel + bias).reshape(2, -1, 2, 4)
    np.testing.assert_allclose(got, loop_reference(value, *where), atol=3e-5)


def test_gradients_of_values_projected_after_sampling():
    arrays = [jnp.asarray(x) for x in unprojected(7)]
    direction = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 8)), jnp.float32)

    def ours(*x):
        return (sample_then_project(*x, SIZES) * direction).sum()

    def dense(tokens, kernel, bias, *where):
        return (naive((tokens @ kernel + bias).reshape(2, -1, 2, 4), *where) * direction).sum()

    everything = tuple(range(5))
    for got, want in zip(
        jax.grad(ours, everything)(*arrays), jax.grad(dense, everything)(*arrays), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_module_projects_what_few_queries_have_read(monkeypatch):
    """Same results, and next to no arithmetic over the tokens."""
    sizes, width = ((16, 16), (8, 8)), 32
    tokens = sum(h * w for h, w in sizes)
    rng = np.random.default_rng(0)
    query, value = (jnp.asarray(rng.standard_normal((2, n, width)), jnp.float32) for n in (2, tokens))
    reference = jnp.asarray(rng.uniform(0, 1, (2, 2, 1, 4)), jnp.float32)
    attention = DeformableAttention(num_heads=4, num_levels=2, num_points=2)
    params = attention.init(jax.random.key(0), query, reference, value, sizes)["params"]
    params["value_proj"]["bias"] = jnp.asarray(rng.standard_normal(width), jnp.float32)

    def run():
        def apply(params, query, value):  # a new one is traced anew
            return attention.apply({"params": params}, query, reference, value, sizes)

        return traced_flops(apply, params, query, value), apply(params, query, value)

    few, got = run()
    monkeypatch.setattr(deformable, "READ", 10**9)
    every, want = run()
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert every - few == 2 * 2 * (tokens - 2) * width * width


@pytest.mark.parametrize("function", [multi_scale_deformable_attention, sample_then_project])
def test_wrong_number_of_tokens_is_refused(function):
    value, locations, weights = inputs(0)
    projected = function is sample_then_project
    given = unprojected(0)[:3] if projected else [value]
    given[0] = given[0][:, :-1]
    with pytest.raises(ValueError, match="tokens"):
        function(*map(jnp.asarray, (*given, locations, weights)), SIZES)


def test_memory_of_an_encoder_layer_stays_small():
    """21,760 queries: all gathered rows at once would take 1.4 GB; the scan must stay far below."""
    sizes = ((128, 128), (64, 64), (32, 32), (16, 16))
    tokens = sum(h * w for h, w in sizes)
    shape = jax.ShapeDtypeStruct
    arguments = (
        shape((1, tokens, 8, 32), jnp.float32),
        shape((1, tokens, 8, 4, 4, 2), jnp.float32),
        shape((1, tokens, 8, 4, 4), jnp.float32),
    )
    compiled = (
        jax.jit(lambda v, p, w: multi_scale_deformable_attention(v, p, w, sizes)).lower(*arguments).compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 128 * 2**20
