"""What the grounding model minimises: matched boxes, masks and phrases of every decoder layer.

Source: LLaVA-Grounding section 3; spec/grounding_model.md 7, 9, 10; spec/training_and_data.md 4.2, 14.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lgjax.losses import points as point_sampling
from lgjax.losses.boxes import generalized_iou
from lgjax.losses.matching import assign_all
from lgjax.models.decoder import mask_logits
from lgjax.models.grounding import Prediction
from lgjax.models.position import cxcywh_to_xyxy

_LOG_EPSILON = 1e-6
_ALPHA, _GAMMA = 0.25, 2
_CLASS_SCALE = 10


class Targets(NamedTuple):
    """What is known of b images, p phrases and t objects each.

    boxes: (cx, cy, w, h) in [0, 1] of the network input; object_mask, phrase_mask: False at padding;
    has_mask: False where an object has only its box; object_phrases: which phrases name an object; masks:
    [b, t, h, w], 0 or 1, over the network input at any resolution; image_mask: False for images that do not
    count.
    """

    boxes: Float[Array, "b t 4"]
    object_mask: Bool[Array, "b t"]
    has_mask: Bool[Array, "b t"]
    object_phrases: Bool[Array, "b t p"]
    phrase_mask: Bool[Array, "b p"]
    masks: jax.Array
    image_mask: Bool[Array, " b"]

    @property
    def objects(self) -> Bool[Array, "b t"]:
        """Objects of images that count."""
        return self.object_mask & self.image_mask[:, None]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the costs and losses; `multiplier` scales the losses alone (stage 2: 0.1)."""

    cls: float = 4.0
    bce: float = 5.0
    dice: float = 5.0
    bbox: float = 5.0
    giou: float = 2.0
    multiplier: float = 1.0


@runtime_checkable
class Points(Protocol):
    """Where masks are compared; a source of random points, or of given ones in tests.

    output: the number of an output.
    """

    def matching(self, output: Int[Array, ""]) -> Float[Array, "b n 2"]:
        """Points of each image for the costs of an output, shared by its masks."""
        ...

    def losses(self, output: Int[Array, ""], queries: Int[Array, "b t"]) -> tuple[jax.Array, jax.Array]:
        """Points [b, t, m, 2] to choose from and [b, t, k, 2] to take, of each object with its query."""
        ...


def focal(logits: Float[Array, "*s"], positive: Bool[Array, "*s"]) -> Float[Array, "*s"]:
    """Sigmoid focal loss, alpha 0.25, gamma 2. Source: Lin et al. 2017."""
    signed = jnp.where(positive, logits, -logits)
    alpha = jnp.where(positive, _ALPHA, 1 - _ALPHA)
    return alpha * jax.nn.softplus(-signed) * jax.nn.sigmoid(-signed) ** _GAMMA


class Costs(NamedTuple):
    """Costs of giving an object to a query, each [b, t, q]; None where masks are not compared."""

    cls: jax.Array
    bbox: jax.Array
    giou: jax.Array
    bce: jax.Array | None
    dice: jax.Array | None

    def total(self, weights: Weights) -> Float[Array, "b t q"]:
        """Their weighted sum."""
        total = weights.cls * self.cls + weights.bbox * self.bbox + weights.giou * self.giou
        if self.bce is None or self.dice is None:
            return total
        return total + weights.bce * self.bce + weights.dice * self.dice


def matching_costs(
    prediction: Prediction,
    mask_features: Float[Array, "b h w c"],
    targets: Targets,
    points: Float[Array, "b n 2"] | None,
) -> Costs:
    """Costs of one output. Without `points` masks are not compared (the detection task).

    Objects that have only their box cost nothing by their mask. Source: spec/grounding_model.md 9.
    """
    probability = jax.nn.sigmoid(prediction.logits)
    positive = _ALPHA * (1 - probability) ** _GAMMA * -jnp.log(probability + _LOG_EPSILON)
    negative = (1 - _ALPHA) * probability**_GAMMA * -jnp.log(1 - probability + _LOG_EPSILON)
    named = (targets.object_phrases & targets.phrase_mask[:, None]).astype(jnp.float32)
    sums = jnp.einsum("bqp,btp->btq", positive - negative, named)
    cls = sums / jnp.maximum(named.sum(-1, keepdims=True), 1)
    bbox = jnp.abs(targets.boxes[:, :, None] - prediction.boxes[:, None]).sum(-1)
    corners = cxcywh_to_xyxy(targets.boxes)[:, :, None], cxcywh_to_xyxy(prediction.boxes)[:, None]
    giou = -generalized_iou(*corners)
    if points is None:
        return Costs(cls, bbox, giou, None, None)
    # sampling commutes with the product, so the masks themselves are never built
    sampled = point_sampling.sample_rows(mask_features, points)
    logits = jnp.einsum("bqc,bnc->bqn", prediction.mask_embedding, sampled)
    shared = jnp.broadcast_to(points[:, None], (*targets.boxes.shape[:2], *points.shape[1:]))
    truth = point_sampling.sample(targets.masks, shared)
    n = points.shape[1]
    bce = (jax.nn.softplus(logits).sum(-1)[:, None] - jnp.einsum("bqn,btn->btq", logits, truth)) / n
    inside = jax.nn.sigmoid(logits)
    both = jnp.einsum("bqn,btn->btq", inside, truth)
    dice = 1 - (2 * both + 1) / (inside.sum(-1)[:, None] + truth.sum(-1)[..., None] + 1)
    has = targets.has_mask[..., None]
    return Costs(cls, bbox, giou, jnp.where(has, bce, 0), jnp.where(has, dice, 0))


class Sums(NamedTuple):
    """Losses of one output before weights and normalisers, added up over the objects of each image, [b]."""

    mask_cls: jax.Array
    bbox: jax.Array
    giou: jax.Array
    mask_bce: jax.Array | None
    mask_dice: jax.Array | None


def output_losses(
    prediction: Prediction,
    mask_features: Float[Array, "b h w c"],
    targets: Targets,
    queries: Int[Array, "b t"],
    points: tuple[jax.Array, jax.Array] | None,
    phrase_counts: Float[Array, " b"],
) -> Sums:
    """Losses of one output whose objects have these queries (-1: none).

    phrase_counts: what the class loss of each image is divided by. Source: spec/grounding_model.md 10.
    """
    matched = (queries >= 0) & targets.objects
    at = jnp.maximum(queries, 0)
    cls = _class_loss(prediction.logits, targets, jnp.where(matched, queries, -1), phrase_counts)
    boxes = jnp.take_along_axis(prediction.boxes, at[..., None], axis=1)
    bbox = jnp.abs(boxes - targets.boxes).sum(-1)
    giou = 1 - generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes))
    bbox, giou = (jnp.where(matched, part, 0).sum(-1) for part in (bbox, giou))
    if points is None:
        return Sums(cls, bbox, giou, None, None)
    embedding = jnp.take_along_axis(prediction.mask_embedding, at[..., None], axis=1)
    bce, dice = mask_losses(embedding, mask_features, targets.masks, points)
    compared = matched & targets.has_mask
    return Sums(cls, bbox, giou, *(jnp.where(compared, part, 0).sum(-1) for part in (bce, dice)))


def _class_loss(
    logits: Float[Array, "b q p"],
    targets: Targets,
    queries: Int[Array, "b t"],
    phrase_counts: Float[Array, " b"],
) -> Float[Array, " b"]:
    """10 times the focal losses of all queries and phrases, each image divided by its phrase count."""
    given = jax.nn.one_hot(queries, logits.shape[1], dtype=jnp.float32)  # all zero for -1
    positive = jnp.einsum("btq,btp->bqp", given, targets.object_phrases.astype(jnp.float32)) > 0
    losses = jnp.where(targets.phrase_mask[:, None], focal(logits, positive), 0).sum((1, 2))
    return _CLASS_SCALE * jnp.where(targets.image_mask, losses / jnp.maximum(phrase_counts, 1), 0)


def mask_losses(
    embedding: Float[Array, "b t c"],
    mask_features: Float[Array, "b h w c"],
    masks: jax.Array,
    points: tuple[jax.Array, jax.Array],
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    """Binary cross entropy (mean) and dice loss of each object's mask at its least certain points.

    Source: spec/grounding_model.md 10; spec/visual_prompts.md 7.4.
    """
    logits = mask_logits(embedding, mask_features)
    over, extra = points
    uncertain = int(point_sampling.IMPORTANCE * (over.shape[2] // point_sampling.OVERSAMPLE))
    chosen = point_sampling.uncertain_points(logits, over, extra, uncertain)
    found, truth = point_sampling.sample(logits, chosen), point_sampling.sample(masks, chosen)
    bce = (jax.nn.softplus(found) - found * truth).mean(-1)
    inside = jax.nn.sigmoid(found)
    dice = 1 - (2 * (inside * truth).sum(-1) + 1) / (inside.sum(-1) + truth.sum(-1) + 1)
    return bce, dice


def grounding_losses(
    predictions: Mapping[str, Prediction],
    mask_features: Float[Array, "b h w c"],
    targets: Targets,
    points: Points,
    *,
    num_objects: Float[Array, "#b"] | Int[Array, "#b"],
    phrase_counts: Float[Array, " b"],
    weights: Weights = Weights(),
    use_masks: bool = True,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Weighted losses of all outputs by name, [b], and the query [b, t] of each object in every output.

    The loss of a batch is the sum over its images. num_objects: what the losses of each image are divided by
    (objects of the whole batch over all devices, at least 1); phrase_counts: see `output_losses`; use_masks
    False is the detection task. Names end with "_0" for the last layer, "_1" .. for the earlier ones and
    "_0_interm" for the proposals.
    """
    numbers = jnp.arange(len(predictions))
    # one output after the other, so that programs hold the work of one, however deep the decoder
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *predictions.values())

    def costs_of(output: tuple[jax.Array, Prediction]) -> jax.Array:
        number, prediction = output
        where = points.matching(number) if use_masks else None
        return matching_costs(prediction, features, targets, where).total(weights)

    features = jax.lax.stop_gradient(mask_features)
    costs = jax.lax.map(costs_of, (numbers, jax.lax.stop_gradient(stacked)))
    # objects in front: `assign` takes the first ones
    order = jnp.argsort(~targets.objects, axis=1, stable=True)
    costs = jnp.take_along_axis(costs, order[None, ..., None], axis=2)
    counts = jnp.broadcast_to(targets.objects.sum(1), costs.shape[:2])
    flat = assign_all(costs.reshape(-1, *costs.shape[2:]), counts.reshape(-1))
    back = jnp.argsort(order, axis=1)
    queries = jnp.take_along_axis(flat.reshape(costs.shape[:3]), back[None], axis=2)

    def losses_of(output: tuple[jax.Array, Prediction, jax.Array]) -> Sums:
        number, prediction, given = output
        where = points.losses(number, given) if use_masks else None
        return output_losses(prediction, mask_features, targets, given, where, phrase_counts)

    sums = jax.lax.map(losses_of, (numbers, stacked, queries))
    scales = (weights.cls, weights.bbox, weights.giou, weights.bce, weights.dice)
    losses = {}
    for part, values, scale in zip(Sums._fields, sums, scales, strict=True):
        if values is None:
            continue
        for name, value in zip(predictions, values, strict=True):
            divided = value / jnp.maximum(num_objects, 1)
            losses[f"loss_{part}_{_suffix(name)}"] = scale * weights.multiplier * divided
    return losses, dict(zip(predictions, queries, strict=True))


def _suffix(output: str) -> str:
    if output == "interm":
        return "0_interm"
    return "0" if output == "final" else str(int(output.removeprefix("aux")) + 1)
