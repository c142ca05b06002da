"""LLaMA decoder: one module for training, prefill and cached decoding of any Hugging Face LLaMA."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from lgjax.config import LlamaConfig
from lgjax.models.attention import Kernel, attend
from lgjax.models.kernels import LayerOf, Packed, widen
from lgjax.models.layers import Linear, default_linear, ones, param
from lgjax.models.matmul import matmul_transposed

Hidden = Float[Array, "b t d"]
Positions = Int[Array, "b t"]


BLOCK = 256  # entries of a cache that queries look at together
FEW_QUERIES = 64  # of a row: up to so many, smaller blocks are faster on CPUs
SMALL_BLOCK = 128  # entries of all rows; XLA for CPU copies a block, and so many fit into a CPU's cache


class LayerCache(NamedTuple):
    """Keys (rotated) and values, [B, kv heads, length, head dim]; of all layers with a first axis."""

    keys: jax.Array
    values: jax.Array


Cache = tuple[LayerCache, ...] | LayerCache


def init_cache(
    config: LlamaConfig,
    batch: int,
    length: int,
    dtype: DTypeLike = jnp.float32,
    *,
    scan_layers: bool = False,
) -> Cache:
    """Return an empty cache of `length` positions: one entry a layer, or one with a leading layer axis."""
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    if scan_layers:
        shape = (config.num_layers, *shape)
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    return tuple(
        LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers)
    )


def rope_frequencies(config: LlamaConfig) -> Float32[np.ndarray, " half"]:
    """Return the rotary frequencies (radians a position), scaled as Hugging Face scales them.

    Source: spec/language_model.md 4; transformers' "linear" and "llama3" rules.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequency = config.rope_base**-exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency.astype(np.float32)
    slowed = frequency / scaling.factor
    if scaling.kind == "linear":
        return slowed.astype(np.float32)
    turns = scaling.original_max_positions * frequency / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    return (keep * frequency + (1 - keep) * slowed).astype(np.float32)


def rotate(
    x: Float[Array, "b t h d"], cos: Float32[Array, "b t half"], sin: Float32[Array, "b t half"]
) -> Float[Array, "b t h d"]:
    """Turn the pairs (x[j], x[j + d/2]) by the given angles, in the dtype of `x`."""
    cos, sin = cos[:, :, None].astype(x.dtype), sin[:, :, None].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) in float32, cast back, then times the scale."""

    eps: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        scale = param(self, "scale", ones, ("norm",), x.shape[-1:])
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return scale.astype(self.dtype) * y.astype(self.dtype)


def attend_cache(
    q: Float[Array, "b t heads d"],
    keys: Float[Array, "*layers b kv s d"],
    values: Float[Array, "*layers b kv s d"],
    positions: Positions,
    layer: Array | int | None = None,
) -> Float[Array, "b t heads d"]:
    """Attention of each query over cache entries 0..position, in blocks up to the furthest query only.

    With the number of a layer, keys and values are those of all layers, on a first axis. The loop reads what
    is filled, not the whole cache, holds the scores of one block, and keeps XLA for CPU from copying the
    cache into each of its uses at every step. Softmax in float32, added up block by block.
    """
    default = functools.partial(_attend_blocks, block=BLOCK)
    if layer is None:
        keys, values, layer = keys[None], values[None], 0
    layer = jnp.asarray(layer)
    if q.shape[1] > FEW_QUERIES:
        return default(q, keys, values, positions, layer)
    small = functools.partial(_attend_blocks, block=max(32, SMALL_BLOCK // len(q)))
    return jax.lax.platform_dependent(q, keys, values, positions, layer, cpu=small, default=default)


def _attend_blocks(
    q: Float[Array, "b t heads d"],
    keys: Float[Array, "layers b kv s d"],
    values: Float[Array, "layers b kv s d"],
    positions: Positions,
    layer: Array,
    *,
    block: int,
) -> Float[Array, "b t heads d"]:
    """The same with blocks of so many entries.

    Carried from block to block: the largest score of each query, the sum of its weights exp(score - largest),
    and the sum of the values by these weights.
    """
    b, t, heads, d = q.shape
    kv, length = keys.shape[2:4]
    block = min(block, length)
    lowest = jnp.finfo(jnp.float32).min
    # the queries of all heads that share keys are rows of one product, head by head
    q = q.reshape(b, t, kv, -1, d).transpose(0, 2, 3, 1, 4).reshape(b, kv, -1, d)
    last = jnp.tile(positions, (1, heads // kv))[:, None, :, None]

    def cut(array, start):
        return jax.lax.dynamic_slice(array, (layer, 0, 0, start, 0), (1, b, kv, block, d))[0]

    def step(n, carry):
        best, total, mixed = carry
        start = jnp.minimum(n * block, length - block)
        index = start + jnp.arange(block)
        part = cut(keys, start)
        if t == 1:  # on CPUs a product of one row takes twice as long as one of one column
            scores = jnp.matmul(part, q.swapaxes(2, 3)).swapaxes(2, 3)
        else:
            scores = jnp.matmul(q, part.swapaxes(2, 3))
        scores = scores.astype(jnp.float32) * d**-0.5
        # the last block may overlap the one before; every query sees entry 0, so `best` is a real score
        scores = jnp.where((index >= n * block) & (index <= last), scores, lowest)
        new_best = jnp.maximum(best, scores.max(-1, keepdims=True))
        weights, shrink = jnp.exp(scores - new_best), jnp.exp(best - new_best)
        part = cut(values, start)
        added = jnp.matmul(weights.astype(q.dtype), part).astype(jnp.float32)
        return new_best, total * shrink + weights.sum(-1, keepdims=True), mixed * shrink + added

    blocks = jnp.minimum(positions.max(), length - 1) // block + 1
    first = jnp.full((*q.shape[:-1], 1), lowest, jnp.float32)
    carry = first, jnp.zeros_like(first), jnp.zeros(q.shape, jnp.float32)
    _, total, mixed = jax.lax.fori_loop(0, blocks, step, carry)
    mixed = (mixed / total).astype(q.dtype).reshape(b, kv, -1, t, d)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(b, t, heads, d)


class LlamaAttention(nn.Module):
    """Grouped-query attention with rotary positions; `kernel` is for queries without a cache."""

    config: LlamaConfig
    dtype: DTypeLike = jnp.float32
    kernel: Kernel = "plain"

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        positions: Positions,
        cos: Float32[Array, "b t half"],
        sin: Float32[Array, "b t half"],
        visible: Bool[Array, "b t t"] | None,
        cache: LayerCache | None,
        layer: Array | None,
    ) -> tuple[Hidden, LayerCache | None]:
        config = self.config
        b, t, _ = x.shape
        heads, kv, d = config.num_heads, config.num_kv_heads, config.head_dim

        def linear(name: str, features: int, axes: tuple[str, str]) -> Linear:
            return Linear(features, axes, config.attention_bias, dtype=self.dtype, name=name)

        q = linear("q_proj", heads * d, ("embed", "heads"))(x).reshape(b, t, heads, d)
        k = linear("k_proj", kv * d, ("embed", "kv_heads"))(x).reshape(b, t, kv, d)
        v = linear("v_proj", kv * d, ("embed", "kv_heads"))(x).reshape(b, t, kv, d)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is None:
            assert visible is not None  # `Llama` leaves it out only where there is a cache
            mixed = attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible, self.kernel)
        else:
            place: Any = (jnp.arange(b)[:, None], slice(None), positions)
            place = place if layer is None else (layer, *place)
            # past the end: dropped, never moved onto another position
            keys = cache.keys.at[place].set(k.astype(cache.keys.dtype), mode="drop")
            values = cache.values.at[place].set(v.astype(cache.values.dtype), mode="drop")
            cache = LayerCache(keys, values)
            mixed = attend_cache(q, keys.astype(self.dtype), values.astype(self.dtype), positions, layer)
        mixed = mixed.reshape(b, t, heads * d)
        return linear("o_proj", config.hidden_size, ("heads", "embed"))(mixed), cache


class LlamaMlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    config: LlamaConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        def linear(name: str, features: int, axes: tuple[str, str]) -> Linear:
            return Linear(features, axes, self.config.mlp_bias, dtype=self.dtype, name=name)

        gate = linear("gate_proj", self.config.mlp_size, ("embed", "mlp"))(x)
        up = linear("up_proj", self.config.mlp_size, ("embed", "mlp"))(x)
        return linear("down_proj", self.config.hidden_size, ("mlp", "embed"))(nn.silu(gate) * up)


class LlamaLayer(nn.Module):
    """Attention and MLP, each on an RMS-normalised copy of its input and added to it."""

    config: LlamaConfig
    dtype: DTypeLike = jnp.float32
    kernel: Kernel = "plain"

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        cache: LayerCache | None,
        positions: Positions,
        cos: Float32[Array, "b t half"],
        sin: Float32[Array, "b t half"],
        visible: Bool[Array, "b t t"] | None,
        layer: Array | None = None,
    ) -> tuple[Hidden, LayerCache | None]:
        self.sow("intermediates", "hidden_states", x)
        norm1 = RMSNorm(self.config.norm_eps, self.dtype, name="input_layernorm")
        norm2 = RMSNorm(self.config.norm_eps, self.dtype, name="post_attention_layernorm")
        attention = LlamaAttention(self.config, self.dtype, self.kernel, name="self_attn")
        mixed, cache = attention(norm1(x), positions, cos, sin, visible, cache, layer)
        x = x + mixed
        x = x + LlamaMlp(self.config, self.dtype, name="mlp")(norm2(x))
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), cache


class Llama(nn.Module):
    """The decoder. Parameters may be floats or packed (`kernels.Packed`).

    `scan_layers` compiles one layer for all of them, with parameters stacked under `layers`
    (`layers.stack_layers`); sown "hidden_states" (the input of each layer) are then stacked too, and with a
    cache none are sown. `remat` computes layers again in the backward pass. `kernel`: how tokens attend
    without a cache. Source: spec/language_model.md 4.
    """

    config: LlamaConfig
    dtype: DTypeLike = jnp.float32
    scan_layers: bool = False
    remat: bool = False
    kernel: Kernel = "plain"

    def setup(self) -> None:
        config = self.config
        shape = (config.vocab_size, config.hidden_size)
        self.embed_tokens = param(
            self, "embed_tokens", nn.initializers.normal(0.02), ("vocab", "embed"), shape
        )
        self.layers: Any
        # inside a scan nothing can be merged across iterations, so the barrier against it may go
        layer = nn.remat(LlamaLayer, prevent_cse=not self.scan_layers) if self.remat else LlamaLayer
        if self.scan_layers:
            in_axes: Any = (0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast)
            self.layers = nn.scan(
                layer,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                in_axes=in_axes,
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(config, self.dtype, self.kernel)
        else:
            self.layers = [layer(config, self.dtype, self.kernel) for _ in range(config.num_layers)]
        self.norm = RMSNorm(config.norm_eps, self.dtype)
        if not config.tie_embeddings:
            self.lm_head = Linear(
                config.vocab_size, ("embed", "vocab"), False, default_linear, dtype=jnp.float32
            )

    def embed(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        """Look up token ids; the table is gathered before it is cast."""

        def gather(array: Array) -> Array:
            # each device needs whole rows for its own ids: gather the table's width, as of every other matrix
            return jnp.take(nn.with_logical_constraint(array, ("vocab", None)), ids, axis=0)

        rows = jax.tree.map(gather, self.embed_tokens)
        return (widen(rows) if isinstance(rows, Packed) else rows).astype(self.dtype)

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float32[Array, "*batch vocab"]:
        """Return float32 logits of post-norm hidden states."""
        if self.config.tie_embeddings:
            return matmul_transposed(hidden.astype(jnp.float32), self.embed_tokens)
        return self.lm_head(hidden)

    def __call__(
        self,
        embeds: Hidden,
        positions: Positions,
        key_mask: Bool[Array, "b t"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Hidden, Cache | None]:
        """Run the layers on input embeddings; return post-norm hidden states and the updated cache.

        Without a cache, token t sees tokens 0..t whose `key_mask` is True. With one, keys and values are
        written at `positions` of each row and a query at position p sees cache entries 0..p, so right padding
        may leave anything beyond a row's length: later tokens overwrite an entry before any query can see it.

        Raises:
            ValueError: both a cache and a key mask are given.
        """
        if cache is not None and key_mask is not None:
            raise ValueError("key_mask is for training; with a cache, positions decide what a token sees")
        frequencies = rope_frequencies(self.config)
        angles = positions[..., None].astype(jnp.float32) * frequencies
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        t = embeds.shape[1]
        visible = None  # with a cache, positions tell
        if cache is None:
            visible = jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool)), (embeds.shape[0], t, t))
            visible = visible if key_mask is None else visible & key_mask[:, None]
        x = nn.with_logical_constraint(embeds.astype(self.dtype), ("batch", "length", "embed"))
        if self.scan_layers and cache is not None:
            assert isinstance(cache, LayerCache)
            x, new_cache = self._loop(x, cache, positions, cos, sin)
        elif self.scan_layers:
            x, new_cache = self.layers(x, None, positions, cos, sin, visible)
        else:
            layers = []
            for i, layer in enumerate(self.layers):
                x, entry = layer(x, None if cache is None else cache[i], positions, cos, sin, visible)
                layers.append(entry)
            new_cache = None if cache is None else tuple(layers)
        return self.norm(x), new_cache

    def _loop(
        self, x: Hidden, cache: LayerCache, positions: Positions, *angles: Float32[Array, "b t half"]
    ) -> tuple[Hidden, LayerCache]:
        """Layer after layer with the cache of all; a scan would copy the packed kernels and cache of each."""
        stack = nn.unbox(self.variables["params"]["layers"])
        layer = LlamaLayer(self.config, self.dtype, self.kernel, parent=None)

        def step(number: Array, carry: tuple[Hidden, LayerCache]) -> tuple[Hidden, LayerCache]:
            x, cache = carry
            params = jax.tree.map(
                lambda leaf: LayerOf(leaf, number) if _is_packed(leaf) else leaf[number],
                stack,
                is_leaf=_is_packed,
            )
            done: Any = layer.apply({"params": params}, x, cache, positions, *angles, None, number)
            return done

        return jax.lax.fori_loop(0, self.config.num_layers, step, (x, cache))


def stack_packed(params: dict[str, Any]) -> dict[str, Any]:
    """Stack the layers of a model whose kernels are packed, for `scan_layers`.

    Models without packed kernels, or with layers of unlike forms, stay as they are.

    One compiled layer serves for all: on CPUs programs are ready several times sooner and run as fast, as
    packed kernels are cut where they are read. In place, kind after kind, so that no more than one kind of
    matrix is held twice; returns the same dict.
    """
    names = [f"layers_{i}" for i in range(sum(name.startswith("layers_") for name in params))]
    forms = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params[name]) for name in names]
    packed = any(_is_packed(leaf) for leaf in jax.tree.leaves(params[names[0]], is_leaf=_is_packed))
    if not packed or any(form != forms[0] for form in forms):
        return params
    tree = jax.tree.structure(params[names[0]])
    kinds = [list(leaves) for leaves in zip(*(jax.tree.leaves(params.pop(n)) for n in names), strict=True)]
    stacks = []
    for leaves in kinds:
        stacks.append(jnp.stack(leaves))
        leaves.clear()
    params["layers"] = jax.tree.unflatten(tree, stacks)
    return params


def _is_packed(leaf: Any) -> bool:
    return isinstance(leaf, Packed)
