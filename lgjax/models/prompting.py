"""Visual-prompt model: clicks and boxes on an image in, one language-model embedding for each out.

Three mask tokens stand for every prompt; the first carries the object. Source: spec/visual_prompts.md 2-5.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lgjax.config import PromptConfig
from lgjax.models.decoder import Decoder
from lgjax.models.layers import MLP, Linear, param
from lgjax.models.pixel_encoder import PixelEncoder, PixelFeatures
from lgjax.models.position import inverse_sigmoid
from lgjax.models.swin import DropKeys, Swin


class PromptPrediction(NamedTuple):
    """Heads of one decoder layer for n prompts with t mask tokens each.

    states: [b, n, t, c] normed twice; boxes: [b, n, t, 4]; ious: [b, n, t]; mask_embedding: [b, n, t, c].
    """

    states: jax.Array
    boxes: jax.Array
    ious: jax.Array
    mask_embedding: jax.Array


class Prompting(nn.Module):
    """Encode images once, then read any prompts on them. `embed_size` is the language model's width."""

    config: PromptConfig
    embed_size: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan_layers: bool = False

    def setup(self) -> None:
        transformer, width = self.config.transformer, self.config.transformer.hidden_size
        normal = nn.initializers.normal(1.0)
        self.backbone = Swin(self.config.swin, self.dtype, self.remat)
        self.pixel_encoder = PixelEncoder(transformer, self.dtype, self.remat, self.scan_layers)
        self.decoder = Decoder(transformer, self.dtype, self.scan_layers)
        self.iou_prediction_head = MLP((width, width, 1), None, dtype=self.dtype)
        self.obj_projector = Linear(self.embed_size, ("hidden", "embed"), dtype=self.dtype)
        tokens = self.config.num_mask_tokens
        self.mask_tokens = param(self, "mask_tokens", normal, (None, "hidden"), (tokens, width))
        self.pb_embedding = param(self, "pb_embedding", normal, (None, "hidden"), (2, width))
        self.label_enc = param(self, "label_enc", normal, (None, "hidden"), (2, width))

    def encode(self, images: Float[Array, "b h w 3"], keys: DropKeys | None = None) -> PixelFeatures:
        """Normalised images with sides that are multiples of 32 -> features to keep with the image.

        `keys`, one for each image, switch stochastic depth on (training).
        """
        return self.pixel_encoder(self.backbone(images, keys))

    def predict(
        self,
        features: PixelFeatures,
        prompts: Float[Array, "b n 4"],
        is_box: Int[Array, "b n"],
        prompt_mask: Bool[Array, "b n"],
        separate: bool,
    ) -> tuple[PromptPrediction, ...]:
        """Predictions of every layer, the last one last.

        prompts are (cx, cy, w, h) in [0, 1] of the padded network input, is_box 0 for clicks and 1 for boxes,
        prompt_mask False at padded slots, which never change the others. With `separate` prompts do not see
        each other, as in training; the original's inference lets them (spec/visual_prompts.md 3, quirk 3).
        """
        b, n, _ = prompts.shape
        tokens = self.config.num_mask_tokens
        content = self.label_enc[0] + self.pb_embedding[is_box]
        queries = (content[:, :, None] + self.mask_tokens).reshape(b, n * tokens, -1).astype(self.dtype)
        self.sow("intermediates", "queries", queries)
        start = nn.sigmoid(inverse_sigmoid(jnp.repeat(prompts, tokens, axis=1)))
        same = jnp.repeat(jnp.repeat(jnp.eye(n, dtype=bool), tokens, 0), tokens, 1)
        real = jnp.repeat(prompt_mask, tokens, axis=1)
        # a padded slot still sees itself, so that no softmax is empty
        allowed = same[None] if separate else same[None] | real[:, None, :]
        states = self.decoder(queries, start, features.memory, features.level_sizes, allowed)
        for i, reference in enumerate(states.references):
            self.sow("intermediates", f"ref{i}", reference)

        def heads(hidden: jax.Array, reference: jax.Array) -> PromptPrediction:
            state = self.decoder.norm(hidden)
            parts = (
                state,
                self.decoder.refine(state, reference),
                self.iou_prediction_head(state),
                self.decoder.mask_embed(state),
            )
            states, boxes, ious, embedding = (part.reshape(b, n, tokens, -1) for part in parts)
            return PromptPrediction(states, boxes, ious[..., 0], embedding)

        for i, hidden in enumerate(states.hidden):
            self.sow("intermediates", f"hs{i}", hidden)
        return tuple(heads(hidden, states.references[i]) for i, hidden in enumerate(states.hidden))

    def object_features(self, prediction: PromptPrediction) -> Float[Array, "b n d"]:
        """What replaces the embedding of a prompt's mark: the projected first token of the last layer."""
        return self.obj_projector(prediction.states[:, :, 0])

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        prompts: Float[Array, "b n 4"],
        is_box: Int[Array, "b n"],
        prompt_mask: Bool[Array, "b n"],
        separate: bool = True,
        keys: DropKeys | None = None,
    ) -> tuple[Float[Array, "b n d"], tuple[PromptPrediction, ...], PixelFeatures]:
        """Object features of prompts on images that were not encoded yet, with all predictions."""
        features = self.encode(images, keys)
        predictions = self.predict(features, prompts, is_box, prompt_mask, separate)
        return self.object_features(predictions[-1]), predictions, features
