"""LLaMA against Hugging Face, and its three uses (training, prefill, decoding) against each other."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.models.kernels import lay_out_for_cpu
from lgjax.models.layers import stack_layers, unstack_layers
from lgjax.models.llama import Llama, attend_cache, init_cache, rope_frequencies, stack_packed
from tests.models.kernels import FORMS, PACKED
from tests.models.tiny_llama import BASE, CONFIGS, hugging_face, parameters, random_parameters

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def forward(model, params, ids, positions=None, mask=None):
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)

    @jax.jit
    def run(params, ids, positions, mask):
        variables = {"params": params}
        embeds = model.apply(variables, ids, method="embed")
        hidden, _ = model.apply(variables, embeds, positions, mask)
        return hidden, model.apply(variables, hidden, method="logits")

    return jax.tree.map(np.asarray, run(params, ids, positions, mask))


@functools.partial(jax.jit, static_argnums=0)
def cached(model, params, embeds, positions, cache):
    return model.apply({"params": params}, embeds, positions, cache=cache)


def packed_parameters(form, config=None):
    """Random parameters with kernels of a packed form; those that 4 bits do not divide do not occur."""

    def stored(path, leaf):
        return FORMS[form](leaf) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(stored, random_parameters(config or WIDE))


def copied(params):
    """The same arrays in dicts of their own."""
    return {name: copied(leaf) if isinstance(leaf, dict) else leaf for name, leaf in params.items()}


def random_ids(batch, length, seed=0):
    return np.random.default_rng(seed).integers(3, BASE.vocab_size, (batch, length))


@every_config
def test_equals_hugging_face(config):
    torch = pytest.importorskip("torch")
    theirs = hugging_face(config)
    params = parameters(theirs, config)
    ids, lengths = random_ids(3, 17), np.array([17, 9, 1])
    mask = np.arange(17) < lengths[:, None]
    hidden, logits = forward(Llama(config), params, ids, mask=jnp.asarray(mask))
    with torch.no_grad():
        want = theirs(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long(), output_hidden_states=True
        )
    np.testing.assert_allclose(hidden[mask], want.hidden_states[-1].numpy()[mask], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[mask], want.logits.numpy()[mask], rtol=0, atol=1e-4)


@every_config
def test_far_positions_equal_hugging_face(config):
    torch = pytest.importorskip("torch")
    theirs = hugging_face(config)
    np.testing.assert_allclose(
        rope_frequencies(config), theirs.model.rotary_emb.inv_freq.numpy(), rtol=1e-6, atol=0
    )
    ids, positions = random_ids(1, 9), np.array([[0, 1, 2, 90, 91, 300, 301, 302, 400]])
    _, logits = forward(Llama(config), parameters(theirs, config), ids, positions)
    with torch.no_grad():
        want = theirs(torch.from_numpy(ids), position_ids=torch.from_numpy(positions)).logits.numpy()
    np.testing.assert_allclose(logits, want, rtol=0, atol=2e-4)


@every_config
def test_cached_steps_equal_full_forward(config):
    """Rows of different lengths, garbage in the padding of the prefill, then one token at a time."""
    model, params = Llama(config), random_parameters(config)
    ids, lengths = random_ids(3, 20, seed=1), np.array([7, 3, 12])
    want, _ = forward(model, params, ids)
    variables = {"params": params}
    embeds = np.array(model.apply(variables, jnp.asarray(ids), method="embed"))
    prompt = embeds[:, :14].copy()
    for row, length in enumerate(lengths):
        prompt[row, length:] = np.random.default_rng(2).normal(0, 1e3, prompt[row, length:].shape)
    cache = init_cache(config, 3, 20)
    positions = jnp.broadcast_to(jnp.arange(14), (3, 14))
    hidden, cache = cached(model, params, jnp.asarray(prompt), positions, cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(hidden[row, :length], want[row, :length], rtol=0, atol=2e-5)
    for offset in range(8):
        at = lengths + offset
        x = jnp.asarray(embeds[np.arange(3), at][:, None])
        hidden, cache = cached(model, params, x, jnp.asarray(at[:, None]), cache)
        np.testing.assert_allclose(hidden[:, 0], want[np.arange(3), at], rtol=0, atol=2e-5)


@pytest.mark.parametrize("queries", [1, 5, 70])
@pytest.mark.parametrize("length", [70, 100, 256, 300, 768, 800])
def test_attention_to_a_cache_equals_float64(length, queries):
    """Caches shorter than a block, exact multiples and others; few queries and many; hidden ones are huge."""
    rng = np.random.default_rng(length)
    firsts = (length - queries) * np.arange(4) // 3
    positions = firsts[:, None] + np.arange(queries)
    q = rng.normal(size=(4, queries, 6, 8)).astype(np.float32)
    keys, values = rng.normal(size=(2, 4, 2, length, 8)).astype(np.float32)
    for row, last in enumerate(positions[:, -1]):
        keys[row, :, last + 1 :] *= 1e4
        values[row, :, last + 1 :] *= 1e4
    got = jax.jit(attend_cache)(*map(jnp.asarray, (q, keys, values, positions)))
    for row, query in np.ndindex(*positions.shape):
        k, v = (x[row, :, : positions[row, query] + 1].astype(np.float64) for x in (keys, values))
        scores = np.einsum("kgd,ksd->kgs", q[row, query].reshape(2, 3, 8), k) / np.sqrt(8)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        want = np.einsum("kgs,ksd->kgd", weights / weights.sum(-1, keepdims=True), v)
        np.testing.assert_allclose(got[row, query], want.reshape(6, 8), rtol=0, atol=1e-5)


def test_prefill_in_parts_equals_whole():
    model, params = Llama(BASE), random_parameters(BASE)
    ids = random_ids(2, 15, seed=3)
    want, _ = forward(model, params, ids)
    embeds = model.apply({"params": params}, jnp.asarray(ids), method="embed")
    cache = init_cache(BASE, 2, 15)
    for start, stop in ((0, 6), (6, 7), (7, 15)):
        positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
        hidden, cache = cached(model, params, embeds[:, start:stop], positions, cache)
        np.testing.assert_allclose(hidden, want[:, start:stop], rtol=0, atol=2e-5)


def test_positions_past_the_cache_change_nothing():
    model, params = Llama(BASE), random_parameters(BASE)
    embeds = model.apply({"params": params}, jnp.asarray(random_ids(1, 9)), method="embed")
    exact = cached(model, params, embeds[:, :6], jnp.arange(6)[None], init_cache(BASE, 1, 6))[1]
    over = cached(model, params, embeds, jnp.arange(9)[None], init_cache(BASE, 1, 6))[1]
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(over), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_padding_changes_no_real_position():
    model, params = Llama(BASE), random_parameters(BASE)
    ids = random_ids(1, 8)
    padded = np.concatenate([ids, random_ids(1, 5, seed=9)], 1)
    short, _ = forward(model, params, ids)
    long, _ = forward(model, params, padded, mask=jnp.asarray(np.arange(13) < 8)[None])
    np.testing.assert_allclose(long[:, :8], short, rtol=0, atol=2e-5)


def test_a_masked_key_is_not_seen():
    model, params = Llama(BASE), random_parameters(BASE)
    ids = random_ids(1, 8)
    other = ids.copy()
    other[0, 2] = (ids[0, 2] + 1) % BASE.vocab_size
    mask = jnp.asarray(np.arange(8) != 2)[None]
    a, b = (forward(model, params, x, mask=mask)[0] for x in (ids, other))
    np.testing.assert_array_equal(np.delete(a, 2, 1), np.delete(b, 2, 1))
    assert np.abs(forward(model, params, ids)[0] - forward(model, params, other)[0])[0, 3:].max() > 1e-2


@pytest.mark.parametrize("name", ["plain", "biases, llama3 rope"])
def test_scanned_equals_unrolled(name):
    config = CONFIGS[name]
    model, params = Llama(config), random_parameters(config)
    scanned, stacked = Llama(config, scan_layers=True), stack_layers(params)
    ids = random_ids(2, 11)
    shapes = jax.eval_shape(
        lambda: scanned.init(jax.random.key(0), jnp.zeros((1, 1, 48)), jnp.zeros((1, 1), int))
    )
    made = nn.unbox(shapes)["params"]["layers"]
    assert jax.tree.map(jnp.shape, stacked["layers"]) == jax.tree.map(jnp.shape, made)
    for a, b in zip(forward(model, params, ids), forward(scanned, stacked, ids), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)

    def loss(module, weights):
        x = module.apply({"params": weights}, jnp.asarray(ids), method="embed")
        return jnp.sin(module.apply({"params": weights}, x, jnp.arange(11)[None].repeat(2, 0))[0]).sum()

    gradient = unstack_layers(jax.jit(jax.grad(lambda p: loss(scanned, p)))(stacked))
    want = jax.jit(jax.grad(lambda p: loss(model, p)))(params)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    x = model.apply({"params": params}, jnp.asarray(ids), method="embed")
    positions = jnp.broadcast_to(jnp.arange(11), (2, 11))
    want, cache = cached(model, params, x, positions, init_cache(config, 2, 12))
    empty = init_cache(config, 2, 12, scan_layers=True)
    got, stacked_cache = cached(scanned, stacked, x, positions, empty)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    for i, layer in enumerate(cache):
        np.testing.assert_allclose(stacked_cache.keys[i], layer.keys, rtol=0, atol=1e-5)


WIDE = dataclasses.replace(BASE, hidden_size=128, mlp_size=256, num_layers=4, num_heads=4, head_dim=32)


@pytest.mark.parametrize("form", PACKED)
def test_stacked_packed_layers_equal_layers_apart(form):
    """A prompt of rows of unequal lengths, then tokens one by one, with the cache of all layers."""
    apart = packed_parameters(form)
    together = stack_packed(copied(apart))
    assert together["layers"]["mlp"]["up_proj"]["kernel"].values.shape[0] == WIDE.num_layers
    assert not any(name.startswith("layers_") for name in together)
    found = []
    for params, stacked in ((apart, False), (together, True)):
        model, cache = Llama(WIDE, scan_layers=stacked), init_cache(WIDE, 2, 20, scan_layers=stacked)
        x, states = jax.random.normal(jax.random.key(0), (2, 9, 128)), []
        starts = jnp.asarray([[0], [4]])
        for part, first in ((x[:, :7], 0), (x[:, 7:8], 7), (x[:, 8:], 8)):
            positions = starts + first + jnp.arange(part.shape[1])
            hidden, cache = cached(model, params, part, positions, cache)
            states.append(hidden)
        layers = cache if stacked else jax.tree.map(lambda *parts: jnp.stack(parts), *cache)
        found.append((jnp.concatenate(states, 1), *layers))
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("form", PACKED)
def test_stacked_packed_layers_are_compiled_once_and_not_copied(form, tokens):
    """The program does not grow with the layers, and works in less than half the cache of one."""

    def program(layers: int) -> tuple[int, int]:
        config = dataclasses.replace(WIDE, hidden_size=512, num_layers=layers)
        model, params = Llama(config, scan_layers=True), stack_packed(packed_parameters(form, config))
        x, cache = jnp.zeros((1, tokens, 512)), init_cache(config, 1, 4096, scan_layers=True)
        run = jax.jit(
            lambda params, x, cache: model.apply(
                {"params": params}, x, jnp.arange(tokens)[None], cache=cache
            ),
            donate_argnums=2,
        )
        compiled = run.lower(params, x, cache).compile()
        return len(compiled.as_text().splitlines()), compiled.memory_analysis().temp_size_in_bytes

    (few, held), (many, more) = program(2), program(6)
    assert many < 1.05 * few
    layer_cache = 2 * 4 * 4096 * 32 * 4
    assert more < held + 20_000 and held < layer_cache / 2


@pytest.mark.parametrize("odd", [None, 0, 2])
def test_layers_of_floats_or_of_unlike_forms_stay_apart(odd):
    """One of floats among packed ones, of the shape of their values, would be taken for bits."""
    params = random_parameters(WIDE) if odd is None else packed_parameters("bits")
    if odd is not None:
        params[f"layers_{odd}"] = random_parameters(WIDE)[f"layers_{odd}"]
    assert stack_packed(copied(params)).keys() == params.keys()
    if odd is not None:
        mixed = packed_parameters("bits")
        layer = mixed[f"layers_{odd}"]["mlp"]["up_proj"]
        layer["kernel"] = layer["kernel"]._replace(values=jnp.zeros(layer["kernel"].values.shape))
        assert stack_packed(copied(mixed)).keys() == params.keys()


def test_stacking_is_undone():
    params = random_parameters(BASE)
    back = unstack_layers(stack_layers(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


@every_config
def test_raw_bits_equal_their_values(config):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_parameters(config))
    values = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    bits = lay_out_for_cpu(params)
    assert bits["embed_tokens"].values.dtype == jnp.uint16
    ids = random_ids(2, 5)
    for a, b in zip(forward(Llama(config), bits, ids), forward(Llama(config), values, ids), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_bfloat16_compute_keeps_float32_where_it_matters():
    params = random_parameters(BASE)
    half = Llama(BASE, jnp.bfloat16)
    hidden, logits = forward(half, params, random_ids(1, 6))
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == np.float32
    exact = forward(Llama(BASE), params, random_ids(1, 6))[0]
    assert np.abs(hidden.astype(np.float32) - exact).max() < 0.15


def test_tied_model_has_no_head():
    tied = dataclasses.replace(BASE, tie_embeddings=True)
    assert "lm_head" not in random_parameters(tied) and "lm_head" in random_parameters(BASE)


def test_constraints_reach_the_compiler_only_under_a_mesh():
    params = random_parameters(BASE)
    x = jnp.zeros((2, 4, BASE.hidden_size))

    def lowered():
        def run(params, x):  # a new function each time: jit would reuse the trace
            return Llama(BASE).apply({"params": params}, x, jnp.zeros((2, 4), int))[0]

        return jax.jit(run).lower(params, x).as_text()

    assert "sharding_constraint" not in lowered()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh), nn.logical_axis_rules([("batch", "data")]):
        assert lowered().count("sharding_constraint") == BASE.num_layers + 1


def test_cache_and_key_mask_exclude_each_other():
    params = random_parameters(BASE)
    with pytest.raises(ValueError, match="key_mask is for training"):
        Llama(BASE).apply(
            {"params": params},
            jnp.zeros((1, 2, 48)),
            jnp.zeros((1, 2), int),
            jnp.ones((1, 2), bool),
            init_cache(BASE, 1, 4),
        )
