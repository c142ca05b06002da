"""What the visual-prompt model minimises: box, mask and its own quality of every prompted object.

Prompt k stands for object k, so nothing is matched; only the first mask token of a prompt is trained.
Source: spec/visual_prompts.md 7.4; spec/training_and_data.md 4.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lgjax.losses.boxes import generalized_iou
from lgjax.losses.grounding import mask_losses
from lgjax.models.position import cxcywh_to_xyxy
from lgjax.models.prompting import PromptPrediction


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the losses; the stage-3 script multiplies all of them by 0.2."""

    mask_bce: float = 5.0
    mask_dice: float = 5.0
    bbox: float = 5.0
    giou: float = 2.0
    iou_score: float = 1.0
    multiplier: float = 0.2


def prompting_losses(
    predictions: Sequence[PromptPrediction],
    mask_features: Float[Array, "b h w c"],
    boxes: Float[Array, "b n 4"],
    masks: jax.Array,
    object_mask: Bool[Array, "b n"],
    has_mask: Bool[Array, "b n"],
    points: Callable[[Int[Array, ""]], tuple[jax.Array, jax.Array]],
    num_objects: Float[Array, "#b"] | Int[Array, "#b"],
    weights: Weights = Weights(),
) -> dict[str, jax.Array]:
    """Weighted losses of all layers by name, [b]; "_0" is the last layer, "_k" the k-th.

    The loss of a batch is the sum over its images.

    boxes: (cx, cy, w, h) in [0, 1] of the network input; masks: [b, n, h, w], 0 or 1; object_mask False at
    padding; has_mask False where only the box is known. `points(k)` gives the points of the losses "_k" as
    `mask_losses` takes them. num_objects: what the losses of each image are divided by: objects of the whole
    batch over all devices, an image counts at least one. The quality is 1 less the dice loss, whose gradient
    stays (quirk 6).
    """
    numbers = (*range(1, len(predictions)), 0)

    def losses_of(layer: tuple[jax.Array, PromptPrediction]) -> dict[str, jax.Array]:
        k, prediction = layer
        found = prediction.boxes[:, :, 0]
        bce, dice = mask_losses(prediction.mask_embedding[:, :, 0], mask_features, masks, points(k))
        parts = {
            "loss_mask_bce": jnp.where(has_mask, bce, 0),
            "loss_mask_dice": jnp.where(has_mask, dice, 0),
            "loss_bbox": jnp.abs(found - boxes).sum(-1),
            "loss_giou": 1 - generalized_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(boxes)),
            "iou_score_loss": jnp.where(has_mask, (prediction.ious[:, :, 0] - (1 - dice)) ** 2, 0),
        }
        return {name: jnp.where(object_mask, part, 0).sum(-1) for name, part in parts.items()}

    # one layer after the other, so that programs hold the work of one
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *predictions)
    sums = jax.lax.map(losses_of, (jnp.asarray(numbers), stacked))
    scales = {
        "loss_mask_bce": weights.mask_bce,
        "loss_mask_dice": weights.mask_dice,
        "loss_bbox": weights.bbox,
        "loss_giou": weights.giou,
        "iou_score_loss": weights.iou_score,
    }
    return {
        f"{name}_{k}": scales[name] * weights.multiplier * value / jnp.maximum(num_objects, 1)
        for name, values in sums.items()
        for k, value in zip(numbers, values, strict=True)
    }
