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

from lgjax.convert.store import flattened, nested
from lgjax.data.batch import Batch
from lgjax.data.pipeline import Counted, batches
from lgjax.models.llava_grounding import abstract_params
from lgjax.parallel.mesh import make_mesh
from lgjax.train.config import TrainConfig
from lgjax.train.groups import split
from lgjax.train.objective import Rows
from lgjax.train.start import load_tokenizer
from lgjax.train.step import TrainState, init_state, make_step, on_mesh, row_sharding, state_shardings
from tests.train.micro import stacked
from tests.weights import fill

Shape = tuple[int, int, int]  # of a mesh
QUICK = {"xla_backend_optimization_level": 0}  # a third less to compile; what runs is small


@functools.cache
def mesh_of(shape: Shape) -> Mesh:
    return make_mesh(*shape)


@functools.cache
def step_of(config: TrainConfig, shape: Shape) -> Any:
    return jax.jit(make_step(config, mesh_of(shape)), donate_argnums=0, compiler_options=QUICK)


def start(config: TrainConfig, shape: Shape) -> TrainState:
    """A state of random parameters, the same for any mesh, as buffers of its own."""
    params = jax.tree.map(jnp.asarray, flattened(fill(abstract_params(config.model))))
    params = stacked(nested(params)) if config.scan_layers else params
    state = init_state(config, *split(params, config, jax.random.key(0)))
    return jax.device_put(state, state_shardings(state, config, mesh_of(shape)), may_alias=False)


@functools.cache
def host_batches(config: TrainConfig, count: int) -> tuple[Batch, ...]:
    """The first batches of a run as numpy arrays."""
    data = Counted(
        batches(
            config.data.mixture(), config.data.batch(config.model), load_tokenizer(config), seed=config.seed
        )
    )
    found = tuple(itertools.islice(data, count))
    data.close()
    assert not data.faults
    return found


def rows_of(batch: Batch, shape: Shape) -> Rows:
    return jax.device_put(Rows(batch.language, batch.grounding), row_sharding(mesh_of(shape)))


def take_step(
    config: TrainConfig, shape: Shape, state: TrainState, rows: Rows
) -> tuple[TrainState, dict[str, float]]:
    with on_mesh(mesh_of(shape)):
        state, metrics = step_of(config, shape)(state, rows, jax.random.key(config.seed))
        return state, {name: float(value) for name, value in metrics.items()}


def run(config: TrainConfig, shape: Shape, count: int) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after `count` steps from `start`, and the metrics of each."""
    plain = dataclasses.replace(config, accumulate=1, scan_layers=False, remat=False)
    state, found = start(config, shape), []
    for batch in host_batches(plain, count):
        state, metrics = take_step(config, shape, state, rows_of(batch, shape))
        found.append(metrics)
    return state, found


def gradients(before: TrainState, after: TrainState, config: TrainConfig) -> dict[str, np.ndarray]:
    """What a first step took its parameters down by: Adam's mean is (1 - b1) times the gradient."""
    found = {}
    assert int(before.step) == 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.optimizer):
        name = jax.tree_util.keystr(path)
        if ".mu[" in name:
            found[path[-1].key] = np.asarray(leaf) / (1 - config.optim.b1)
    assert found.keys() == after.trained.keys()
    return found
