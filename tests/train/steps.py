"""Steps of training without its loop: one compiled program for each configuration and mesh."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lgjax.convert.store import flattened
from lgjax.data.batch import Batch
from lgjax.data.pipeline import Counted, batches
from lgjax.models.llava_grounding import abstract_params
from lgjax.parallel.mesh import make_mesh
from lgjax.train.config import TrainConfig
from lgjax.train.groups import split
from lgjax.train.objective import Rows
from lgjax.train.start import abstract_state, load_tokenizer, placed
from lgjax.train.step import TrainState, compile_step, init_state, on_mesh, row_sharding, state_shardings
from tests.train.micro import stacked
from tests.train.quick import OPTIONS
from tests.weights import fill

Shape = tuple[int, int, int]  # of a mesh


@functools.cache
def mesh_of(shape: Shape) -> Mesh:
    return make_mesh(*shape)


def start(config: TrainConfig, shape: Shape) -> TrainState:
    """A state of random parameters, the same for any mesh, as buffers of its own."""
    params = jax.tree.map(jnp.asarray, fill(abstract_params(config.model)))
    flat = stacked(params) if config.scan_layers else flattened(params)
    state = init_state(config, *split(flat, config, jax.random.key(0)))
    return jax.device_put(state, state_shardings(state, config, mesh_of(shape)), may_alias=False)


@functools.cache
def host_batches(config: TrainConfig, count: int) -> tuple[Batch, ...]:
    """The first batches of a run as numpy arrays."""
    sizes, tokenizer = config.data.batch(config.model), load_tokenizer(config)
    data = Counted(batches(config.data.mixture(), sizes, tokenizer, seed=config.seed))
    found = tuple(itertools.islice(data, count))
    data.close()
    assert not data.faults
    return found


def rows_of(batch: Batch, shape: Shape) -> Rows:
    return jax.device_put(Rows(batch.language, batch.grounding), row_sharding(mesh_of(shape)))


@functools.cache
def lowered(config: TrainConfig, shape: Shape) -> Any:
    """The traced step."""
    mesh = mesh_of(shape)
    state = placed(abstract_state(config), config, mesh)
    (batch,) = host_batches(plain(config), 1)
    step: Any = compile_step(config, mesh, state)
    with on_mesh(mesh):
        return step.lower(state, rows_of(batch, shape), jax.random.key(0))


@functools.cache
def compiled(config: TrainConfig, shape: Shape) -> Any:
    return lowered(config, shape).compile(OPTIONS)


def plain(config: TrainConfig) -> TrainConfig:
    """A configuration with the same batches, to make these once."""
    return dataclasses.replace(config, accumulate=1, scan_layers=False, remat=False)


def take_step(
    config: TrainConfig, shape: Shape, state: TrainState, rows: Rows
) -> tuple[TrainState, dict[str, float]]:
    step = compiled(config, shape)
    with on_mesh(mesh_of(shape)):
        state, metrics = step(state, rows, jax.random.key(config.seed))
    return state, {name: float(value) for name, value in metrics.items()}


def run(config: TrainConfig, shape: Shape, count: int) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after `count` steps from `start`, and the metrics of each."""
    state, found = start(config, shape), []
    for batch in host_batches(plain(config), count):
        state, metrics = take_step(config, shape, state, rows_of(batch, shape))
        found.append(metrics)
    return state, found


def gradients(after: TrainState, config: TrainConfig) -> dict[str, np.ndarray]:
    """The gradients of a first step: Adam's mean is (1 - b1) times them."""
    assert int(after.step) == 1
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.optimizer):
        if ".mu[" in jax.tree_util.keystr(path):
            found[path[-1].key] = np.asarray(leaf) / (1 - config.optim.b1)
    assert found.keys() == after.trained.keys()
    return found
