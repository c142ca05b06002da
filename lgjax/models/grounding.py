"""Grounding model: an image and phrase embeddings in, a class score, box and mask for each query out.

image -> Swin -> pixel encoder -> the queries are the tokens that fit the phrases best -> decoder -> heads.
Source: LLaVA-Grounding section 3; spec/grounding_model.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from lgjax.config import GroundingConfig
from lgjax.models.decoder import Decoder
from lgjax.models.layers import LayerNorm, Linear, ones, param
from lgjax.models.pixel_encoder import PixelEncoder, PixelFeatures
from lgjax.models.position import anchor_logits
from lgjax.models.swin import DropKeys, Swin

PIXEL_MEAN = (123.675, 116.280, 103.530)
PIXEL_STD = (58.395, 57.120, 57.375)
MASKED_LOGIT = -100.0  # what the original gives to the padded slots of the phrase list


class LoweredPhrases(NamedTuple):
    """Phrases in the space of states.

    embeddings: float32 [b, p, c], E p of each phrase p, with E the table [c, d] that lifts states; gram:
    float32 [c, c], E E^T; mask: bool [b, p], False at padded slots.
    """

    embeddings: jax.Array
    gram: jax.Array
    mask: jax.Array


class Prediction(NamedTuple):
    """What the heads say of each query.

    logits: float32 [b, q, p], -100 at padded phrases; boxes: float32 [b, q, 4], (cx, cy, w, h) in [0, 1] of
    the padded network input; mask_embedding: [b, q, c], see `decoder.mask_logits`.
    """

    logits: jax.Array
    boxes: jax.Array
    mask_embedding: jax.Array


def normalize_pixels(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """(x - mean) / std of RGB images on the 0..255 scale."""
    return (images.astype(jnp.float32) - jnp.asarray(PIXEL_MEAN)) / jnp.asarray(PIXEL_STD)


def pad_images(images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[np.ndarray, "b h2 w2 3"]:
    """Normalise images of any sizes and pad them at the right and bottom with zeros to one common size.

    The size is the largest of the batch, rounded up to a multiple of 32. Source: spec/grounding_model.md 2.
    """
    height = -(-max(image.shape[0] for image in images) // 32) * 32
    width = -(-max(image.shape[1] for image in images) // 32) * 32
    batch = np.zeros((len(images), height, width, 3), np.float32)
    mean, std = np.asarray(PIXEL_MEAN, np.float32), np.asarray(PIXEL_STD, np.float32)
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = (image.astype(np.float32) - mean) / std
    return batch


class Grounding(nn.Module):
    """Encode images once, then ground any phrases in them. `embed_size` is the width of phrase embeddings."""

    config: GroundingConfig
    embed_size: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan_layers: bool = False

    def setup(self) -> None:
        transformer, width = self.config.transformer, self.config.transformer.hidden_size
        truncated = nn.initializers.truncated_normal(0.02)
        self.backbone = Swin(self.config.swin, self.dtype, self.remat)
        self.pixel_encoder = PixelEncoder(transformer, self.dtype, self.remat, self.scan_layers)
        self.decoder = Decoder(transformer, self.dtype, self.scan_layers)
        self.enc_output = Linear(width, ("hidden", "hidden_out"), dtype=self.dtype)
        self.enc_output_norm = LayerNorm(dtype=self.dtype)
        shape = (width, self.embed_size)
        self.class_embed = param(self, "class_embed", truncated, ("hidden", "embed"), shape)
        self.logit_scale = param(self, "logit_scale", ones, (), ())

    def encode(self, images: Float[Array, "b h w 3"], keys: DropKeys | None = None) -> PixelFeatures:
        """Normalised images with sides that are multiples of 32 -> features to keep with the image.

        `keys`, one for each image, switch stochastic depth on (training).
        """
        return self.pixel_encoder(self.backbone(images, keys))

    def lift(self, states: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        """States in the space of phrases, float32; only their direction counts."""
        return states.astype(jnp.float32) @ self.class_embed.astype(jnp.float32)

    def token_states(self, features: PixelFeatures) -> Float[Array, "b tokens c"]:
        """The tokens of an image as candidates to become queries, those at the rim as zeros before.

        Source: spec/grounding_model.md 5.2.
        """
        valid = jnp.isfinite(jnp.asarray(anchor_logits(features.level_sizes))[:, :1])
        return self.enc_output_norm(self.enc_output(jnp.where(valid, features.memory, 0.0)))

    def named_tokens(
        self, images: Float[Array, "b h w 3"], keys: DropKeys | None = None
    ) -> tuple[Float[Array, "b tokens d"], PixelFeatures]:
        """`token_states` of images in the space of phrases, and their features."""
        features = self.encode(images, keys)
        return self.lift(self.token_states(features)), features

    def lower(self, phrases: Float[Array, "b p d"], phrase_mask: Bool[Array, "b p"]) -> LoweredPhrases:
        """What `class_logits` needs of phrases, once for all states."""
        table = self.class_embed.astype(jnp.float32)
        lowered = jnp.einsum("cd,bpd->bpc", table, phrases.astype(jnp.float32), precision="highest")
        return LoweredPhrases(lowered, jnp.matmul(table, table.T, precision="highest"), phrase_mask)

    def class_logits(self, states: Float[Array, "b n c"], phrases: LoweredPhrases) -> Float[Array, "b n p"]:
        """Score of every state for every phrase: its product with the direction of the lifted state.

        Of a lifted state s E only this product and its norm are needed, and both come without it: <s E, p> =
        <s, E p> and |s E|^2 = s (E E^T) s^T. All tokens of a canvas, lifted to d = 4096, would be 356 MB.
        Digits are lost only for a state that E maps to next to nothing: its length by |s| |E| is squared.
        Source: spec/grounding_model.md 5.1.
        """
        states = states.astype(jnp.float32)
        products = jnp.einsum("bnc,bpc->bnp", states, phrases.embeddings, precision="highest")
        squares = (jnp.matmul(states, phrases.gram, precision="highest") * states).sum(-1, keepdims=True)
        norm = jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))
        logits = jnp.exp(self.logit_scale.astype(jnp.float32)) * products / (norm + 1e-7)
        return jnp.where(phrases.mask[:, None], logits, MASKED_LOGIT)

    def select_queries(
        self,
        features: PixelFeatures,
        phrases: LoweredPhrases,
        num_queries: int,
    ) -> tuple[Float[Array, "b q c"], Float[Array, "b q 4"]]:
        """Contents [b, q, c] and box logits [b, q, 4] of the tokens that fit best.

        Source: spec/grounding_model.md 5.2.

        Raises:
            ValueError: more queries than the image has tokens.
        """
        tokens = features.memory.shape[1]
        if num_queries > tokens:
            raise ValueError(
                f"{num_queries} queries were asked for, but an image of this size has only {tokens} tokens; "
                "ask for fewer"
            )
        anchors = jnp.asarray(anchor_logits(features.level_sizes))
        valid = jnp.isfinite(anchors[:, :1])
        states = self.token_states(features)
        self.sow("intermediates", "candidates", states)
        scores = self.class_logits(states, phrases)
        # a padded phrase never wins, whatever its slot holds; a row without phrases has all scores equal
        best = jnp.where(phrases.mask[:, None], scores, -jnp.inf).max(-1)
        best = jnp.where(phrases.mask.any(-1)[:, None], best, MASKED_LOGIT)
        best = jnp.where(valid[:, 0], best, -jnp.inf)
        self.sow("intermediates", "scores", best)
        _, top = jax.lax.top_k(best, num_queries)
        self.sow("intermediates", "topk", top)
        content = jnp.take_along_axis(states, top[..., None], 1)
        return content, self.decoder.bbox_embed(content.astype(jnp.float32)) + anchors[top]

    def predict(
        self,
        features: PixelFeatures,
        phrases: Float[Array, "b p d"],
        phrase_mask: Bool[Array, "b p"],
        num_queries: int,
    ) -> dict[str, Prediction]:
        """Ground phrases: predictions of "interm", "aux0" .. "aux{L-1}" and "final".

        phrases are hidden states of the language model as they are; phrase_mask is False at padded slots,
        which never change the result of the others. Under jit the outputs nobody returns cost nothing.
        """
        lowered = self.lower(phrases, phrase_mask)
        content, box_logits = self.select_queries(features, lowered, num_queries)
        boxes = nn.sigmoid(box_logits)
        start, query = jax.lax.stop_gradient(boxes), jax.lax.stop_gradient(content)

        def heads(name: str, state: jax.Array, box: jax.Array) -> Prediction:
            normed = self.decoder.norm(state)
            self.sow("intermediates", f"normed_{name}", normed)
            logits = self.class_logits(normed, lowered)
            return Prediction(logits, box, self.decoder.mask_embed(normed))

        out = {"interm": heads("interm", content, boxes), "aux0": heads("aux0", query, start)}
        states = self.decoder(query, start, features.memory, features.level_sizes)
        for i, hidden in enumerate(states.hidden):
            self.sow("intermediates", f"hs{i}", hidden)
            name = "final" if i == len(states.hidden) - 1 else f"aux{i + 1}"
            out[name] = heads(name, hidden, self.decoder.refine(hidden, states.references[i]))
        for i, reference in enumerate(states.references):
            self.sow("intermediates", f"ref{i}", reference)
        return out

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        phrases: Float[Array, "b p d"],
        phrase_mask: Bool[Array, "b p"],
        num_queries: int,
        keys: DropKeys | None = None,
    ) -> tuple[dict[str, Prediction], PixelFeatures]:
        """`predict` on images that were not encoded yet; also returns their features."""
        features = self.encode(images, keys)
        return self.predict(features, phrases, phrase_mask, num_queries), features


def phrase_probabilities(logits: Float[Array, "b q p"]) -> Float[Array, "b q p"]:
    """Softmax over the queries, as the original's inference (training used a sigmoid)."""
    return jax.nn.softmax(logits, axis=1)
