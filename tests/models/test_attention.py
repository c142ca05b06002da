"""Every form of attention against float64 in numpy: values, gradients, padding, shared keys, on a mesh."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from lgjax.models import attention
from lgjax.models.attention import attend, kernel_of
from lgjax.parallel.mesh import make_mesh
from lgjax.parallel.rules import RULES
from lgjax.train.groups import join
from lgjax.train.objective import normalisers
from lgjax.train.step import make_objective, on_mesh
from tests.train import steps
from tests.train.words import words

B, T, HEADS, KV, D = 2, 300, 4, 2, 16  # three tiles, the last of them not full
LENGTHS = (T, 177)


@pytest.fixture
def interpreted(monkeypatch):
    """Pallas kernels for TPUs, computed here."""
    made = functools.partial(splash_attention.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha_single_device", made)


@functools.cache
def inputs() -> tuple[np.ndarray, ...]:
    """q, keys, values, visible, and what each number of the result is worth: nothing of padding."""
    rng = np.random.default_rng(0)
    q, worth = (rng.standard_normal((B, T, HEADS, D), np.float32) for _ in range(2))
    keys, values = (rng.standard_normal((B, KV, T, D), np.float32) for _ in range(2))
    real = np.arange(T) < np.asarray(LENGTHS)[:, None]
    visible = np.tril(np.ones((T, T), bool)) & real[:, None]
    return q, keys, values, visible, worth * real[:, :, None, None]


@functools.cache
def wanted() -> tuple[np.ndarray, ...]:
    """Result and gradients of q, keys and values in float64, head by head."""
    q, keys, values, visible, worth = inputs()
    out, dq = np.zeros(q.shape), np.zeros(q.shape)
    dk, dv = np.zeros(keys.shape), np.zeros(values.shape)
    for b in range(B):
        for h in range(HEADS):
            g = h * KV // HEADS
            a, k, v = (array.astype(np.float64) for array in (q[b, :, h], keys[b, g], values[b, g]))
            scores = np.where(visible[b], a @ k.T / np.sqrt(D), -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[b, :, h] = weights @ v
            up = worth[b, :, h].astype(np.float64)
            dweights = up @ v.T
            dscores = weights * (dweights - (dweights * weights).sum(1, keepdims=True)) / np.sqrt(D)
            dq[b, :, h] = dscores @ k
            dk[b, g] += dscores.T @ a
            dv[b, g] += weights.T @ up
    return out, dq, dk, dv


def run(form, *arrays) -> tuple[np.ndarray, ...]:
    """Result and gradients of a form of attention."""
    q, keys, values, *rest = map(jnp.asarray, arrays or inputs())

    def loss(q, keys, values):
        out = form(q, keys, values, rest[0])
        return (out * rest[1]).sum(), out

    found, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, keys, values)
    return tuple(np.asarray(array) for array in (out, *found))


def same(found: tuple[np.ndarray, ...]) -> None:
    real = np.arange(T) < np.asarray(LENGTHS)[:, None]
    np.testing.assert_allclose(found[0][real], wanted()[0][real], atol=2e-6)
    for got, want in zip(found[1:], wanted()[1:], strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_the_plain_form():
    same(run(attend))
    np.testing.assert_allclose(run(attend)[0], wanted()[0], atol=2e-6)  # padded queries see the real keys too


def test_the_kernel_for_tpus(interpreted):
    same(run(functools.partial(attend, kernel="splash")))


def test_the_call_of_the_kernel_for_gpus():
    """What cuDNN is asked for, computed by XLA."""

    def form(q, keys, values, visible):
        return attention._library(q, keys, values, visible[:, -1], "xla")

    same(run(form))


@pytest.mark.parametrize("shape", [(2, 1, 2), (1, 2, 4)])
def test_devices_share_rows_and_heads(shape, interpreted):
    """Two heads of keys cannot be shared by four devices: each computes all."""
    mesh = make_mesh(*shape)
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    arrays = [jax.device_put(array, rows) for array in inputs()]
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        same(run(functools.partial(attend, kernel="splash"), *arrays))


def test_the_kernel_compiles_for_tpus_on_a_mesh():
    """Not to a program, for which their compiler is needed, but to what that takes."""
    mesh = make_mesh(2, 1, 2)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in inputs()[:4]]
        traced = jax.jit(functools.partial(attend, kernel="splash")).trace(*shapes)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text and f"x{T}x{T}xf32" not in text


@pytest.mark.parametrize(
    ("platform", "dtype", "kernel"),
    [
        ("tpu", "bfloat16", "splash"),
        ("tpu", "float32", "splash"),
        ("gpu", "bfloat16", "cudnn"),
        ("gpu", "float32", "plain"),
        ("cpu", "bfloat16", "plain"),
    ],
)
def test_each_platform_has_its_kernel(platform, dtype, kernel):
    assert kernel_of(platform, dtype) == kernel


def test_a_run_takes_the_kernel_of_its_devices():
    assert make_objective(words(), make_mesh()).kernel == "plain"
    with pytest.raises(ValueError, match="attention splash is not for 'cpu' devices"):
        make_objective(words(attention="splash"), make_mesh())
    with pytest.raises(ValueError, match="attention cudnn needs compute bfloat16"):
        words(attention="cudnn")


def test_a_step_learns_the_same_with_the_kernel(interpreted):
    """All layers, scanned and computed again, on a mesh: losses and gradients of the language model."""
    config = words(data={"groups": 8}, scan_layers=True, remat=True)
    (batch,) = steps.host_batches(steps.plain(config), 1)
    found = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh, rows = steps.mesh_of(shape), steps.rows_of(batch, shape)
        state = steps.start(config, shape)
        kernel = "plain" if shape == (1, 1, 1) else "splash"
        objective = dataclasses.replace(make_objective(config, mesh), kernel=kernel)

        def loss(trained, objective=objective, state=state, rows=rows):
            counts = normalisers(rows, config.loss, objective.shape)
            losses = objective(join(trained, state.frozen, jnp.float32), rows, counts, jax.random.key(0))
            return losses["language"]

        with on_mesh(mesh):
            value, grads = jax.jit(jax.value_and_grad(loss))(state.trained)
        found.append((float(value), jax.device_get(grads)))
    (one, want), (other, got) = found
    assert other == pytest.approx(one, rel=1e-5)
    for path, leaf in want.items():
        np.testing.assert_allclose(got[path], leaf, atol=1e-4 * np.abs(leaf).max() + 1e-8, err_msg=path)
