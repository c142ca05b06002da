"""Matrix products with the formulation each platform needs."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def matmul(x: Float[Array, "*batch i"], kernel: Float[Array, "i o"]) -> Float[Array, "*batch o"]:
    """Return x @ kernel in the dtype of `x`."""
    return jnp.matmul(x, kernel.astype(x.dtype))
