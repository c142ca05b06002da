"""The compiled steps of inference; pure functions of configuration, parameters and arrays.

Images are encoded once and kept; everything else works on batches with static, padded shapes.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from lgjax.config import ModelConfig
from lgjax.models.clip import ClipTower
from lgjax.models.decoder import mask_logits
from lgjax.models.grounding import Grounding, Prediction, normalize_pixels, phrase_probabilities
from lgjax.models.layers import Linear
from lgjax.models.pixel_encoder import PixelFeatures
from lgjax.models.position import cxcywh_to_xyxy, resize_bilinear
from lgjax.models.prompting import Prompting


def _apply(module: nn.Module, params: dict, *inputs: Any, method: str = "__call__") -> Any:
    return module.apply({"params": params}, *inputs, method=method)


def _grounding(config: ModelConfig) -> Grounding:
    assert config.grounding is not None, "the caller checks that the checkpoint can ground"
    return Grounding(config.grounding, config.llama.hidden_size)


def _prompting(config: ModelConfig) -> Prompting:
    assert config.prompt is not None, "the caller checks that the checkpoint reads visual prompts"
    return Prompting(config.prompt, config.llama.hidden_size)


_compiled = functools.partial(jax.jit, static_argnames="config")


@_compiled
def encode_clip(config: ModelConfig, params: dict, images: Float[Array, "b s s 3"]) -> Float[Array, "b n d"]:
    """Image tokens of the language model."""
    features = _apply(ClipTower(config.clip), params["clip"], images)
    return _apply(Linear(config.llama.hidden_size, ("vision", "embed")), params["projector"], features)


@_compiled
def encode_grounding(config: ModelConfig, params: dict, canvas: UInt8[Array, "b s s 3"]) -> PixelFeatures:
    """Features of the grounding model for square canvases."""
    return _apply(_grounding(config), params["grounding"], normalize_pixels(canvas), method="encode")


@_compiled
def encode_prompting(config: ModelConfig, params: dict, canvas: UInt8[Array, "b s s 3"]) -> PixelFeatures:
    """Features of the visual-prompt model for square canvases."""
    return _apply(_prompting(config), params["prompt"], normalize_pixels(canvas), method="encode")


@_compiled
def read_prompts(
    config: ModelConfig,
    params: dict,
    features: PixelFeatures,
    prompts: Float[Array, "b n 4"],
    is_box: Int[Array, "b n"],
    prompt_mask: Bool[Array, "b n"],
) -> tuple[Float[Array, "b n d"], Bool[Array, "b n s s"]]:
    """Embedding of each prompt and its mask on the canvas; prompts do not see each other, as in training."""
    model, own = _prompting(config), params["prompt"]
    predictions = _apply(model, own, features, prompts, is_box, prompt_mask, True, method="predict")
    objects = _apply(model, own, predictions[-1], method="object_features")
    return objects, _canvas_masks(
        mask_logits(predictions[-1].mask_embedding[:, :, 0], features.mask_features)
    )


@functools.partial(jax.jit, static_argnames=("config", "num_queries"))
def ground(
    config: ModelConfig,
    params: dict,
    features: PixelFeatures,
    phrases: Float[Array, "b p d"],
    phrase_mask: Bool[Array, "b p"],
    num_queries: int,
) -> tuple[Float[Array, "b q p"], Float[Array, "b q 4"], Float[Array, "b q c"]]:
    """Probability of every query for every phrase, its box (x0, y0, x1, y1) in [0, 1], its mask embedding."""
    inputs = (features, phrases.astype(jnp.float32), phrase_mask, num_queries)
    final: Prediction = _apply(_grounding(config), params["grounding"], *inputs, method="predict")["final"]
    return phrase_probabilities(final.logits), cxcywh_to_xyxy(final.boxes), final.mask_embedding


@jax.jit
def masks_of(
    mask_embedding: Float[Array, "b q c"], mask_features: Float[Array, "b h w c"], queries: Int[Array, "b k"]
) -> Bool[Array, "b k s s"]:
    """Masks of chosen queries on the canvas.

    Logits are resized before they are cut, as those of visual prompts are; the original cuts a phrase's at a
    quarter of the canvas, which leaves steps along every edge. Source: spec/grounding_model.md 6.
    """
    chosen = jnp.take_along_axis(mask_embedding, queries[..., None], 1)
    return _canvas_masks(mask_logits(chosen, mask_features))


def _canvas_masks(logits: Float[Array, "b k h w"]) -> Bool[Array, "b k s s"]:
    b, k, h, w = logits.shape
    full = resize_bilinear(logits.reshape(b * k, h, w, 1), 4 * h, 4 * w)
    return full.reshape(b, k, 4 * h, 4 * w) > 0
