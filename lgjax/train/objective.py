"""What a batch costs: language, grounding and visual-prompt losses of its rows, each a mean over the mesh.

    all rows      clip pictures ─ CLIP ─ projector ─┐
                  visual prompts ───────────────────┼─ LLaMA ─ language loss
    grounded rows views ─ visual-prompt model ──────┘    │ states of <seg>
                  views ─ grounding model ───────────────┴─ grounding losses

The two vision models, their matching and their points run on each device for its own rows, with whole
parameters: nothing but parameters and gradients travels. Source: spec/training_and_data.md 4, 14.2, 14.3.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, UInt32

from lgjax.config import IGNORE_LABEL, ModelConfig
from lgjax.data.batch import Grounding as GroundedRows
from lgjax.data.batch import Language
from lgjax.data.images import CLIP_MEAN, CLIP_STD
from lgjax.losses.grounding import Targets, grounding_losses
from lgjax.losses.language import language_loss
from lgjax.losses.points import RandomPoints
from lgjax.losses.prompting import prompting_losses
from lgjax.models.grounding import Grounding, normalize_pixels
from lgjax.models.llava_grounding import LlavaGrounding, seg_states
from lgjax.models.prompting import Prompting
from lgjax.parallel.mesh import BATCH_AXES
from lgjax.train.config import LossConfig

Losses = dict[str, jax.Array]
_STREAMS = 64  # most streams of a mixture


class Rows(NamedTuple):
    """What devices see of a batch: b rows of text, g of them grounded; see `lgjax.data.batch`."""

    language: Language
    grounding: GroundedRows | None


class Normalisers(NamedTuple):
    """What the losses of each row are divided by, computed from a whole step.

    tokens: [b] weight of each token of a row; objects, prompts: [g] objects that grounding and visual-prompt
    losses are divided by; phrases: [g] what the class loss is divided by.
    """

    tokens: Float[Array, " b"]
    objects: Int[Array, " g"] | Float[Array, " g"]
    prompts: Int[Array, " g"] | Float[Array, " g"]
    phrases: Float[Array, " g"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """How rows lie: groups of `grounded` and then `text` rows."""

    grounded: int
    text: int

    def cut(self, tree: Any) -> Any:
        """The grounded rows of arrays that hold all rows; nothing moves between devices."""
        size = self.grounded + self.text

        def one(array: Any) -> Any:
            kept = array.reshape(-1, size, *array.shape[1:])[:, : self.grounded]
            return kept.reshape(-1, *array.shape[1:])

        return jax.tree.map(one, tree)

    def spread(self, array: Float[Array, "g n d"]) -> Float[Array, "b n d"]:
        """Undo `cut`; the rows of text get zeros."""
        groups = array.reshape(-1, self.grounded, *array.shape[1:])
        padded = jnp.pad(groups, ((0, 0), (0, self.text), (0, 0), (0, 0)))
        return padded.reshape(-1, *array.shape[1:])


def normalisers(rows: Rows, config: LossConfig, shape: Shape) -> Normalisers:
    """Count tokens, objects and phrases of a whole step. Source: spec/training_and_data.md 14.3."""
    language, ground = cast(Any, jax.tree.map(jnp.asarray, rows))
    labels = language.plan.labels[:, 1:] != IGNORE_LABEL
    tokens = labels.sum(1) * (language.lm_weight > 0)
    total = _sums(tokens, language.stream, config.language_mean == "stream")
    weights = language.lm_weight / jnp.maximum(total, 1)
    if ground is None:
        none = jnp.zeros(0)
        return Normalisers(weights, none, none, none)
    stream = shape.cut(language.stream)
    counts = ground.object_mask.sum(1)
    objects, prompts = (
        _objects(n, stream, config.object_mean, shape) for n in (counts * (ground.weight > 0), counts)
    )
    phrases = ground.seg_mask.sum(1) * (ground.weight > 0)
    if config.phrase_mean == "group":
        counts, streams = (array.reshape(-1, shape.grounded) for array in (phrases, stream))
        same = streams[:, :, None] == streams[:, None]
        phrases = jnp.where(same, counts[:, None], 0).max(-1).reshape(-1)
    return Normalisers(weights, objects, prompts, phrases.astype(jnp.float32))


def _objects(counts: Int[Array, " g"], stream: Int[Array, " g"], mean: str, shape: Shape) -> Int[Array, " g"]:
    if mean == "group":
        sums = counts.reshape(-1, shape.grounded).sum(1)
        return jnp.repeat(len(sums) * jnp.maximum(sums, 1), shape.grounded)
    return jnp.maximum(_sums(counts, stream, mean == "stream"), 1)


def _sums(counts: Int[Array, " n"], stream: Int[Array, " n"], apart: bool) -> Int[Array, " n"]:
    """For each row the sum over all rows, or over those of its stream."""
    if not apart:
        return jnp.broadcast_to(counts.sum(), counts.shape)
    return jnp.zeros(_STREAMS, counts.dtype).at[stream].add(counts)[stream]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The losses of rows as a pure function of parameters.

    dtype: compute type of tower and language model; mesh: over which rows lie.
    """

    model: ModelConfig
    loss: LossConfig
    shape: Shape
    mesh: Mesh
    dtype: DTypeLike = jnp.float32
    scan_layers: bool = False
    remat: bool = False

    def __call__(
        self, params: dict[str, Any], rows: Rows, counts: Normalisers, key: Key[Array, ""], train: bool = True
    ) -> Losses:
        """Weighted losses by name, scalars, to be added up; `counts` are those of the whole step.

        Names are "language", those of `grounding_losses`, and those of `prompting_losses` with "prompt_" in
        front. `train` False switches stochastic depth off.
        """
        model = LlavaGrounding(self.model, self.dtype, self.scan_layers, self.remat)
        own = {name: part for name, part in params.items() if name in ("clip", "projector", "llama")}
        language, losses = rows.language, {}

        def apply(*inputs: Any, method: str) -> Any:
            return _apply(model, own, *inputs, method=method)

        pixels = (language.clip_images / 255.0 - jnp.asarray(CLIP_MEAN)) / jnp.asarray(CLIP_STD)
        tokens = apply(pixels.astype(self.dtype), method="image_tokens")
        sample_ids = self.shape.cut(jnp.asarray(language.sample_id)) if rows.grounding is not None else None
        objects = None
        if "prompting" in self.loss.parts:
            objects, found = self._prompts(params["prompt"], rows, counts, key, sample_ids, train)
            losses |= {f"prompt_{name}": value for name, value in found.items()}
            objects = self.shape.spread(objects)
        hidden = apply(language.plan, tokens, objects, method="read")
        if "language" in self.loss.parts:
            labels = jnp.asarray(language.plan.labels)
            losses["language"] = language_loss(
                hidden, labels, lambda states: apply(states, method="logits"), counts.tokens
            )[0]
        if "grounding" in self.loss.parts:
            losses |= self._ground(params["grounding"], hidden, rows, counts, key, sample_ids, train)
        return losses

    def _prompts(
        self,
        params: dict[str, Any],
        rows: Rows,
        counts: Normalisers,
        key: jax.Array,
        sample_ids: UInt32[Array, " g"] | None,
        train: bool,
    ) -> tuple[jax.Array, Losses]:
        ground = rows.grounding
        assert ground is not None and self.model.prompt is not None
        model = Prompting(self.model.prompt, self.model.llama.hidden_size, remat=self.remat)

        def own_rows(shared: Any, local: Any) -> tuple[jax.Array, Losses]:
            params, key = shared
            ground, numbers, ids = local
            keys = self._drop_keys(key, ids, "prompt", train)
            objects, predictions, features = _apply(
                model,
                params,
                normalize_pixels(ground.images),
                ground.prompts,
                ground.is_box,
                ground.object_mask,
                True,
                keys,
            )
            points = RandomPoints(key, ids, self.loss.points)
            found = _precise(
                prompting_losses,
                predictions,
                features.mask_features,
                ground.boxes,
                jnp.unpackbits(ground.masks, axis=-1),
                ground.object_mask,
                ground.has_mask,
                lambda k: points.of_objects(f"prompt {k}", ground.boxes.shape[1]),
                numbers,
                self.loss.prompting,
            )
            return objects, found

        objects, found = self._on_own_rows(own_rows, (params, key), (ground, counts.prompts, sample_ids))
        return objects, {name: value.sum() for name, value in found.items()}

    def _ground(
        self,
        params: dict[str, Any],
        hidden: Float[Array, "b t d"],
        rows: Rows,
        counts: Normalisers,
        key: jax.Array,
        sample_ids: UInt32[Array, " g"] | None,
        train: bool,
    ) -> Losses:
        ground = rows.grounding
        assert ground is not None and self.model.grounding is not None
        model = Grounding(self.model.grounding, self.model.llama.hidden_size, remat=self.remat)
        states = seg_states(
            self.shape.cut(hidden), jnp.asarray(ground.seg_positions), jnp.asarray(ground.seg_mask)
        )
        states = states.astype(jnp.float32)
        if self.loss.detach_seg:
            states = jax.lax.stop_gradient(states)

        def own_rows(shared: Any, local: Any) -> Losses:
            params, key = shared
            ground, states, numbers, phrases, ids = local
            keys = self._drop_keys(key, ids, "grounding", train)
            predictions, features = _apply(
                model,
                params,
                normalize_pixels(ground.images),
                states,
                ground.seg_mask,
                self.loss.queries,
                keys,
            )
            targets = Targets(
                boxes=ground.boxes,
                object_mask=ground.object_mask,
                has_mask=ground.has_mask,
                object_phrases=ground.object_phrases,
                phrase_mask=ground.seg_mask,
                masks=jnp.unpackbits(ground.masks, axis=-1),
                image_mask=ground.weight > 0,
            )
            found, _ = _precise(
                grounding_losses,
                predictions,
                features.mask_features,
                targets,
                RandomPoints(key, ids, self.loss.points),
                num_objects=numbers,
                phrase_counts=phrases,
                weights=self.loss.grounding,
            )
            return found

        local = (ground, states, counts.objects, counts.phrases, sample_ids)
        found = self._on_own_rows(own_rows, (params, key), local)
        return {name: value.sum() for name, value in found.items()}

    def _drop_keys(self, key: jax.Array, ids: jax.Array, name: str, train: bool) -> jax.Array | None:
        if not (train and self.loss.drop_path):
            return None
        key = jax.random.fold_in(key, zlib.crc32(f"drop path {name}".encode()))
        return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)

    def _on_own_rows(self, function: Callable[[Any, Any], Any], shared: Any, local: Any) -> Any:
        """Run on each device for its rows of `local`, with all of `shared`; results are rows too."""
        if self.mesh.size == 1:
            return function(shared, local)
        rows = jax.tree.leaves(local)[0].shape[0]
        axes = self.mesh.axis_names if rows % self.mesh.size == 0 else BATCH_AXES
        spec = PartitionSpec(tuple(axes))
        run = jax.shard_map(
            function, mesh=self.mesh, in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False
        )
        with nn.logical_axis_rules(()):
            return run(shared, local)


def _precise(losses: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """Losses and costs in true float32, where an accelerator would otherwise multiply in fewer bits."""
    with jax.default_matmul_precision("highest"):
        return losses(*inputs, **options)


def _apply(model: nn.Module, params: dict[str, Any], *inputs: Any, **options: Any) -> Any:
    return model.apply({"params": params}, *inputs, **options)


def families(losses: Losses) -> Losses:
    """Losses of all outputs added up by kind: "language", "mask_cls", "bbox", ..., "prompt_bbox", ...."""
    sums: Losses = {}
    for name, value in losses.items():
        kind = name.replace("iou_score_loss", "iou_score").replace("loss_", "").removesuffix("_interm")
        kind = kind.rstrip("0123456789").removesuffix("_")
        sums[kind] = sums.get(kind, jnp.zeros(())) + value
    return sums
