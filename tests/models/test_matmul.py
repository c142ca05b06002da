"""Products with kernels of every form: right steps, right numbers, and no float32 copy of packed weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.models.kernels import (
    GROUP,
    LARGE,
    LayerOf,
    LowRank,
    Packed,
    Transposed,
    dense,
    lay_out_for_cpu,
    quantize,
    quantize_table,
    shape_of,
    widen,
)
from lgjax.models.llama import Llama, init_cache
from lgjax.models.matmul import FEW_ROWS, ONE_BY_ONE, matmul, matmul_transposed
from tests.models.kernels import FORMS, PACKED, assert_product, exact, normal
from tests.models.tiny_llama import BASE, parameter_shapes

GROUPED = [GROUP, 3 * GROUP, 5 * GROUP]  # inputs that 4 bits take


@settings(max_examples=30)
@given(
    form=st.sampled_from(PACKED),
    rows=st.sampled_from([1, 2, ONE_BY_ONE, ONE_BY_ONE + 1, 2 * ONE_BY_ONE, 2 * ONE_BY_ONE + 1]),
    data=st.data(),
)
def test_products_equal_float64(form, rows, data):
    """A single row, few and more, whole blocks of outputs and odd rests, kernels and tables."""
    size = data.draw(st.sampled_from(GROUPED if "int4" in form else [1, 15, 16, 37, 300, 513]))
    out = data.draw(st.sampled_from([1, 7, 128, 129, 256, 600]))
    kernel, x = FORMS[form](normal(size, size, out)), normal(out, rows, size)
    assert shape_of(kernel) == (size, out)
    assert_product(matmul(x, kernel), np.asarray(x, np.float64), exact(kernel))


@pytest.mark.parametrize("size", [512, 1024, 1152])  # 2 to 16 shares of the inputs
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("form", PACKED)
def test_products_by_shares_equal_float64(form, rows, size):
    """Sizes of which a single row is summed by shares, groups of very different scales, and the way back."""
    steps = jnp.exp2(jnp.arange(size) // GROUP % 7)[:, None]
    kernel, x = FORMS[form](normal(size, size, 300) * steps), normal(rows, rows, size)
    y, back = jax.vjp(lambda x: matmul(x, kernel), x)
    assert_product(y, np.asarray(x, np.float64), exact(kernel))
    assert_product(back(y)[0], np.asarray(y, np.float64), exact(kernel).T)


@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("form", PACKED)
def test_products_with_a_layer_of_several_equal_float64(form, rows, size):
    """Read where it lies, by a number that is known when the program runs; the way back, and a change."""
    stack, x = FORMS[form](normal(size, 3, size, 300)), normal(rows, rows, size)
    down, up = normal(1, size, 4), normal(2, 4, 300)
    product = jax.jit(lambda x, number: jax.vjp(lambda x: matmul(x, LayerOf(stack, number)), x)[0])
    changed = jax.jit(lambda x, number: matmul(x, LowRank(LayerOf(stack, number), down, up)))
    for number, want in enumerate(exact(stack)):
        layer = LayerOf(stack, number)
        assert shape_of(layer) == (size, 300)
        np.testing.assert_allclose(dense(layer), want, rtol=1e-6)
        y, back = jax.vjp(lambda x, layer=layer: matmul(x, layer), x)
        assert_product(y, np.asarray(x, np.float64), want)
        assert_product(back(y)[0], np.asarray(y, np.float64), want.T)
        np.testing.assert_allclose(product(x, number), y, rtol=1e-5, atol=1e-5)
        both = want + np.asarray(down, np.float64) @ np.asarray(up, np.float64)
        np.testing.assert_allclose(changed(x, number), np.asarray(x, np.float64) @ both, rtol=1e-4, atol=1e-3)


@settings(max_examples=12)
@given(
    form=st.sampled_from(["bits", "int8"]),
    rows=st.integers(1, 3),
    size=st.sampled_from([1, 37, 300]),
    out=st.sampled_from([1, 7, 128, 129, 600]),
)
def test_products_with_tables_equal_float64(form, rows, size, out):
    """A table [out, in] as output head, with its gradient; and its rows."""
    table, x = normal(size, out, size), normal(out, rows, size)
    packed = quantize_table(table) if form == "int8" else FORMS["bits"](table)
    want, x64 = exact(packed), np.asarray(x, np.float64)
    assert form == "bits" or packed.scale.shape == (out, 1)
    step = np.abs(np.asarray(table)).max(1, keepdims=True) / (127 if form == "int8" else 127 * 1.01)
    assert (np.abs(want - np.asarray(table)) <= step * 0.5001).all()
    y, back = jax.vjp(lambda x: matmul_transposed(x, packed), x)
    assert_product(y, x64, want.T)
    assert_product(back(y)[0], np.asarray(y, np.float64), want)


@settings(max_examples=30)
@given(
    bits=st.sampled_from([8, 4]),
    layers=st.sampled_from([(), (3,), (2, 2)]),
    out=st.integers(1, 9),
    groups=st.integers(1, 3),
    exponent=st.floats(-30, 30),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    seed=st.integers(0, 9),
)
def test_no_number_moves_more_than_half_a_step(bits, layers, out, groups, exponent, dtype, seed):
    """Groups of very different sizes, one of zeros; 127 or 7 steps reach the largest number of each."""
    exponent = np.clip(exponent, -8, 8) if dtype == jnp.float16 else exponent
    wide = np.array(normal(seed, *layers, groups, GROUP, out)) * np.exp2(
        normal(seed + 1, *layers, groups, 1, out) + exponent
    )
    wide[..., 0, :, 0] = 0
    kernel = jnp.asarray(wide.reshape(*layers, groups * GROUP, out)).astype(dtype)
    packed, want = quantize(kernel, bits), np.asarray(kernel).astype(np.float64)
    assert packed.values.dtype == (jnp.int8 if bits == 8 else jnp.uint8)
    assert packed.values.nbytes * 8 == bits * kernel.size
    split = (*layers, 1 if bits == 8 else groups, -1, out)
    want, got = want.reshape(split), exact(packed).reshape(split)
    largest = np.abs(want).max(-2)
    assert packed.scale is not None and packed.scale.shape == largest.shape
    step = largest / (127 if bits == 8 else 7)
    assert (np.abs(got - want) <= step[..., None, :] * (0.5 + 1e-5)).all()
    np.testing.assert_allclose(np.abs(got).max(-2), largest, rtol=1e-6)
    np.testing.assert_array_equal(got.max(-2)[largest == 0], 0)
    np.testing.assert_allclose(widen(packed), got.reshape(kernel.shape), rtol=1e-6)
    np.testing.assert_array_equal(dense(packed), widen(packed))


def test_four_bits_need_whole_groups():
    with pytest.raises(ValueError, match="100 inputs do not divide into groups of 64"):
        quantize(jnp.ones((100, 3)), 4)


@pytest.mark.parametrize("form", PACKED)
def test_batch_shapes_and_dtypes(form):
    kernel, x = FORMS[form](normal(0, 64, 7)), normal(1, 2, 3, 64)
    assert matmul(x, kernel).shape == (2, 3, 7)
    assert matmul(x[0, 0], kernel).shape == (7,)
    assert matmul(x.astype(jnp.bfloat16), kernel).dtype == jnp.bfloat16
    np.testing.assert_allclose(matmul(x, dense(kernel)), matmul(x, kernel), rtol=0, atol=1e-4)


@settings(max_examples=20)
@given(
    rows=st.sampled_from([1, 2, FEW_ROWS, FEW_ROWS + 1]),
    size=st.sampled_from([1, 37, 300]),
    out=st.sampled_from([1, 7, 129]),
    stored=st.booleans(),
)
def test_products_with_kernels_stored_by_outputs_equal_float64(rows, size, out, stored):
    """Few rows and many, as a kernel and as a table, with both derivatives."""
    table, x = normal(size, out, size), normal(out, rows, size)
    product = (lambda x, table: matmul(x, Transposed(table))) if stored else matmul_transposed
    y, back = jax.vjp(product, x, table)
    to_x, to_table = back(y)
    x64, y64, table64 = (np.asarray(array, np.float64) for array in (x, y, table))
    assert_product(y, x64, table64.T)
    assert_product(to_x, y64, table64)
    assert_product(to_table, y64.T, x64)


@pytest.mark.parametrize("rows", [1, 8, FEW_ROWS])
def test_the_table_goes_first_with_few_rows_on_cpus(rows):
    """XLA for CPU takes two to three times as long when it turns the product; others need no barrier."""
    product = jax.jit(matmul_transposed).trace(jnp.zeros((rows, 64)), jnp.zeros((96, 64)))
    texts = [product.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu")]
    assert ["optimization_barrier" in text for text in texts] == [True, False]
    dots = [line for line in product.lower().compile().as_text().splitlines() if " dot(" in line]
    assert len(dots) == 1 and f"= f32[96,{rows}]" in dots[0]


@pytest.mark.parametrize("rows", [(0,), (0, 3), (3, 0, 2)])
def test_no_rows_have_no_products(rows):
    for form in ("float32", "transposed", "words of int8"):
        assert matmul(jnp.zeros((*rows, 1024)), FORMS[form](normal(0, 1024, 200))).shape == (*rows, 200)


def test_the_gradient_over_several_axes_copies_nothing():
    x, kernel, back = normal(0, 4, 64, 48), normal(1, 48, 96), normal(2, 4, 64, 96)
    to_kernel = jax.jit(lambda kernel, back: jax.vjp(lambda k: matmul(x, k), kernel)[1](back)[0])
    assert "copy" not in to_kernel.lower(kernel, back).compile().as_text()
    exact = np.einsum("abi,abo->io", np.asarray(x, np.float64), np.asarray(back, np.float64))
    np.testing.assert_allclose(to_kernel(kernel, back), exact, atol=1e-4)


def test_every_bit_pattern_widens_exactly():
    bits = np.arange(2**16, dtype=np.uint16).reshape(64, -1)
    want = bits.view(jnp.bfloat16).astype(np.float32)
    got = np.asarray(widen(Packed(jnp.asarray(bits), None)))
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@settings(max_examples=12)
@given(form=st.sampled_from(["int8", "int4"]), size=st.sampled_from(GROUPED), layers=st.booleans())
def test_words_hold_the_same_steps(form, size, layers):
    """Four or eight of them, to the last bit; a kernel whose inputs they do not divide stays as it is."""
    kernel = FORMS[form](normal(size, *([2] if layers else []), size, 5))
    words = lay_out_for_cpu({"kernel": kernel})["kernel"]
    assert words.values.dtype == (jnp.int32 if form == "int8" else jnp.uint32)
    assert words.values.nbytes == kernel.values.nbytes and shape_of(words) == shape_of(kernel)
    np.testing.assert_array_equal(exact(words), exact(kernel))
    np.testing.assert_array_equal(widen(words), widen(kernel))
    odd = quantize(normal(0, 37, 5))
    assert lay_out_for_cpu({"kernel": odd})["kernel"] is odd


def test_a_row_whose_numbers_share_a_sign():
    """What words add to their steps is taken off again without a loss that would grow with the inputs."""
    x, kernel = jnp.abs(normal(0, 1, 4096)) + 1, FORMS["words of int8"](normal(1, 4096, 300))
    want = np.asarray(x, np.float64) @ exact(kernel)
    own = np.asarray(x @ dense(kernel)) - want
    assert np.abs(np.asarray(matmul(x, kernel)) - want).max() < 4 * np.abs(own).max() + 1e-5


def test_matrices_alone_take_another_form():
    half = jnp.ones((4, 6), jnp.bfloat16)
    params = {
        "embed_tokens": half,
        "norm": {"scale": jnp.ones(4, jnp.bfloat16)},
        "patch": {"kernel": jnp.ones((2, 2, 3, 4), jnp.bfloat16)},
        "q_proj": {"kernel": half, "bias": jnp.ones(4, jnp.bfloat16)},
        "full": {"kernel": jnp.ones((4, 4))},
        "large": {"kernel": jnp.ones((1024, LARGE // 1024)), "bias": jnp.ones(2**20)},
        "stacked": {"kernel": jnp.ones((2, 4, LARGE // 4))},
        "int8": {"kernel": quantize(half)},
        "int4": {"kernel": quantize(jnp.ones((64, 6)), 4)},
        "position_embedding": half,
    }
    got = jax.tree.map(lambda leaf: f"{leaf.dtype} {leaf.shape}", lay_out_for_cpu(params))
    assert got == {
        "embed_tokens": Packed("uint16 (4, 6)", None),
        "norm": {"scale": "bfloat16 (4,)"},
        "patch": {"kernel": "bfloat16 (2, 2, 3, 4)"},
        "q_proj": {"kernel": Packed("uint16 (4, 6)", None), "bias": "bfloat16 (4,)"},
        "full": {"kernel": "float32 (4, 4)"},
        "large": {"kernel": Transposed("float32 (1024, 1024)"), "bias": "float32 (1048576,)"},
        "stacked": {"kernel": Transposed("float32 (2, 262144, 4)")},
        "int8": {"kernel": Packed("int32 (1, 6)", "float32 (1, 6)")},
        "int4": {"kernel": Packed("uint32 (8, 6)", "float32 (1, 6)")},
        "position_embedding": "bfloat16 (4, 6)",
    }


def packed_shapes(leaf: jax.ShapeDtypeStruct, form: str, table: bool) -> Packed:
    """Shapes of a kernel or a table in a form."""
    if form == "bits":
        return Packed(jax.ShapeDtypeStruct(leaf.shape, jnp.uint16), None)
    if table:
        return jax.eval_shape(quantize_table, leaf)
    return jax.eval_shape(FORMS[form], leaf)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("form", PACKED)
def test_no_copy_of_the_weights(form, tied, tokens):
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
        name = path[-1].key
        if name not in ("kernel", "embed_tokens"):
            return leaf
        return packed_shapes(leaf, form, name == "embed_tokens")

    shapes = parameter_shapes(config)
    params = jax.tree_util.tree_map_with_path(stored, shapes)

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
    weights = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert compiled.memory_analysis().temp_size_in_bytes < weights / 2


@pytest.mark.parametrize("form", PACKED)
def test_working_memory_does_not_grow_with_the_layers(form):
    """XLA for CPU would begin the results of all layers before the first."""

    def temporaries(layers: int) -> int:
        kernels = [packed_shapes(jax.ShapeDtypeStruct((512, 512), jnp.float32), form, False)] * layers

        def read(x, kernels):
            for kernel in kernels:
                x = jnp.tanh(matmul(x, kernel))
            return x

        compiled = jax.jit(read).lower(jnp.zeros((40, 512)), kernels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(12) - temporaries(4) < 40 * 512 * 4


def test_the_results_of_other_platforms_begin_as_plain_zeros():
    """Zeros made of the input would cost sharded products a message each."""
    kernel = packed_shapes(jax.ShapeDtypeStruct((64, 32), jnp.float32), "int8", False)
    product = jax.jit(matmul).trace(jnp.zeros((40, 64)), kernel)
    texts = [product.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu")]
    assert ["minimum" in text for text in texts] == [True, False]
