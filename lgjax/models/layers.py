"""Linear, normalisation and MLP blocks that carry logical axis names; every network is made of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lgjax.models.kernels import FORMS, shape_of
from lgjax.models.matmul import matmul

Init = Callable[..., Any]
Axes = tuple[str | None, ...]

ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
xavier = nn.initializers.xavier_uniform()
default_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # uniform +-1/sqrt(fan_in)


def param(module: nn.Module, name: str, init: Init, axes: Axes, shape: tuple[int, ...]) -> Any:
    """A parameter of a module, in whatever form it is stored, with a logical axis name for each dimension.

    flax's own `param` traces `init` at every use, only to compare shapes.

    Raises:
        ScopeParamShapeError: it is stored in another shape.
        ScopeParamNotFoundError, ScopeCollectionNotFound: it is not stored, or nothing is.
    """
    stored = None if module.is_initializing() else nn.unbox(module.get_variable("params", name))
    if stored is None:
        return module.param(name, nn.with_logical_partitioning(init, axes), shape)
    found = shape_of(stored) if isinstance(stored, FORMS) else jnp.shape(stored)
    if found != shape:
        raise ScopeParamShapeError(name, "/".join(module.path), found, shape)
    return stored


class Linear(nn.Module):
    """y = x @ kernel + bias, kernel [in, out]; `axes` are the logical names of (in, out)."""

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = True
    kernel_init: Init = default_linear
    bias_init: Init = zeros
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        kernel = param(self, "kernel", self.kernel_init, self.axes, (x.shape[-1], self.features))
        y = matmul(x.astype(self.dtype), kernel)
        if self.use_bias:
            bias = param(self, "bias", self.bias_init, self.axes[1:], (self.features,))
            y = y + bias.astype(self.dtype)
        return y


class Conv(nn.Module):
    """2-D convolution, NHWC, kernel [h, w, in, out]."""

    features: int
    kernel_size: int
    axes: tuple[str | None, str | None]
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: Init = xavier
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        size = (self.kernel_size, self.kernel_size)
        shape = (*size, x.shape[-1], self.features)
        kernel = param(self, "kernel", self.kernel_init, (None, None, *self.axes), shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.kernel_size == self.stride and not self.padding:
            y = _patches(x, self.stride) @ kernel.reshape(-1, self.features)
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                [(self.padding, self.padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            bias = param(self, "bias", zeros, self.axes[1:], (self.features,))
            y = y + bias.astype(self.dtype)
        return y


def _patches(x: Float[Array, "b h w i"], side: int) -> Float[Array, "b h2 w2 j"]:
    """Squares that do not overlap, each as one row: a product of them learns faster than a convolution."""
    b, height, width, channels = x.shape
    rows, columns = height // side, width // side
    x = x[:, : rows * side, : columns * side].reshape(b, rows, side, columns, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows, columns, -1)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, statistics in float32."""

    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        scale = param(self, "scale", ones, ("norm",), x.shape[-1:])
        bias = param(self, "bias", zeros, ("norm",), x.shape[-1:])
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps) * scale + bias
        return y.astype(self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation of an NHWC map, statistics in float32."""

    groups: int
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale = param(self, "scale", ones, ("norm",), x.shape[-1:])
        bias = param(self, "bias", zeros, ("norm",), x.shape[-1:])
        b, _, _, c = x.shape

        def group_mean(values: jax.Array) -> jax.Array:
            # channel by channel first, which is fast and exact
            groups = values.mean((1, 2)).reshape(b, self.groups, -1)
            means = jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape).reshape(b, 1, 1, c)
            return jax.lax.optimization_barrier(means)  # XLA would compute them again for every pixel

        x32 = x.astype(jnp.float32)
        mean = group_mean(x32)
        factor = jax.lax.rsqrt(group_mean(jnp.square(x32 - mean)) + self.eps) * scale
        return (x32 * factor + (bias - mean * factor)).astype(self.dtype)


class MLP(nn.Module):
    """Linear layers with ReLU between them, as DETR's heads. `sizes` are the output widths."""

    sizes: tuple[int, ...]
    out_axis: str | None = "hidden"
    kernel_init: Init = default_linear
    last_init: Init | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        for i, size in enumerate(self.sizes):
            last = i == len(self.sizes) - 1
            init = self.last_init if last and self.last_init is not None else self.kernel_init
            axes = ("hidden", self.out_axis if last else "hidden")
            x = Linear(size, axes, kernel_init=init, dtype=self.dtype, name=f"layers_{i}")(x)
            x = x if last else nn.relu(x)
        return x


def stack_layers(params: Mapping[str, Any]) -> dict:
    """Turn `layers_0`, `layers_1`, ... into one `layers` with a leading axis, for a scan."""
    count = sum(name.startswith("layers_") for name in params)
    rest = {name: value for name, value in params.items() if not name.startswith("layers_")}
    layers = [params[f"layers_{i}"] for i in range(count)]
    return {**rest, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def unstack_layers(params: dict) -> dict:
    """Undo `stack_layers`."""
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    rest = {name: value for name, value in params.items() if name != "layers"}
    layers = {f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(count)}
    return {**rest, **layers}
