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
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Shaped, UInt32

from lgjax.config import IGNORE_LABEL, ModelConfig
from lgjax.data.batch import NOTHING, Language
from lgjax.data.batch import Grounding as GroundedRows
from lgjax.data.images import CLIP_MEAN, CLIP_STD
from lgjax.losses.grounding import Targets, grounding_losses
from lgjax.losses.language import language_loss
from lgjax.losses.points import RandomPoints
from lgjax.losses.prompting import prompting_losses
from lgjax.losses.words import (
    choice_loss,
    mean_word_loss,
    name_phrases,
    sphere,
    table_logits,
    word_loss,
)
from lgjax.models.attention import Kernel
from lgjax.models.grounding import Grounding, Prediction, normalize_pixels
from lgjax.models.llava_grounding import LlavaGrounding, seg_states
from lgjax.models.position import LevelSizes, cell_centres
from lgjax.models.prompting import Prompting
from lgjax.parallel.mesh import BATCH_AXES
from lgjax.train.config import LossConfig

Losses = dict[str, jax.Array]
_STREAMS = 64  # most streams of a mixture

IDLE = 0.4  # weight of a query without an object, beside what nothing has anyhow
NAMES = 4.0  # weight of reading names, so that it counts beside boxes and masks of every layer
_ALONE = ("interm", "aux0")  # outputs whose queries do not know of each other
CHOICE = 2.0  # weight of choosing the queries of a phrase


class Rows(NamedTuple):
    """What devices see of a batch: b rows of text, g of them grounded; see `lgjax.data.batch`."""

    language: Language
    grounding: GroundedRows | None


class Normalisers(NamedTuple):
    """What the losses of each row are divided by, computed from a whole step.

    tokens: [b] weight of each token of a row, beside that of its label; objects, prompts: [g] objects that
    grounding and visual-prompt losses are divided by; phrases: [g] what the class loss is divided by.
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
    labels = (language.plan.labels != IGNORE_LABEL)[:, 1:]
    if language.label_weights is not None:
        labels = labels * language.label_weights[:, 1:]
    tokens = labels.sum(1) * (language.lm_weight > 0)
    total = _sums(tokens, language.stream, config.language_mean == "stream")
    weights = language.lm_weight / jnp.maximum(total, 1)
    if ground is None:
        none = jnp.zeros(0)
        return Normalisers(weights, none, none, none)
    if config.phrases == "names":
        ground = _named(ground)
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


def _sums(counts: Shaped[Array, " n"], stream: Int[Array, " n"], apart: bool) -> Shaped[Array, " n"]:
    """For each row the sum over all rows, or over those of its stream."""
    if not apart:
        return jnp.broadcast_to(counts.sum(), counts.shape)
    return jnp.zeros(_STREAMS, counts.dtype).at[stream].add(counts)[stream]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The losses of rows as a pure function of parameters.

    dtype: compute type of tower and language model; mesh: over which rows lie; kernel: of the language
    model's attention.
    """

    model: ModelConfig
    loss: LossConfig
    shape: Shape
    mesh: Mesh
    dtype: DTypeLike = jnp.float32
    scan_layers: bool = False
    remat: bool = False
    kernel: Kernel = "plain"

    def __call__(
        self, params: dict[str, Any], rows: Rows, counts: Normalisers, key: Key[Array, ""], train: bool = True
    ) -> Losses:
        """Weighted losses by name, scalars, to be added up; `counts` are those of the whole step.

        Names are "language", those of `grounding_losses`, and those of `prompting_losses` with "prompt_" in
        front; "words...", "names_..." and "phrases": see `LossConfig`. `train` False switches stochastic
        depth off.
        """
        model = LlavaGrounding(self.model, self.dtype, self.scan_layers, self.remat, self.kernel)
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
        if "words" in self.loss.parts:
            losses |= self._words(apply, params, tokens, objects, rows.grounding)
        hidden = apply(language.plan, tokens, objects, method="read")
        if "language" in self.loss.parts:
            labels = jnp.asarray(language.plan.labels)
            losses["language"] = language_loss(
                hidden,
                labels,
                lambda states: apply(states, method="logits"),
                counts.tokens,
                label_weights=jax.tree.map(jnp.asarray, language.label_weights),
            )[0]
        if "grounding" in self.loss.parts:
            losses |= self._ground(params, hidden, rows, counts, key, sample_ids, train)
        elif "names" in self.loss.parts:
            losses["names_tokens"] = self._token_names(params, rows.grounding)
        if "phrases" in self.loss.parts:
            losses["phrases"] = self._phrases(params, hidden, rows.grounding)
        return losses

    def _words(
        self,
        apply: Callable[..., Any],
        params: dict[str, Any],
        tokens: Float[Array, "b n d"],
        objects: Float[Array, "b t d"] | None,
        ground: GroundedRows | None,
    ) -> Losses:
        """Image tokens, and visual prompts where there are any, read by the input table and by the head."""
        assert ground is not None
        table = params["llama"]["embed_tokens"]

        def read(states: jax.Array, words: jax.Array) -> jax.Array:
            by_head = apply(sphere(states).astype(self.dtype), method="logits")
            both = table_logits(states, table), by_head
            return sum((mean_word_loss(logits, words, NOTHING) for logits in both), jnp.zeros(())) / 2

        losses = {"words": read(self.shape.cut(tokens), jnp.asarray(ground.patch_words))}
        if objects is not None:
            words = jnp.where(ground.object_mask, ground.object_words, -1)
            losses["words_prompts"] = read(self.shape.cut(objects), words)
        return losses

    def _phrases(
        self, params: dict[str, Any], hidden: Float[Array, "b t d"], ground: GroundedRows | None
    ) -> jax.Array:
        """States of <seg> read by the input table as the first object that they name."""
        assert ground is not None
        states = seg_states(
            self.shape.cut(hidden), jnp.asarray(ground.seg_positions), jnp.asarray(ground.seg_mask)
        )
        first = jnp.asarray(ground.object_phrases).argmax(1)
        words = jnp.take_along_axis(jnp.asarray(ground.object_words), first, axis=1)
        words = jnp.where(ground.seg_mask & ground.object_phrases.any(1), words, -1)
        table = jax.lax.stop_gradient(params["llama"]["embed_tokens"])
        return mean_word_loss(table_logits(states, table), words, NOTHING)

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
        model = Prompting(
            self.model.prompt, self.model.llama.hidden_size, remat=self.remat, scan_layers=self.scan_layers
        )

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
                lambda k: points.of_objects("prompt", k, ground.boxes.shape[1]),
                numbers,
                self.loss.prompting,
            )
            return objects, found

        objects, found = self._on_own_rows(own_rows, (params, key), (ground, counts.prompts, sample_ids))
        return objects, {name: value.sum() for name, value in found.items()}

    def _ground(
        self,
        all_params: dict[str, Any],
        hidden: Float[Array, "b t d"],
        rows: Rows,
        counts: Normalisers,
        key: jax.Array,
        sample_ids: UInt32[Array, " g"] | None,
        train: bool,
    ) -> Losses:
        ground = rows.grounding
        assert ground is not None and self.model.grounding is not None
        model = Grounding(
            self.model.grounding, self.model.llama.hidden_size, remat=self.remat, scan_layers=self.scan_layers
        )
        table = sphere(jax.lax.stop_gradient(all_params["llama"]["embed_tokens"]))
        if self.loss.phrases == "names":
            ground = _named(ground)
            states = table[jnp.maximum(ground.object_words, 0)]
        else:
            states = seg_states(
                self.shape.cut(hidden), jnp.asarray(ground.seg_positions), jnp.asarray(ground.seg_mask)
            )
        states = states.astype(jnp.float32)
        if self.loss.detach_seg:
            states = jax.lax.stop_gradient(states)

        def own_rows(shared: Any, local: Any) -> Losses:
            params, table, key = shared
            ground, states, numbers, phrases, ids, images = local
            keys = self._drop_keys(key, ids, "grounding", train)
            (predictions, features), seen = _apply(
                model,
                params,
                normalize_pixels(ground.images),
                states,
                ground.seg_mask,
                self.loss.queries,
                keys,
                mutable="intermediates",
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
            found, matches = _precise(
                grounding_losses,
                predictions,
                features.mask_features,
                targets,
                RandomPoints(key, ids, self.loss.points),
                num_objects=numbers,
                phrase_counts=phrases,
                weights=self.loss.grounding,
            )
            if "names" in self.loss.parts:

                def names(states: jax.Array) -> jax.Array:
                    return table_logits(_apply(model, params, states, method="lift"), table)

                tokens = names(seen["intermediates"]["candidates"][0])
                found["names_tokens"] = _name_tokens(tokens, features.level_sizes, ground, images)
                found["names_queries"] = _name_queries(names, seen["intermediates"], matches, ground, numbers)
                found["names_choice"] = _choose_queries(predictions, matches, targets, images)
                # names tell queries apart; the class loss would have all names unlearnt first
                found = {name: value for name, value in found.items() if "mask_cls" not in name}
            return found

        local = (ground, states, counts.objects, counts.phrases, sample_ids, _counting(ground))
        found = self._on_own_rows(own_rows, (all_params["grounding"], table, key), local)
        return {name: value.sum() for name, value in found.items()}

    def _token_names(self, params: dict[str, Any], ground: GroundedRows | None) -> jax.Array:
        """The grounding model's tokens read by the input table, without decoder and stochastic depth."""
        assert ground is not None and self.model.grounding is not None
        model = Grounding(
            self.model.grounding, self.model.llama.hidden_size, remat=self.remat, scan_layers=self.scan_layers
        )
        table = jax.lax.stop_gradient(params["llama"]["embed_tokens"])

        def own_rows(shared: Any, local: Any) -> jax.Array:
            params, table = shared
            ground, images = local
            pixels = normalize_pixels(ground.images)
            lifted, features = _apply(model, params, pixels, method="named_tokens")
            return _name_tokens(table_logits(lifted, table), features.level_sizes, ground, images)

        return self._on_own_rows(own_rows, (params["grounding"], table), (ground, _counting(ground))).sum()

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


def _named(ground: GroundedRows) -> GroundedRows:
    """Rows whose phrases are the names of their objects."""
    phrases = name_phrases(jnp.asarray(ground.object_words), jnp.asarray(ground.object_mask))
    changes: Any = dict(seg_mask=phrases.mask, object_phrases=phrases.objects)
    return ground._replace(weight=phrases.mask.any(1).astype(jnp.float32), **changes)


def _counting(ground: GroundedRows) -> Float[Array, " g"]:
    """How many images of the batch count, said to each of them."""
    counting = jnp.asarray(ground.weight) > 0
    return jnp.broadcast_to(jnp.maximum(counting.sum(), 1).astype(jnp.float32), counting.shape)


def _name_tokens(
    logits: Float[Array, "g n v"], level_sizes: LevelSizes, ground: GroundedRows, images: Float[Array, " g"]
) -> Float[Array, " g"]:
    """The encoder's tokens read as what lies at their middle; `images`: how many of the batch count."""
    words = jnp.where(ground.object_mask, ground.object_words, -1)
    side = ground.masks.shape[2]
    x, y = (cell_centres(level_sizes) * side).astype(np.int32).T
    inside = jnp.unpackbits(ground.masks, axis=-1)[:, :, y, x] > 0
    shown = jnp.take_along_axis(words, inside.argmax(1), axis=1)
    shown = jnp.where(inside.any(1), shown, NOTHING)
    return NAMES * jnp.where(ground.weight > 0, word_loss(logits, shown, NOTHING).mean(1), 0) / images


def _name_queries(
    read: Callable[[Float[Array, "g q c"]], Float[Array, "g q v"]],
    seen: dict[str, Any],
    matches: dict[str, Int[Array, "g t"]],
    ground: GroundedRows,
    numbers: Float[Array, " g"] | Int[Array, " g"],
) -> Float[Array, " g"]:
    """Queries read as the objects they are matched with, mean over the outputs.

    Behind the decoder, where queries know of each other, those without an object are read as nothing.
    """
    words, total = jnp.where(ground.object_mask, ground.object_words, -1), jnp.zeros(len(ground.images))
    for name, queries in matches.items():
        states = seen[f"normed_{name}"][0]
        alone = name in _ALONE
        row = jnp.arange(len(states))[:, None]
        # objects without a query write behind the last one
        at = jnp.where(queries >= 0, queries, states.shape[1])
        idle = jnp.where((ground.weight > 0) & (not alone), NOTHING, -1)
        shown = jnp.broadcast_to(idle[:, None], states.shape[:2]).at[row, at].set(words, mode="drop")
        weights = jnp.where(shown == NOTHING, IDLE, 1)
        total += (weights * word_loss(read(states), shown, NOTHING)).sum(1) / jnp.maximum(numbers, 1)
    return NAMES * total / len(matches)


def _choose_queries(
    predictions: dict[str, Prediction],
    matches: dict[str, Int[Array, "g t"]],
    targets: Targets,
    images: Float[Array, " g"],
) -> Float[Array, " g"]:
    """Phrases choose the queries of their objects among all, mean over the outputs behind the decoder.

    `images`: how many of the batch count.
    """
    behind, total = [name for name in matches if name not in _ALONE], jnp.zeros(len(targets.boxes))
    for name in behind:
        logits = predictions[name].logits
        # objects without a query have a row of zeros
        given = jax.nn.one_hot(jnp.where(targets.objects, matches[name], -1), logits.shape[1])
        positive = jnp.einsum("gtq,gtp->gqp", given, targets.object_phrases.astype(jnp.float32)) > 0
        total += choice_loss(logits, positive, targets.phrase_mask)
    each = total / len(behind) / jnp.maximum(targets.phrase_mask.sum(-1), 1)
    return CHOICE * jnp.where(targets.image_mask, each, 0) / images


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
