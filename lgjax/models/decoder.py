"""Deformable decoder: queries with box references that are refined layer by layer.

The grounding model and the visual-prompt model share it; what they do with its states differs
(spec/visual_prompts.md 4.1).
"""

from __future__ import annotations

import functools
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lgjax.config import TransformerConfig
from lgjax.models.deformable import DeformableAttention
from lgjax.models.kernels import outputs_of
from lgjax.models.layers import MLP, LayerNorm, Linear, param, stack_layers, xavier, zeros
from lgjax.models.matmul import matmul
from lgjax.models.position import LevelSizes, inverse_sigmoid, sine_box_code


class DecoderStates(NamedTuple):
    """States after each layer.

    hidden: h_0 .. h_{L-1}, each [b, q, c], normed once.
    references: s_0 .. s_L, each [b, q, 4] (cx, cy, w, h) in [0, 1], with gradient; layer i starts from the
        detached s_i.
    """

    hidden: tuple[jax.Array, ...]
    references: tuple[jax.Array, ...]


class PackedProjection(nn.Module):
    """Queries and keys of one input, values of another, by one packed kernel [c, 3c] in the order q, k, v."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, queries_keys: Float[Array, "b n c"], values: Float[Array, "b n c"]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        c = values.shape[-1]
        kernel = param(self, "kernel", xavier, ("hidden", "hidden_out"), (c, 3 * c))
        bias = param(self, "bias", zeros, ("hidden_out",), (3 * c,))
        bias = bias.astype(self.dtype)
        qk = matmul(queries_keys.astype(self.dtype), outputs_of(kernel, 0, 2 * c)) + bias[: 2 * c]
        v = matmul(values.astype(self.dtype), outputs_of(kernel, 2 * c, 3 * c)) + bias[2 * c :]
        q, k = jnp.split(qk, 2, -1)
        return q, k, v


class SelfAttention(nn.Module):
    """Multi-head attention with packed q, k, v projection; position enters queries and keys only."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b q c"],
        position: Float[Array, "b q c"],
        allowed: Bool[Array, "#b q q"] | None,
    ) -> Float[Array, "b q c"]:
        b, n, c = x.shape
        heads, width = self.num_heads, c // self.num_heads
        q, k, v = PackedProjection(self.dtype, name="in_proj")(x + position, x)
        q, k, v = (part.reshape(b, n, heads, width).transpose(0, 2, 1, 3) for part in (q, k, v))
        scores = jnp.einsum("bhqd,bhkd->bhqk", q * width**-0.5, k).astype(jnp.float32)
        if allowed is not None:
            scores = jnp.where(allowed[:, None], scores, -jnp.inf)
        out = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores).astype(self.dtype), v)
        out_proj = Linear(c, ("hidden_out", "hidden"), kernel_init=xavier, dtype=self.dtype, name="out_proj")
        return out_proj(out.transpose(0, 2, 1, 3).reshape(b, n, c))


class DecoderLayer(nn.Module):
    """Self-attention (norm2), deformable cross-attention (norm1), feed-forward (norm3)."""

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b q c"],
        position: Float[Array, "b q c"],
        reference: Float[Array, "b q 4"],
        memory: Float[Array, "b n c"],
        level_sizes: LevelSizes,
        allowed: Bool[Array, "#b q q"] | None,
    ) -> Float[Array, "b q c"]:
        config = self.config
        norm = functools.partial(LayerNorm, dtype=self.dtype)
        linear = functools.partial(Linear, dtype=self.dtype, kernel_init=xavier)
        attended = SelfAttention(config.num_heads, self.dtype, name="self_attn")(x, position, allowed)
        x = norm(name="norm2")(x + attended)
        cross = DeformableAttention(
            config.num_heads, config.num_levels, config.num_points, self.dtype, name="cross_attn"
        )
        x = norm(name="norm1")(x + cross(x + position, reference[:, :, None], memory, level_sizes))
        y = nn.relu(linear(config.ffn_size, ("hidden", "ffn"), name="linear1")(x))
        return norm(name="norm3")(x + linear(config.hidden_size, ("ffn", "hidden"), name="linear2")(y))


class Decoder(nn.Module):
    """The layers and the heads both models have in common; `scan_layers` compiles one layer for all of them.

    Source: spec/grounding_model.md 5.3.
    """

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32
    scan_layers: bool = False

    def setup(self) -> None:
        config, width = self.config, self.config.hidden_size
        self.layers = [DecoderLayer(config, self.dtype) for _ in range(config.decoder_layers)]
        self.ref_point_head = MLP((width, width), kernel_init=xavier, dtype=self.dtype)
        self.bbox_embed = MLP((width, width, 4), None, last_init=nn.initializers.zeros_init())
        self.mask_embed = MLP((width, width, width), dtype=self.dtype)
        self.norm = LayerNorm(dtype=self.dtype)

    def refine(self, x: Float[Array, "b q c"], reference: Float[Array, "b q 4"]) -> Float[Array, "b q 4"]:
        """Move `reference` by what the box head reads in `x`; float32."""
        return nn.sigmoid(self.bbox_embed(x.astype(jnp.float32)) + inverse_sigmoid(reference))

    def step(
        self,
        number: int,
        x: Float[Array, "b q c"],
        reference: Float[Array, "b q 4"],
        memory: Float[Array, "b n c"],
        level_sizes: LevelSizes,
        allowed: Bool[Array, "#b q q"] | None,
    ) -> tuple[Float[Array, "b q c"], Float[Array, "b q 4"]]:
        """States and references after a layer."""
        start = jax.lax.stop_gradient(reference)
        position = self.ref_point_head(sine_box_code(start, self.config.hidden_size // 2).astype(self.dtype))
        x = self.layers[number](x, position, start, memory, level_sizes, allowed)
        return x, self.refine(x, start)

    def __call__(
        self,
        content: Float[Array, "b q c"],
        reference: Float[Array, "b q 4"],
        memory: Float[Array, "b n c"],
        level_sizes: LevelSizes,
        allowed: Bool[Array, "#b q q"] | None = None,
    ) -> DecoderStates:
        """Run all layers. `allowed` [b, q, q] says which keys a query may attend to; None means all."""
        rest = memory, level_sizes, allowed
        if self.scan_layers and not self.is_initializing():
            params = stack_layers(self.variables["params"])
            layers, one = params.pop("layers"), self.clone(parent=None)

            def step(carry: tuple[jax.Array, jax.Array], layer: dict) -> tuple:
                variables = {"params": {**params, "layers_0": layer}}
                moved = cast(tuple, one.apply(variables, 0, *carry, *rest, method="step"))
                return moved, moved

            _, (states, references) = jax.lax.scan(step, (content, reference), layers)
            return DecoderStates(tuple(self.norm(states)), (reference, *references))
        x, hidden, references = content, [], [reference]
        for i in range(self.config.decoder_layers):
            x, moved = self.step(i, x, references[-1], *rest)
            self.sow("intermediates", f"layer{i}", x)
            references.append(moved)
            hidden.append(self.norm(x))
        return DecoderStates(tuple(hidden), tuple(references))


def mask_logits(
    mask_embedding: Float[Array, "b q c"], mask_features: Float[Array, "b h w c"]
) -> Float[Array, "b q h w"]:
    """Masks of queries at stride 4, as logits in float32."""
    b, h, w, c = mask_features.shape
    # pixels first, then the few numbers of each are turned over: faster on CPUs for 8 to 100 queries
    masks = jnp.einsum(
        "bnc,bqc->bnq", mask_features.reshape(b, h * w, c), mask_embedding, preferred_element_type=jnp.float32
    )
    return masks.swapaxes(1, 2).reshape(b, -1, h, w)
