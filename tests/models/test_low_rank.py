"""Kernels of int8 and with a low-rank change: right numbers and gradients, no float copies, any LLaMA."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.models import matmul as products
from lgjax.models.kernels import LowRank, Packed, dense, lay_out_for_cpu, low_rank
from lgjax.models.layers import Linear, stack_layers, unstack_layers
from lgjax.models.llama import Llama, init_cache
from lgjax.models.matmul import matmul
from tests.models.kernels import FORMS, PACKED, assert_product, exact, normal
from tests.models.tiny_llama import CONFIGS, random_parameters

every_form = pytest.mark.parametrize("form", FORMS)
TWO = dataclasses.replace(CONFIGS["grouped, odd sizes"], num_layers=2)
WHOLE = dataclasses.replace(TWO, hidden_size=64, mlp_size=128, head_dim=32)  # what 4 bits take


def changed(form: str, *shape: int, rank: int = 3, seed: int = 0) -> LowRank:
    """A kernel of a form with a change of the size of the base; more axes in front are layers."""
    *layers, i, o = shape
    up = normal(seed + 2, *layers, rank, o) * rank**-0.5
    return LowRank(FORMS[form](normal(seed, *shape)), normal(seed + 1, *layers, i, rank), up)


@every_form
def test_dense_is_base_and_change(form):
    kernel = changed(form, 2, 64, 9)
    assert dense(kernel).dtype == jnp.float32
    np.testing.assert_allclose(dense(kernel), exact(kernel), rtol=0, atol=1e-5)


@settings(max_examples=12)
@given(
    form=st.sampled_from(list(FORMS)),
    rows=st.sampled_from([1, 3]),
    size=st.sampled_from([4, 15, 37, 256, 320]),
    out=st.sampled_from([4, 40, 256, 257, 600]),
)
def test_products_and_gradients_equal_float64(form, rows, size, out):
    """Every form with a change, and alone: the product, and the gradients of x and of the change."""
    size = max(size, 64) // 64 * 64 if "int4" in form else size
    kernel = changed(form, size, out)
    kernel = kernel._replace(up=kernel.up * 0.1)  # terms of a large change would hide errors of the base
    x, gradient = normal(3, rows, size), normal(4, rows, out)

    @jax.jit
    def run(x, kernel, gradient):
        def both(x, down, up):
            return matmul(x, LowRank(kernel.base, down, up))

        alone, back_alone = jax.vjp(lambda x: matmul(x, kernel.base), x)
        y, back = jax.vjp(both, x, kernel.down, kernel.up)
        return alone, *back_alone(gradient), y, *back(gradient)

    alone, alone_x, y, into_x, into_down, into_up = run(x, kernel, gradient)
    w, x, g, down, up = exact(kernel.base), *(np.asarray(a, np.float64) for a in (x, gradient, *kernel[1:]))
    assert_product(alone, x, w)
    assert_product(alone_x, g, w.T)
    assert_product(y, np.hstack([x, x @ down]), np.vstack([w, up]))
    assert_product(into_x, np.hstack([g, g @ up.T]), np.vstack([w.T, down.T]))
    assert_product(into_down, x.T, g, up.T)
    assert_product(into_up, down.T, x.T, g)


@every_form
def test_gradients_equal_those_of_the_dense_kernel(form):
    kernel, x = changed(form, 64, 300), normal(5, 2, 6, 64)

    def loss(x, down, up, make):
        return jnp.sin(matmul(x, make(LowRank(kernel.base, down, up)))).sum()

    arguments = (x, kernel.down, kernel.up)
    got = jax.grad(lambda *a: loss(*a, lambda kernel: kernel), (0, 1, 2))(*arguments)
    want = jax.grad(lambda *a: loss(*a, dense), (0, 1, 2))(*arguments)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-3 * float(jnp.abs(b).max()))


@every_form
def test_shapes_and_dtypes(form):
    kernel = changed(form, 64, 7)
    for batch in ((), (1,), (2, 3)):
        for dtype in (jnp.float32, jnp.bfloat16):
            got = jax.eval_shape(matmul, jax.ShapeDtypeStruct((*batch, 64), dtype), kernel)
            assert got.shape == (*batch, 7) and got.dtype == dtype
    x = normal(6, 5, 64)
    half = matmul(x.astype(jnp.bfloat16), kernel).astype(jnp.float32)
    assert float(jnp.abs(half - matmul(x, kernel)).max() / jnp.abs(half).max()) < 0.02


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("form", PACKED)
def test_other_platforms_compute_the_same_in_one_product(form, back):
    kernel = FORMS[form](normal(0, 320, 500))
    x, start = normal(1, 6, 500 if back else 320), normal(2, 6, 320 if back else 500)
    want = np.asarray(start) + np.asarray(x) @ (exact(kernel).T if back else exact(kernel))
    how = products._Product(jnp.float32, table=False, back=back)
    for product in (products._add_whole, products._add_in_blocks):
        np.testing.assert_allclose(product(start, x, kernel, how), want, rtol=0, atol=2e-4)
    step = jax.jit(jax.grad(lambda x: matmul(x, kernel).sum()))
    text = {
        platform: step.trace(normal(3, 4, 320)).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    }
    assert "while" in text["cpu"] and "while" not in text["tpu"]


@every_form
def test_training_starts_without_a_change(form):
    base = FORMS[form](normal(0, 4, 64, 30))
    down, up = low_rank(base, 8, jax.random.key(0))
    assert down.shape == (4, 64, 8) and up.shape == (4, 8, 30) and not up.any()
    assert 0.9 < float(jnp.abs(down).max()) * 64**0.5 <= 1 and abs(float(down.mean())) < 0.02
    assert len(np.unique(np.asarray(down)[:, 0, 0])) == 4
    with pytest.raises(ValueError, match=r"rank 31 for a kernel \[64, 30\]: choose 1 to 30"):
        low_rank(base, 31, jax.random.key(0))


class Tower(nn.Module):
    """Six layers of one size, unrolled or scanned, each recomputed on the way back or not."""

    width: int
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            width: int

            @nn.compact
            def __call__(self, x):
                return nn.silu(Linear(self.width, ("embed", "mlp"), use_bias=False, name="linear")(x)), None

        layer = nn.remat(Layer) if self.remat else Layer
        if not self.scan:
            for i in range(6):
                x, _ = layer(self.width, name=f"layers_{i}")(x)
            return x
        axes, rngs = {"params": 0}, {"params": True}
        scanned = nn.scan(
            layer, axes, split_rngs=rngs, length=6, metadata_params={nn.PARTITION_NAME: "layers"}
        )
        return scanned(self.width, name="layers")(x)[0]


def tower_parameters(form: str, width: int, scan: bool) -> dict:
    kernel = changed(form, 6, width, width)
    kernel = LowRank(
        FORMS[form](normal(0, 6, width, width) * width**-0.5), kernel.down * 0.3, kernel.up * 0.3
    )
    params = {"layers": {"linear": {"kernel": kernel}}}
    return params if scan else unstack_layers(params)


def is_low_rank(leaf) -> bool:
    return isinstance(leaf, LowRank)


def changes_of(params: dict) -> dict:
    """(down, up) of every kernel that has them: what is trained."""
    return jax.tree.map(
        lambda leaf: (leaf.down, leaf.up) if is_low_rank(leaf) else None, params, is_leaf=is_low_rank
    )


def joined(changes: dict, params: dict) -> dict:
    """`params` with other changes."""

    def join(leaf, change):
        return leaf._replace(down=change[0], up=change[1]) if is_low_rank(leaf) else leaf

    return jax.tree.map(join, params, changes, is_leaf=is_low_rank)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_scanned_and_recomputed_modules_take_every_form(form, remat):
    """Flax hands a tuple in place of an array through scan and remat; outputs and gradients stay."""
    x, results = normal(9, 4, 64), []
    for scan in (False, True):
        params = tower_parameters(form, 64, scan)
        model = Tower(64, scan, remat)

        def loss(changes, model=model, params=params):
            return jnp.sin(model.apply({"params": joined(changes, params)}, x)).sum()

        value, gradient = jax.jit(jax.value_and_grad(loss))(changes_of(params))
        stacked = gradient if scan else stack_layers(gradient)
        results.append((value, stacked["layers"]["linear"]["kernel"]))
    whole = jax.tree.map(dense, tower_parameters(form, 64, False), is_leaf=is_low_rank)
    want = jnp.sin(Tower(64).apply({"params": whole}, x)).sum()
    for value, _ in results:
        np.testing.assert_allclose(value, want, rtol=0, atol=2e-2)
    for a, b in zip(*(jax.tree.leaves(result) for result in results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * float(jnp.abs(b).max()))


@every_form
def test_a_kernel_of_another_shape_is_refused(form):
    model = Linear(8, ("embed", "mlp"), use_bias=False)
    params = {"kernel": changed(form, 64, 9)}
    with pytest.raises(ScopeParamShapeError):
        model.apply({"params": params}, jnp.ones((2, 64)))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("form", PACKED)
def test_training_makes_no_float_copies(form, scan):
    """A step through six frozen layers needs far less working memory than their float32 values."""
    width = 512
    params = jax.eval_shape(lambda: tower_parameters("float32", width, scan))

    def stored(leaf):
        base = jax.eval_shape(lambda w: FORMS["int8" if form == "bits" else form](w), leaf.base)
        if form == "bits":
            base = Packed(jax.ShapeDtypeStruct(base.values.shape, jnp.uint16), None)
        return leaf._replace(base=base)

    params = jax.tree.map(stored, params, is_leaf=is_low_rank)
    model, x = Tower(width, scan), jax.ShapeDtypeStruct((8, width), jnp.float32)

    def loss(changes, params, x):
        return model.apply({"params": joined(changes, params)}, x).sum()

    compiled = jax.jit(jax.grad(loss)).lower(changes_of(params), params, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * width * width * 4 / 3


def test_packing_reaches_bases_and_stacked_layers():
    half = changed("bfloat16", 4, 6, 5)
    params = {"a": {"kernel": half}, "b": {"kernel": half.base}, "c": {"kernel": changed("int8", 8, 5)}}
    got = jax.tree.map(lambda leaf: leaf.dtype.name, lay_out_for_cpu(params))
    assert got == {
        "a": {"kernel": LowRank(Packed("uint16", None), "float32", "float32")},
        "b": {"kernel": Packed("uint16", None)},
        "c": {"kernel": LowRank(Packed("int32", "float32"), "float32", "float32")},
    }
    np.testing.assert_array_equal(dense(params["a"]["kernel"]), dense(half))


def with_kernels(params: dict, make) -> dict:
    """Replace every kernel of the layers of a LLaMA by make(number, kernel)."""
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = [
        make(i, leaf) if path[-1].key == "kernel" and path[0].key != "lm_head" else leaf
        for i, (path, leaf) in enumerate(paths)
    ]
    return jax.tree.unflatten(tree, leaves)


def densed(params: dict) -> dict:
    kinds = (Packed, LowRank)
    return jax.tree.map(
        lambda leaf: dense(leaf) if isinstance(leaf, kinds) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, kinds),
    )


def hidden_states(params: dict, x: jax.Array, config=TWO, *, scan=False, remat=False) -> jax.Array:
    model = Llama(config, scan_layers=scan)
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])

    def run(params, x):
        return model.apply({"params": params}, x, positions)[0]

    return jax.jit(jax.checkpoint(run) if remat else run)(params, x)


@every_form
def test_llama_with_a_fresh_change_is_unchanged(form):
    config = WHOLE if "int4" in form else TWO
    plain, x = random_parameters(config), normal(0, 2, 7, config.hidden_size)

    def fresh(i, kernel):
        base = FORMS[form](kernel)
        return LowRank(base, *low_rank(base, 4, jax.random.key(i)))

    params = with_kernels(plain, fresh)
    got, want = hidden_states(params, x, config), hidden_states(plain, x, config)
    error = float(jnp.abs(got - want).max())
    bounds = {"float32": 1e-5, "transposed": 1e-5, "bfloat16": 0.05, "bits": 0.05, "int8": 0.1, "int4": 1.0}
    bound = bounds[form.removeprefix("words of ")]
    assert error < bound and (bound == 1e-5 or error > 1e-4)  # a base that is ignored would be exact
    np.testing.assert_allclose(got, hidden_states(densed(params), x, config), rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_llama_with_a_trained_change_in_every_way_of_running(form):
    """Unrolled, scanned and with a cache, against dense kernels."""
    params = with_kernels(
        random_parameters(TWO),
        lambda i, kernel: changed(form, *kernel.shape, seed=i)._replace(
            base=FORMS[form](kernel), down=normal(i, kernel.shape[0], 3) * 0.5 * kernel.shape[0] ** -0.5
        ),
    )
    x = normal(0, 2, 7, TWO.hidden_size)
    want = hidden_states(densed(params), x)
    np.testing.assert_allclose(hidden_states(params, x), want, rtol=0, atol=5e-5)
    stacked = stack_layers(params)
    assert jax.tree.structure(unstack_layers(stacked)) == jax.tree.structure(params)
    np.testing.assert_allclose(hidden_states(stacked, x, scan=True), want, rtol=0, atol=5e-5)

    model, cache = Llama(TWO), init_cache(TWO, 2, 7)
    step = jax.jit(lambda x, at, cache: model.apply({"params": params}, x, at, cache=cache))
    for first, last in ((0, 5), (5, 6), (6, 7)):
        at = jnp.broadcast_to(jnp.arange(first, last), (2, last - first))
        got, cache = step(x[:, first:last], at, cache)
        np.testing.assert_allclose(got, want[:, first:last], rtol=0, atol=5e-5)


@pytest.mark.parametrize("form", ["bits", "int8"])
def test_llama_gradients_scanned_equal_unrolled_and_dense(form):
    params = with_kernels(
        random_parameters(TWO),
        lambda i, kernel: LowRank(
            FORMS[form](kernel), normal(i, kernel.shape[0], 3) * 0.1, normal(i + 1, 3, kernel.shape[1]) * 0.1
        ),
    )
    x = normal(0, 2, 7, TWO.hidden_size)

    def gradients(make, scan=False, remat=False):
        def loss(changes):
            weights = make(joined(changes, params))
            weights = stack_layers(weights) if scan else weights
            return jnp.square(hidden_states(weights, x, scan=scan, remat=remat)).mean()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(changes_of(params)))

    want = gradients(densed)
    for options in ({}, {"scan": True, "remat": True}):
        for a, b in zip(gradients(lambda params: params, **options), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * float(jnp.abs(b).max()) + 1e-7)
