"""CLIP vision tower as LLaVA uses it: a pre-norm ViT read one block before its end, class token dropped."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lgjax.config import ClipConfig
from lgjax.models.layers import Conv, LayerNorm, Linear, param
from lgjax.models.position import sine_position_map

Tokens = Float[Array, "b tokens c"]


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return x * sigmoid(1.702 x). Source: spec/language_model.md 2.2."""
    return x * jax.nn.sigmoid(1.702 * x)


def _sine_positions(key: jax.Array, shape: tuple[int, int]) -> Float[Array, "tokens c"]:
    """A start from which training from nothing finds neighbours soon: the sine code of the grid.

    A quarter of it is as large as what a fresh patch embedding gives.
    """
    side, width = math.isqrt(shape[0] - 1), -(-shape[1] // 4) * 4
    code = sine_position_map(side, side, width)[:, : shape[1]]
    return jnp.concatenate([jnp.zeros((1, shape[1])), jnp.asarray(code) / 4])


class ClipAttention(nn.Module):
    """Self-attention of all tokens, no mask; q is scaled after its bias, softmax in float32."""

    config: ClipConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        size, heads = self.config.hidden_size, self.config.num_heads

        def project(name: str) -> Float[Array, "b tokens heads d"]:
            y = Linear(size, ("vision", "vision_heads"), dtype=self.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], heads, size // heads)

        q, k, v = project("q_proj") * (size // heads) ** -0.5, project("k_proj"), project("v_proj")
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores).astype(self.dtype), v)
        return Linear(size, ("vision_heads", "vision"), dtype=self.dtype, name="out_proj")(
            mixed.reshape(x.shape)
        )


class ClipMlp(nn.Module):
    """fc2(quick_gelu(fc1(x)))."""

    config: ClipConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        y = Linear(self.config.mlp_size, ("vision", "vision_mlp"), dtype=self.dtype, name="fc1")(x)
        return Linear(self.config.hidden_size, ("vision_mlp", "vision"), dtype=self.dtype, name="fc2")(
            quick_gelu(y)
        )


class ClipBlock(nn.Module):
    """Attention and MLP, each on a normalised copy of its input and added to it."""

    config: ClipConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        norm1 = LayerNorm(self.config.norm_eps, self.dtype, name="layer_norm1")
        norm2 = LayerNorm(self.config.norm_eps, self.dtype, name="layer_norm2")
        x = x + ClipAttention(self.config, self.dtype, name="self_attn")(norm1(x))
        x = x + ClipMlp(self.config, self.dtype, name="mlp")(norm2(x))
        return nn.with_logical_constraint(x, ("batch", "length", "vision"))


class ClipTower(nn.Module):
    """Normalised images [B, S, S, 3] -> image tokens [B, patches, hidden], patches in row-major order.

    The output is hidden state `select_layer` without the class token and without a final norm; blocks after
    it do not exist here. Every hidden state is sown as "hidden_states" (class token included).
    Source: spec/language_model.md 2.2.
    """

    config: ClipConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b patches c"]:
        config = self.config
        init = nn.initializers.normal(0.02)
        patches = Conv(
            config.hidden_size,
            config.patch_size,
            (None, "vision"),
            stride=config.patch_size,
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(images)
        patches = patches.reshape(images.shape[0], -1, config.hidden_size)
        first = param(self, "class_embedding", init, ("vision",), (config.hidden_size,))
        shape = (config.num_patches + 1, config.hidden_size)
        table = param(self, "position_embedding", _sine_positions, (None, "vision"), shape)
        first = jnp.broadcast_to(first.astype(self.dtype), (images.shape[0], 1, config.hidden_size))
        x = jnp.concatenate([first, patches], axis=1) + table.astype(self.dtype)
        x = LayerNorm(config.norm_eps, self.dtype, name="pre_layernorm")(x)
        x = nn.with_logical_constraint(x, ("batch", "length", "vision"))
        self.sow("intermediates", "hidden_states", x)
        for i in range(config.used_layers):
            x = ClipBlock(config, self.dtype, name=f"layers_{i}")(x)
            self.sow("intermediates", "hidden_states", x)
        return x[:, 1:]
