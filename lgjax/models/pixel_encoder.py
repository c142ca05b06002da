"""Pixel encoder: Swin maps -> four deformable-attention maps and the stride-4 mask features."""

from __future__ import annotations

import functools
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lgjax.config import TransformerConfig
from lgjax.models.deformable import DeformableAttention
from lgjax.models.layers import Conv, GroupNorm, LayerNorm, Linear, param, stack_layers, xavier
from lgjax.models.position import (
    LevelSizes,
    cell_centres,
    resize_bilinear,
    sine_position_map,
    split_levels,
)

_kaiming = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # Kaiming uniform with a = 1


def level_sizes_of(mask_height: int, mask_width: int) -> LevelSizes:
    """Sizes of the maps at stride 8, 16, 32, 64 of an image whose stride-4 map has the given size."""
    return (
        (mask_height // 2, mask_width // 2),
        (mask_height // 4, mask_width // 4),
        (mask_height // 8, mask_width // 8),
        (-(-mask_height // 16), -(-mask_width // 16)),
    )


class PixelFeatures(NamedTuple):
    """What an image is to a decoder. Keep it as long as questions about the image may come.

    memory: float [b, tokens, c], levels concatenated coarse to fine (stride 64, 32, 16, 8).
    mask_features: float [b, h/4, w/4, c].
    """

    memory: jax.Array
    mask_features: jax.Array

    @property
    def level_sizes(self) -> LevelSizes:
        """(height, width) of the levels of `memory`, coarse to fine."""
        return level_sizes_of(*self.mask_features.shape[1:3])[::-1]


class ConvNorm(nn.Module):
    """Convolution followed by group normalisation."""

    features: int
    kernel_size: int
    groups: int
    stride: int = 1
    use_bias: bool = True
    in_axis: str = "channels"
    kernel_init: nn.initializers.Initializer = xavier
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        x = Conv(
            self.features,
            self.kernel_size,
            (self.in_axis, "hidden"),
            self.stride,
            self.kernel_size // 2,
            self.use_bias,
            self.kernel_init,
            self.dtype,
            name="conv",
        )(x)
        return GroupNorm(self.groups, dtype=self.dtype, name="norm")(x)


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, post-normed."""

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], position: Float[Array, "#b n c"], level_sizes: LevelSizes
    ) -> Float[Array, "b n c"]:
        config = self.config
        linear = functools.partial(Linear, dtype=self.dtype, kernel_init=xavier)
        attention = DeformableAttention(
            config.num_heads, config.num_levels, config.num_points, self.dtype, name="self_attn"
        )
        reference = jnp.asarray(cell_centres(level_sizes))[None, :, None]
        attended = attention(x + position, reference, x, level_sizes)
        self.sow("intermediates", "attn", attended)
        x = LayerNorm(dtype=self.dtype, name="norm1")(x + attended)
        y = nn.relu(linear(config.ffn_size, ("hidden", "ffn"), name="linear1")(x))
        return LayerNorm(dtype=self.dtype, name="norm2")(
            x + linear(config.hidden_size, ("ffn", "hidden"), name="linear2")(y)
        )


class PixelEncoder(nn.Module):
    """(res2, res3, res4, res5) -> PixelFeatures.

    `remat` computes layers again in the backward pass; `scan_layers` compiles one layer for all of them.

    Source: spec/grounding_model.md 4.
    """

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan_layers: bool = False

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...]) -> PixelFeatures:
        config, dtype = self.config, self.dtype
        width, groups = config.hidden_size, config.norm_groups
        res2, res3, res4, res5 = maps
        project = functools.partial(ConvNorm, width, groups=groups, dtype=dtype)
        sources = [project(1, name=f"input_proj_{i}")(x) for i, x in enumerate((res3, res4, res5))]
        sources.append(project(3, stride=2, name="input_proj_3")(res5))
        for i, source in enumerate(sources):
            self.sow("intermediates", f"input_proj{i}", source)
        level_sizes = tuple((s.shape[1], s.shape[2]) for s in sources)
        shape = (config.num_levels, width)
        level_embed = param(self, "level_embed", nn.initializers.normal(1.0), (None, "hidden"), shape)
        sine = np.concatenate([sine_position_map(h, w, width) for h, w in level_sizes])
        level = np.repeat(np.arange(config.num_levels), [h * w for h, w in level_sizes])
        position = (jnp.asarray(sine) + level_embed.astype(jnp.float32)[level])[None].astype(dtype)
        self.sow("intermediates", "pos", position)
        x = jnp.concatenate([s.reshape(s.shape[0], -1, width) for s in sources], 1)
        if self.scan_layers and not self.is_initializing():
            one = EncoderLayer(config, dtype, parent=None)

            def step(x: jax.Array, params: dict) -> tuple[jax.Array, None]:
                return cast(jax.Array, one.apply({"params": params}, x, position, level_sizes)), None

            step = jax.checkpoint(step, prevent_cse=False) if self.remat else step
            x, _ = jax.lax.scan(step, x, stack_layers(self.variables["params"])["layers"])
        else:
            layer_class = nn.remat(EncoderLayer, static_argnums=(3,)) if self.remat else EncoderLayer
            for i in range(config.encoder_layers):
                x = layer_class(config, dtype, name=f"layers_{i}")(x, position, level_sizes)
                self.sow("intermediates", f"layer{i}", x)
        levels = split_levels(x, level_sizes)

        lateral = project(1, use_bias=False, kernel_init=_kaiming, name="adapter_1")(res2)
        y = lateral + resize_bilinear(levels[0], *res2.shape[1:3])
        y = nn.relu(project(3, use_bias=False, in_axis="hidden", kernel_init=_kaiming, name="layer_1")(y))
        mask_features = Conv(
            width, 1, ("hidden", "hidden"), kernel_init=_kaiming, dtype=dtype, name="mask_features"
        )(y)
        memory = jnp.concatenate([m.reshape(m.shape[0], -1, width) for m in reversed(levels)], 1)
        return PixelFeatures(memory, mask_features)
