"""Products with raw bfloat16 weights: right numbers, and no float32 copy of the weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.models.llama import Llama, init_cache
from lgjax.models.matmul import bfloat16_bits, matmul, matmul_transposed, widen
from tests.models.tiny_llama import BASE, parameter_shapes


def random_bits(rng, shape) -> tuple[jax.Array, np.ndarray]:
    value = jnp.asarray(rng.standard_normal(shape, np.float32)).astype(jnp.bfloat16)
    return bfloat16_bits({"kernel": value})["kernel"], np.asarray(value.astype(jnp.float32))


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 3), size=st.sampled_from([1, 15, 16, 37, 256, 300, 513]), out=st.integers(1, 40))
def test_equals_float64(rows, size, out):
    rng = np.random.default_rng(size)
    bits, value = random_bits(rng, (size, out))
    x = rng.standard_normal((rows, size), np.float32)
    want = x.astype(np.float64) @ value.astype(np.float64)
    bound = 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(value)) + 1e-7
    assert (np.abs(matmul(jnp.asarray(x), bits) - want) <= bound).all()
    table, rest = random_bits(rng, (out, size))
    want = x.astype(np.float64) @ rest.T
    bound = 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(rest.T)) + 1e-7
    assert (np.abs(matmul_transposed(jnp.asarray(x), table) - want) <= bound).all()


def test_batch_shapes_dtypes_and_plain_kernels():
    rng = np.random.default_rng(0)
    bits, value = random_bits(rng, (40, 7))
    x = jnp.asarray(rng.standard_normal((2, 3, 40), np.float32))
    assert matmul(x, bits).shape == (2, 3, 7)
    assert matmul(x.astype(jnp.bfloat16), bits).dtype == jnp.bfloat16
    np.testing.assert_allclose(matmul(x, jnp.asarray(value)), matmul(x, bits), rtol=0, atol=1e-4)
    half = jnp.asarray(value).astype(jnp.bfloat16)
    np.testing.assert_allclose(matmul(x, half), matmul(x, bits), rtol=0, atol=1e-4)


def test_every_bit_pattern_widens_exactly():
    bits = np.arange(2**16, dtype=np.uint16)
    want = bits.view(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(widen(jnp.asarray(bits))).view(np.uint32), want.view(np.uint32))


def test_bits_take_only_matrices():
    half = jnp.ones((4, 4), jnp.bfloat16)
    params = {
        "embed_tokens": half,
        "norm": {"scale": jnp.ones(4, jnp.bfloat16)},
        "patch": {"kernel": jnp.ones((2, 2, 3, 4), jnp.bfloat16)},
        "q_proj": {"kernel": half, "bias": jnp.ones(4, jnp.bfloat16)},
        "full": {"kernel": jnp.ones((4, 4))},
        "position_embedding": half,
    }
    got = jax.tree.map(lambda leaf: leaf.dtype.name, bfloat16_bits(params))
    assert got == {
        "embed_tokens": "uint16",
        "norm": {"scale": "bfloat16"},
        "patch": {"kernel": "bfloat16"},
        "q_proj": {"kernel": "uint16", "bias": "bfloat16"},
        "full": {"kernel": "float32"},
        "position_embedding": "bfloat16",
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens", [1, 40])
def test_no_copy_of_the_weights(tied, tokens):
    """A step and a whole loop of steps need far less working memory than one float32 copy of the weights."""
    config = dataclasses.replace(
        BASE,
        vocab_size=6000,
        hidden_size=512,
        mlp_size=1536,
        num_layers=4,
        head_dim=128,
        tie_embeddings=tied,
    )
    model = Llama(config)

    def stored(path, leaf):
        matrix = path[-1].key in ("kernel", "embed_tokens")
        return jax.ShapeDtypeStruct(leaf.shape, jnp.uint16 if matrix else jnp.bfloat16)

    params = jax.tree_util.tree_map_with_path(stored, parameter_shapes(config))
    weights = sum(leaf.size * 2 for leaf in jax.tree.leaves(params))

    def steps(params, ids, cache):
        def step(_, carry):
            ids, cache = carry
            variables = {"params": params}
            embeds = model.apply(variables, ids, method="embed")
            positions = jnp.broadcast_to(jnp.arange(tokens), ids.shape)
            hidden, cache = model.apply(variables, embeds, positions, cache=cache)
            return model.apply(variables, hidden, method="logits").argmax(-1), cache

        return jax.lax.fori_loop(0, 3, step, (ids, cache))

    ids, cache = jnp.zeros((1, tokens), jnp.int32), init_cache(config, 1, 64)
    compiled = jax.jit(steps, donate_argnums=2).lower(params, ids, cache).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < weights / 4
