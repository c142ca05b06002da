"""Where a run starts: parameters of checkpoints, fresh ones where none has them, and the tokenizer.

Source: spec/training_and_data.md 2.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from lgjax.config import ModelConfig
from lgjax.convert import meta, packed, store
from lgjax.convert.store import flattened
from lgjax.data.batch import SampleMaker, concatenate
from lgjax.models.llava_grounding import LlavaGrounding, abstract_params, example_inputs, logical_axes
from lgjax.parallel.rules import shardings
from lgjax.text.tokenizer import ADDED_FILE, CONFIG_FILE, GROUNDING_TOKENS, MODEL_FILE, Tokenizer
from lgjax.train.config import TrainConfig
from lgjax.train.groups import EMBED, HEAD, Flat, split
from lgjax.train.objective import Rows
from lgjax.train.step import TrainState, init_state, on_mesh, state_shardings


def load_tokenizer(config: TrainConfig) -> Tokenizer:
    """The tokenizer of a run; a plain LLaMA one gets the grounding tokens behind its last piece.

    Raises:
        FileNotFoundError, ValueError: there is none, or it has another number of ids than the model has rows.
    """
    for folder in config.start:
        meta.read(folder)  # a folder that is not there should not be taken for a wrong tokenizer
    given = [Path(config.tokenizer)] if config.tokenizer else []
    places = given or [Path(folder) / store.TOKENIZER for folder in reversed(config.start)]
    files = [place / MODEL_FILE if place.is_dir() else place for place in places]
    if model := next((file for file in files if file.is_file()), None):
        found = _read_tokenizer(model)
    elif places:
        raise FileNotFoundError(
            f"no tokenizer.model in {', '.join(map(str, places))}; name one by --tokenizer"
        )
    else:
        found, model = shipped_tokenizer(), "the package's small tokenizer"
    rows = config.model.llama.vocab_size
    if found.vocab_size != rows:
        raise ValueError(
            f"{model} has {found.vocab_size} ids with the grounding tokens, the model {rows} rows "
            "(model.llama.vocab_size); give the tokenizer of the language model by --tokenizer"
        )
    new = (found.g_s_id, found.g_e_id, found.seg_id)
    if config.optim.rates.new_tokens and new != (rows - 3, rows - 2, rows - 1):
        raise ValueError(
            f"{model} gives <g_s>, <g_e>, <seg> the ids {new}; optim.rates.new_tokens trains the last three "
            f"rows, {rows - 3} to {rows - 1}; train the whole tables (optim.rates.embed, head) instead"
        )
    return found


def shipped_tokenizer() -> Tokenizer:
    """The small tokenizer of the package, 803 ids with the grounding tokens."""
    shipped = importlib.resources.files("lgjax") / "assets" / "debug_tokenizer.model"
    with importlib.resources.as_file(shipped) as file:
        return Tokenizer.from_model_file(file)


def _read_tokenizer(model: Path) -> Tokenizer:
    """The tokenizer of a SentencePiece file; the files beside it are taken where they know our tokens."""
    beside = (model.parent / name for name in (ADDED_FILE, CONFIG_FILE))
    known = any(GROUNDING_TOKENS[-1].encode() in file.read_bytes() for file in beside if file.is_file())
    return Tokenizer.load(model) if known else Tokenizer.from_model_file(model)


def start_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """The state before the first step, on its devices. The same configuration always gives the same state.

    Raises:
        FileNotFoundError, ValueError: a start folder cannot be read, or its parts have other sizes than the
            configuration.
    """
    places = state_shardings(abstract_state(config), config, mesh)
    trained, frozen = _cut(config, mesh, places)

    def begin(trained: Flat, frozen: Flat) -> TrainState:
        return init_state(config, trained, frozen)

    with on_mesh(mesh):
        return jax.jit(begin, out_shardings=places, donate_argnums=(0, 1))(trained, frozen)


def start_frozen(config: TrainConfig, mesh: Mesh) -> Flat:
    """The frozen part of `start_state` alone, for a run that goes on.

    Raises:
        FileNotFoundError, ValueError: see `start_state`.
    """
    return _cut(config, mesh, state_shardings(abstract_state(config), config, mesh), keep_trained=False)[1]


def _cut(
    config: TrainConfig, mesh: Mesh, places: TrainState, *, keep_trained: bool = True
) -> tuple[Flat, Flat]:
    """Cut the parameters of a start one by one, so that no more than one of them is held twice."""
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    params = _start_params(config, mesh)
    trained, frozen = (dict.fromkeys(part) for part in (places.trained, places.frozen))
    for path in list(params):
        learns, stays = split({path: params.pop(path)}, config, key)
        if keep_trained:
            trained |= jax.device_put(learns, {name: places.trained[name] for name in learns})
        frozen |= jax.device_put(stays, {name: places.frozen[name] for name in stays})
    return trained, frozen


def abstract_state(config: TrainConfig) -> TrainState:
    """Shapes of a run's state; nothing is allocated."""

    def make(params: Any) -> TrainState:
        return init_state(config, *split(params, config, jax.random.key(0)))

    return jax.eval_shape(make, flattened(abstract_params(config.model, config.scan_layers)))


def abstract_rows(config: TrainConfig, tokenizer: Tokenizer) -> Rows:
    """Shapes of a step's rows, from fillers; no dataset is opened."""
    data = config.data
    sizes = data.batch(config.model)
    parts = [
        SampleMaker(sizes, tokenizer, grounded).filler("")
        for grounded, count in ((True, data.grounded_rows), (False, data.text_rows))
        if count
    ]
    one = concatenate(parts)

    def shape(array: np.ndarray, count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *array.shape[1:]), array.dtype)

    grounded, rows = data.groups * data.grounded_rows, data.groups * (data.grounded_rows + data.text_rows)
    language = jax.tree.map(lambda array: shape(array, rows), one.language)
    return Rows(language, jax.tree.map(lambda array: shape(array, grounded), one.grounding))


def placed(abstract: TrainState, config: TrainConfig, mesh: Mesh | AbstractMesh) -> TrainState:
    """Shapes of a state with their shardings, as a restore wants them."""

    def one(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(one, abstract, state_shardings(abstract, config, mesh))


def _start_params(config: TrainConfig, mesh: Mesh) -> Flat:
    """All parameters by path, on their devices."""
    wanted = flattened(abstract_params(config.model))
    found: Flat = {}
    for folder in config.start:
        found |= _from_folder(folder, config.model, wanted, mesh)
    fresh = [path for path in wanted if path not in found]
    if fresh:
        found |= _fresh(config, fresh, mesh)
    found = {path: found.pop(path) for path in wanted}
    return _stacked(found) if config.scan_layers else found


def _stacked(params: Flat) -> Flat:
    """Stack the layers of the language model, one kind of array after the other."""
    first = "llama/layers_0/"
    for path in [path for path in params if path.startswith(first)]:
        name = path.removeprefix(first)
        count = sum(other.startswith("llama/layers_") and other.endswith(f"/{name}") for other in params)
        leaves = [params.pop(f"llama/layers_{layer}/{name}") for layer in range(count)]
        params[f"llama/layers/{name}"] = jnp.stack(leaves)
    return params


def _from_folder(folder: str, model: ModelConfig, wanted: Flat, mesh: Mesh) -> Flat:
    recorded = meta.read(folder)
    packed.refuse(folder, recorded, "training")
    parts = [part for part in recorded.parts if part != "projector" and getattr(model, part, None)]
    for part in parts:
        _check_sizes(folder, part, getattr(recorded.config, part), getattr(model, part))
    if {"llama", "grounding"} <= set(parts) and recorded.config.seg_state != model.seg_state:
        raise ValueError(
            f"{folder} takes the state {recorded.config.seg_state} a <seg> for a phrase, the configuration "
            f"{model.seg_state}; --model.seg-state {recorded.config.seg_state} keeps it as it is"
        )
    with_projector = [*parts, *(["projector"] if "projector" in recorded.parts else [])]
    params = flattened(store.load(folder, mesh=mesh, parts=with_projector).params)
    out = {}
    for path, leaf in params.items():
        leaf = _with_new_rows(path, leaf, wanted[path].shape)
        if leaf.shape != wanted[path].shape:
            raise ValueError(
                f"{folder} holds '{path}' of shape {list(leaf.shape)}, the configuration asks for "
                f"{list(wanted[path].shape)}"
            )
        out[path] = leaf
    return out


def _check_sizes(folder: str, part: str, found: Any, wanted: Any) -> None:
    """Raise ValueError naming the first size in which a part of a checkpoint differs."""
    # no weight depends on these
    free = ("vocab_size", "image_size", "num_queries", "merge_iou", "drop_path_rate")

    def compare(name: str, found: Any, wanted: Any) -> None:
        if dataclasses.is_dataclass(found) and dataclasses.is_dataclass(wanted):
            for field in dataclasses.fields(found):
                if field.name not in free or (part == "clip" and field.name == "image_size"):
                    compare(f"{name}.{field.name}", getattr(found, field.name), getattr(wanted, field.name))
        elif found != wanted:
            raise ValueError(
                f"{folder} has {name} = {found}, the configuration {wanted}; give --{name} or another folder"
            )

    compare(f"model.{part}", found, wanted)


def _with_new_rows(path: str, leaf: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Append rows for new tokens to a table: the mean of all others. Source: spec 2.1."""
    axis = {EMBED: 0, HEAD: 1}.get(path)
    if axis is None or leaf.shape[axis] >= shape[axis]:
        return leaf
    count = shape[axis] - leaf.shape[axis]
    mean = leaf.astype(jnp.float32).mean(axis, keepdims=True).astype(leaf.dtype)
    return jnp.concatenate([leaf, jnp.repeat(mean, count, axis)], axis)


def _fresh(config: TrainConfig, paths: Sequence[str], mesh: Mesh) -> Flat:
    """Fresh float32 parameters; those that are not asked for are never made."""
    model = LlavaGrounding(config.model)

    def make(key: jax.Array) -> Flat:
        made = flattened(nn.unbox(model.init(key, example_inputs(config.model), 1)["params"]))
        return {path: made[path] for path in paths}

    abstract = jax.eval_shape(make, jax.random.key(0))
    axes = flattened(logical_axes(config.model))
    where: dict[str, NamedSharding] = shardings(abstract, {path: axes[path] for path in paths}, mesh)
    return jax.jit(make, out_shardings=where)(jax.random.key(config.seed))
