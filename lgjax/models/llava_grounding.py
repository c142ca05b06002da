"""The whole model: how vision tower, language model, visual prompts and grounding join.

    image ─ CLIP ─ projector ─┐
    region ─ visual prompts ──┼─ splice ─ LLaMA ─ hidden states ─ at each <seg> ─┐
    text ─ embeddings ────────┘                                                  │
    image ─ Swin ─ pixel encoder ─────────────────────────── decoder ── boxes, masks per phrase

Source: LLaVA-Grounding section 3; spec/language_model.md 9 to 12.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lgjax.config import ModelConfig
from lgjax.models.attention import Kernel
from lgjax.models.clip import ClipTower
from lgjax.models.grounding import Grounding, Prediction
from lgjax.models.layers import Linear
from lgjax.models.llama import Llama
from lgjax.models.pixel_encoder import PixelFeatures
from lgjax.models.prompting import Prompting, PromptPrediction
from lgjax.models.splice import BatchPlan, splice


class Inputs(NamedTuple):
    """A static batch of b rows with one image each.

    clip_images: float [b, s, s, 3], CLIP's view; pixels: float [b, h, w, 3], normalised grounding view;
    plan: where every position comes from; seg_positions: int [b, p], the hidden state that stands for each
    phrase, with seg_mask [b, p]; prompts: float [b, n, 4] regions, is_box [b, n], prompt_mask [b, n].
    """

    clip_images: jax.Array
    pixels: jax.Array
    plan: BatchPlan
    seg_positions: jax.Array
    seg_mask: jax.Array
    prompts: jax.Array
    is_box: jax.Array
    prompt_mask: jax.Array


class Outputs(NamedTuple):
    """hidden: [b, t, d] of the language model; predictions and features of the grounding model; prompts: the
    visual-prompt model's predictions of every layer; prompt_features: its image features."""

    hidden: jax.Array
    predictions: dict[str, Prediction]
    features: PixelFeatures | None
    prompts: tuple[PromptPrediction, ...]
    prompt_features: PixelFeatures | None


def seg_states(
    hidden: Float[Array, "b t d"], positions: Int[Array, "b p"], mask: Bool[Array, "b p"]
) -> Float[Array, "b p d"]:
    """Gather the hidden states of phrases; zero where the mask is False."""
    states = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    return jnp.where(mask[..., None], states, 0)


class LlavaGrounding(nn.Module):
    """The joined model; parameters "clip", "projector", "llama", "grounding", "prompt".

    `dtype` is the compute type of tower, projector and language model; grounding and visual prompts compute
    in float32. Parts whose config is None do not exist. `scan_layers` and `remat`: see `Llama`.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    scan_layers: bool = False
    remat: bool = False
    kernel: Kernel = "plain"

    def setup(self) -> None:
        config, width = self.config, self.config.llama.hidden_size
        self.clip = ClipTower(config.clip, self.dtype)
        self.projector = Linear(width, ("vision", "embed"), dtype=self.dtype)
        self.llama = Llama(config.llama, self.dtype, self.scan_layers, self.remat, self.kernel)
        if config.grounding is not None:
            self.grounding = Grounding(
                config.grounding, width, remat=self.remat, scan_layers=self.scan_layers
            )
        if config.prompt is not None:
            self.prompt = Prompting(config.prompt, width, remat=self.remat, scan_layers=self.scan_layers)

    def image_tokens(self, clip_images: Float[Array, "b s s 3"]) -> Float[Array, "b n d"]:
        """Embeddings that a picture puts into the language model."""
        return self.projector(self.clip(clip_images))

    def read(
        self,
        plan: BatchPlan,
        tokens: Float[Array, "b n d"],
        objects: Float[Array, "b r d"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Hidden states of the language model over text, image tokens and object features."""
        embeds = splice(self.llama.embed, plan, tokens, objects)
        positions = jnp.broadcast_to(jnp.arange(embeds.shape[1]), embeds.shape[:2])
        return self.llama(embeds, positions, key_mask=jnp.asarray(plan.mask))[0]

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch vocab"]:
        """Float32 logits of hidden states."""
        return self.llama.logits(hidden)

    def __call__(self, inputs: Inputs, num_queries: int | None = None) -> Outputs:
        """One forward over everything; what is not used costs nothing under jit."""
        config = self.config
        objects, prompts, prompt_features = None, (), None
        if config.prompt is not None:
            objects, prompts, prompt_features = self.prompt(
                inputs.pixels, inputs.prompts, inputs.is_box, inputs.prompt_mask
            )
        hidden = self.read(inputs.plan, self.image_tokens(inputs.clip_images), objects)
        predictions, features = {}, None
        if config.grounding is not None:
            phrases = seg_states(hidden, inputs.seg_positions, inputs.seg_mask).astype(jnp.float32)
            queries = num_queries or config.grounding.num_queries
            predictions, features = self.grounding(inputs.pixels, phrases, inputs.seg_mask, queries)
        if self.is_initializing():
            self.llama.logits(hidden)
        return Outputs(hidden, predictions, features, prompts, prompt_features)


def example_inputs(config: ModelConfig) -> Inputs:
    """The smallest batch that touches every parameter: zeros, one row, one phrase, one region."""
    side = 128
    size = config.clip.image_size
    one = jnp.zeros((1, 1), jnp.int32)
    plan = BatchPlan(one, one - 1, one - 1, one - 100, one == 0, jnp.ones(1, jnp.int32))
    return Inputs(
        clip_images=jnp.zeros((1, size, size, 3)),
        pixels=jnp.zeros((1, side, side, 3)),
        plan=plan,
        seg_positions=one,
        seg_mask=one == 0,
        prompts=jnp.full((1, 1, 4), 0.5),
        is_box=one,
        prompt_mask=one == 0,
    )


@functools.cache
def _boxed(config: ModelConfig, scan_layers: bool) -> dict:
    model = LlavaGrounding(config, scan_layers=scan_layers)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), example_inputs(config), 1))["params"]


def abstract_params(config: ModelConfig, scan_layers: bool = False) -> dict:
    """Shapes and dtypes of all parameters as a nested dict; nothing is allocated."""
    return nn.unbox(_boxed(config, scan_layers))


def logical_axes(config: ModelConfig, scan_layers: bool = False) -> dict:
    """Logical axis names of all parameters: a tuple for each, in the nested dict of `abstract_params`."""
    boxed = _boxed(config, scan_layers)
    return jax.tree.map(
        lambda leaf: tuple(leaf.names), boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )


def init_params(config: ModelConfig, seed: int) -> dict:
    """Fresh float32 parameters, as training from nothing starts with them."""
    model = LlavaGrounding(config)
    init = jax.jit(lambda key: model.init(key, example_inputs(config), 1)["params"])
    return nn.unbox(init(jax.random.key(seed)))
