"""The activation of Swin's feed-forward layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lgjax.models.swin import gelu

X = np.linspace(-12, 12, 4001, dtype=np.float32)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-8)])
def test_gelu_is_exact(dtype, error: float):
    x = jnp.asarray(X, dtype)
    exact = np.asarray(x, np.float64)
    exact = exact * scipy.special.ndtr(exact)
    got = jax.jit(gelu)(x)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=error, atol=error)


def test_gradient_of_gelu():
    x = X.astype(np.float64)
    slope = scipy.special.ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.asarray(X)), slope, atol=2e-6)
