"""Swin transformer backbone: four maps at stride 4 to 32."""

from __future__ import annotations

import functools
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from lgjax.config import SwinConfig
from lgjax.models.layers import Conv, LayerNorm, Linear, param

DropKeys = Key[Array, " b"]  # random keys of samples, for stochastic depth
_truncated = nn.initializers.truncated_normal(0.02)


@functools.cache
def relative_position_index(window: int) -> np.ndarray:
    """Row of the bias table for each (query, key) of a window, int64 [window**2, window**2]."""
    cell = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    dy, dx = cell[:, :, None] - cell[:, None, :] + window - 1
    return (dy * (2 * window - 1) + dx).astype(np.int64)


@functools.cache
def shift_mask(height: int, width: int, window: int) -> np.ndarray:
    """Additive mask of shifted windows, float32 [windows, 1, window**2, window**2]: -100 across regions.

    height and width are padded to multiples of the window. Source: spec/grounding_model.md 3.
    """

    def region(size: int) -> np.ndarray:
        at = np.arange(size)
        return np.where(at < size - window, 0, np.where(at < size - window // 2, 1, 2))

    label = region(height)[:, None] * 3 + region(width)[None]
    label = label.reshape(height // window, window, width // window, window)
    label = label.transpose(0, 2, 1, 3).reshape(-1, window * window)
    differs = label[:, :, None] != label[:, None, :]
    return np.where(differs, -100.0, 0.0).astype(np.float32)[:, None]


class WindowAttention(nn.Module):
    """Self-attention inside windows with a relative position bias."""

    num_heads: int
    window: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n t c"], mask: np.ndarray | None) -> Float[Array, "n t c"]:
        """x holds windows; the windows of an image lie together, `mask` is one image's shift mask."""
        n, t, c = x.shape
        heads, width = self.num_heads, c // self.num_heads
        shape = ((2 * self.window - 1) ** 2, heads)
        table = param(self, "relative_position_bias_table", _truncated, (None, "channel_heads"), shape)
        qkv = Linear(
            3 * c, ("channels", "channels_out"), dtype=self.dtype, kernel_init=_truncated, name="qkv"
        )(x)
        # heads before tokens: the batched products then run on contiguous blocks
        q, k, v = qkv.reshape(n, t, 3, heads, width).transpose(2, 0, 3, 1, 4)
        scores = jnp.einsum("nhqd,nhkd->nhqk", q * width**-0.5, k).astype(jnp.float32)
        bias = table.astype(jnp.float32)[relative_position_index(self.window).reshape(-1)]
        scores = scores + bias.reshape(t, t, heads).transpose(2, 0, 1)
        if mask is not None:
            windows = mask.shape[0]
            scores = (scores.reshape(n // windows, windows, heads, t, t) + mask).reshape(n, heads, t, t)
        out = jnp.einsum("nhqk,nhkd->nhqd", jax.nn.softmax(scores).astype(self.dtype), v)
        out = out.transpose(0, 2, 1, 3).reshape(n, t, c)
        return Linear(c, ("channels_out", "channels"), dtype=self.dtype, kernel_init=_truncated, name="proj")(
            out
        )


class DropPath(nn.Module):
    """Drop a residual branch for whole samples with probability `rate`; without keys nothing is dropped.

    A sample's own key decides, so neither its place in the batch nor the devices change what is dropped.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], keys: DropKeys | None) -> Float[Array, "b h w c"]:
        if keys is None or self.rate == 0.0:
            return x
        salt = zlib.crc32("/".join(self.path).encode())
        draw = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, salt), 1 - self.rate))
        return jnp.where(draw(keys)[:, None, None, None], x / (1 - self.rate), 0.0)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, computed in float32 by the error function as PyTorch does.

    `jax.nn.gelu` takes the complementary one, which costs CPUs four times as much.
    """
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * np.float32(0.5**0.5)))).astype(x.dtype)


class FeedForward(nn.Module):
    """fc2(GELU(fc1(x))) with the exact GELU."""

    ratio: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        linear = functools.partial(Linear, dtype=self.dtype, kernel_init=_truncated)
        x = linear(self.ratio * c, ("channels", "channels_out"), name="fc1")(x)
        return linear(c, ("channels_out", "channels"), name="fc2")(gelu(x))


class SwinBlock(nn.Module):
    """(Shifted) window attention and feed-forward, both residual and pre-normed."""

    num_heads: int
    window: int
    shifted: bool
    mlp_ratio: int
    drop_path: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], keys: DropKeys | None) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        size, shift = self.window, self.window // 2
        padded_h, padded_w = -(-h // size) * size, -(-w // size) * size
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        # zeros after the norm: padded cells take part in the softmax with the qkv bias, as in the original
        y = jnp.pad(y, ((0, 0), (0, padded_h - h), (0, padded_w - w), (0, 0)))
        if self.shifted:
            y = jnp.roll(y, (-shift, -shift), (1, 2))
        rows, columns = padded_h // size, padded_w // size
        y = y.reshape(b, rows, size, columns, size, c).transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)
        mask = shift_mask(padded_h, padded_w, size) if self.shifted else None
        y = WindowAttention(self.num_heads, size, self.dtype, name="attn")(y, mask)
        y = y.reshape(b, rows, columns, size, size, c).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(b, padded_h, padded_w, c)
        if self.shifted:
            y = jnp.roll(y, (shift, shift), (1, 2))
        x = x + DropPath(self.drop_path)(y[:, :h, :w], keys)
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = FeedForward(self.mlp_ratio, self.dtype, name="mlp")(y)
        return x + DropPath(self.drop_path)(y, keys)


class PatchMerging(nn.Module):
    """Join 2x2 neighbours and halve the resolution: 4C -> 2C channels."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        _, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        parts = [x[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)]
        x = LayerNorm(dtype=self.dtype, name="norm")(jnp.concatenate(parts, -1))
        axes = ("channels", "channels_out")
        return Linear(
            2 * c, axes, use_bias=False, dtype=self.dtype, kernel_init=_truncated, name="reduction"
        )(x)


class SwinStage(nn.Module):
    """The blocks of one resolution, and the merging that leads to the next."""

    depth: int
    num_heads: int
    window: int
    mlp_ratio: int
    drop_paths: tuple[float, ...]
    merge: bool
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], keys: DropKeys | None) -> tuple[jax.Array, jax.Array]:
        """Return the stage output and what the next stage starts from."""
        block_class = nn.remat(SwinBlock) if self.remat else SwinBlock
        for i in range(self.depth):
            block = block_class(
                self.num_heads,
                self.window,
                i % 2 == 1,
                self.mlp_ratio,
                self.drop_paths[i],
                self.dtype,
                name=f"blocks_{i}",
            )
            x = block(x, keys)
            self.sow("intermediates", f"block{i}", x)
        if not self.merge:
            return x, x
        merged = PatchMerging(self.dtype, name="downsample")(x)
        self.sow("intermediates", "merged", merged)
        return x, merged


class PatchEmbed(nn.Module):
    """Cut the image into patches and embed them."""

    features: int
    patch_size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        size = self.patch_size
        x = Conv(self.features, size, (None, "channels"), stride=size, dtype=self.dtype, name="proj")(images)
        return LayerNorm(dtype=self.dtype, name="norm")(x)


class Swin(nn.Module):
    """Normalised images [b, h, w, 3] -> (res2, res3, res4, res5) at stride 4, 8, 16, 32.

    `keys`, one for each image, switch stochastic depth on; `remat` computes blocks again in the backward
    pass.

    Source: spec/grounding_model.md 3.

    Raises:
        ValueError: height or width is no multiple of 32.
    """

    config: SwinConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], keys: DropKeys | None = None
    ) -> tuple[jax.Array, ...]:
        config = self.config
        if images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"Swin needs image sides that are multiples of 32, got {images.shape[1:3]}")
        x = PatchEmbed(config.embed_dim, config.patch_size, self.dtype, name="patch_embed")(images)
        self.sow("intermediates", "patches", x)
        rates = [float(rate) for rate in np.linspace(0, config.drop_path_rate, sum(config.depths))]
        outputs = []
        for stage, depth in enumerate(config.depths):
            first = sum(config.depths[:stage])
            out, x = SwinStage(
                depth,
                config.num_heads[stage],
                config.window,
                config.mlp_ratio,
                tuple(rates[first : first + depth]),
                stage < len(config.depths) - 1,
                self.dtype,
                self.remat,
                name=f"layers_{stage}",
            )(x, keys)
            outputs.append(LayerNorm(dtype=self.dtype, name=f"norm{stage}")(out))
        self.sow("intermediates", "maps", tuple(outputs))
        return tuple(outputs)
