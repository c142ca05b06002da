"""One step of training as a pure function of state, rows and a random key.

Source: spec/training_and_data.md 14.1, 14.3, 14.4.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Key

from lgjax.convert.store import flattened
from lgjax.models.attention import Kernel, kernel_of
from lgjax.models.kernels import Packed
from lgjax.models.llava_grounding import logical_axes
from lgjax.parallel.mesh import BATCH_AXES
from lgjax.parallel.rules import RULES, partition_spec
from lgjax.train.config import TrainConfig
from lgjax.train.flops import forward_flops, step_flops
from lgjax.train.groups import EMBED, HEAD, LORA, NEW_EMBED, NEW_HEAD, Flat, group_of, join
from lgjax.train.objective import Normalisers, Objective, Rows, Shape, families, normalisers
from lgjax.train.optimizer import make_optimizer, schedule

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """step: how many were taken; trained, frozen: see `groups.split`; optimizer: its state."""

    step: jax.Array
    trained: Flat
    optimizer: optax.ApplyIfFiniteState
    frozen: Flat


TrainStep = Callable[[TrainState, Rows, Key[jax.Array, ""]], tuple[TrainState, Metrics]]


def make_objective(config: TrainConfig, mesh: Mesh) -> Objective:
    """The losses of a run's batches, with the attention that suits the devices of `mesh`."""
    return Objective(
        config.model,
        config.loss,
        Shape(config.data.grounded_rows, config.data.text_rows),
        mesh,
        jnp.dtype(config.compute),
        config.scan_layers,
        config.remat,
        _kernel(config, mesh),
    )


def _kernel(config: TrainConfig, mesh: Mesh) -> Kernel:
    platform = mesh.devices.flat[0].platform
    if config.attention == "auto":
        return kernel_of(platform, config.compute)
    if config.attention not in ("plain", kernel_of(platform, config.compute)):
        raise ValueError(f"attention {config.attention} is not for '{platform}' devices; leave it at auto")
    return config.attention


def init_state(config: TrainConfig, trained: Flat, frozen: Flat) -> TrainState:
    """The state before the first step."""
    optimizer = make_optimizer(config.optim, config.steps, trained)
    return TrainState(jnp.zeros((), jnp.int32), trained, cast(Any, optimizer.init(trained)), frozen)


def make_step(config: TrainConfig, mesh: Mesh) -> TrainStep:
    """Return the step function of a run; `compile_step` makes a program of it.

    The key is that of the run; each step and sample has random numbers of its own. Metrics: "loss", losses
    by kind as "loss/...", those of the last layers as "last/...", norms of gradients of each group as
    "norm/...", "rate", "tokens" and "images" of the step, "skipped" (1 for a step whose loss or gradients are
    not finite, which changes no parameter), "skipped_steps" (how many there were) and "bad_steps" (how many
    of them came in a row).
    """
    objective = make_objective(config, mesh)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    dtype = jnp.dtype(config.compute)

    def train_step(state: TrainState, rows: Rows, key: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        counts = normalisers(rows, config.loss, objective.shape)

        def loss(trained: Flat, rows: Rows, counts: Normalisers) -> tuple[jax.Array, Metrics]:
            losses = objective(join(trained, state.frozen, dtype), rows, counts, key)
            total = sum(losses.values(), jnp.zeros(()))
            last = {name: value for name, value in losses.items() if name.endswith("_0")}
            named = {f"loss/{name}": value for name, value in families(losses).items()}
            named |= {f"last/{name}": value for name, value in families(last).items()}
            return total, {"loss": total, **named}

        gradient = jax.grad(loss, has_aux=True)
        if config.accumulate == 1:
            grads, metrics = gradient(state.trained, rows, counts)
        else:
            parts = _micro_batches((rows, counts), devices, config.accumulate)

            def add(sums: Any, part: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, sums, gradient(state.trained, *part)), None

            shapes = jax.eval_shape(gradient, state.trained, *jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            (grads, metrics), _ = jax.lax.scan(add, zeros, parts)
        norms = _norms(grads)
        some = min(grads)  # one number that is not finite is enough to skip the step
        grads[some] = jnp.where(jnp.isfinite(metrics["loss"]), grads[some], jnp.nan)
        optimizer = make_optimizer(config.optim, config.steps, state.trained)
        updates, new = optimizer.update(grads, state.optimizer, state.trained)
        assert isinstance(new, optax.ApplyIfFiniteState)
        trained = cast(Flat, optax.apply_updates(state.trained, updates))
        taken = state.step - state.optimizer.total_notfinite
        metrics |= {
            **norms,
            "rate": config.optim.lr * schedule(config.optim, config.steps)(taken),
            "tokens": rows.language.plan.lengths.sum(),
            "images": (rows.language.plan.patches >= 0).any(1).sum(),
            "skipped": ~new.last_finite,
            "skipped_steps": new.total_notfinite,
            "bad_steps": new.notfinite_count,
        }
        return TrainState(state.step + 1, trained, new, state.frozen), metrics

    return train_step


def held_out(config: TrainConfig) -> TrainConfig:
    """A run with the batches that it is measured on: grounded rows alone, or text where it has no others."""
    data = config.data
    if data.grounded_rows:
        data = dataclasses.replace(data, text=(), text_rows=0)
    return dataclasses.replace(config, data=data)


def make_measure(
    config: TrainConfig, mesh: Mesh
) -> Callable[[Flat, Flat, Rows, Key[jax.Array, ""]], Metrics]:
    """Return the losses of held-out rows, "loss" and by kind, as a function of trained and frozen parts."""
    objective = make_objective(held_out(config), mesh)

    def measure(trained: Flat, frozen: Flat, rows: Rows, key: jax.Array) -> Metrics:
        counts = normalisers(rows, config.loss, objective.shape)
        found = objective(join(trained, frozen, objective.dtype), rows, counts, key, train=False)
        return {"loss": sum(found.values(), jnp.zeros(())), **families(found)}

    return measure


def compile_step(config: TrainConfig, mesh: Mesh, state: TrainState) -> TrainStep:
    """The step as a program that uses up the state it is given, to be called under `on_mesh`.

    The new state lies on the mesh as the old one, so that one program serves all steps, resumed or not.
    """
    where = state_shardings(state, config, mesh)
    return jax.jit(make_step(config, mesh), donate_argnums=0, out_shardings=(where, None))


def lower_step(config: TrainConfig, mesh: Mesh, state: TrainState, rows: Rows) -> Any:
    """Trace the step for shapes of a state with its shardings, and of rows; nothing is allocated."""
    step: Any = compile_step(config, mesh, state)
    inputs = _abstract_inputs(mesh, rows)
    with on_mesh(mesh):
        return step.lower(state, *inputs)


def lower_measure(config: TrainConfig, mesh: Mesh, state: TrainState, rows: Rows) -> Any:
    """Trace what measures held-out rows, as `lower_step` does the step."""
    measure, inputs = jax.jit(make_measure(config, mesh)), _abstract_inputs(mesh, rows)
    with on_mesh(mesh):
        return measure.lower(state.trained, state.frozen, *inputs)


def _abstract_inputs(mesh: Mesh, rows: Rows) -> tuple[Rows, jax.ShapeDtypeStruct]:
    sharding = row_sharding(mesh)

    def on_rows(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(on_rows, rows), jax.eval_shape(lambda: jax.random.key(0))


def _norms(grads: Flat) -> Metrics:
    """Norm of the gradients of each group."""
    squares: Metrics = {}
    for path, leaf in grads.items():
        name = f"norm/{group_of(path)}"
        squares[name] = squares.get(name, jnp.zeros(())) + jnp.square(leaf).sum()
    return {name: jnp.sqrt(value) for name, value in squares.items()}


def _micro_batches(tree: tuple[Rows, Normalisers], devices: int, count: int) -> tuple[Rows, Normalisers]:
    """Cut rows into `count` parts along a new first axis, each with an equal share of every device's rows."""

    def cut(array: jax.Array) -> jax.Array:
        rows = array.reshape(devices, count, -1, *array.shape[1:]).swapaxes(0, 1)
        rows = rows.reshape(count, -1, *array.shape[1:])
        spec = PartitionSpec(None, BATCH_AXES)
        return jax.lax.with_sharding_constraint(rows, spec) if devices > 1 else rows

    return jax.tree.map(cut, tree)


def check_mesh(config: TrainConfig, mesh: Mesh | AbstractMesh) -> None:
    """Raise ValueError where a mesh cannot share a step's groups, or lacks the kernel that is asked for."""
    if isinstance(mesh, Mesh):
        _kernel(config, mesh)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.data.groups % (devices * config.accumulate):
        raise ValueError(
            f"data.groups {config.data.groups} cannot be shared by {devices} devices (data x fsdp) times "
            f"{config.accumulate} micro-batches; make it a multiple of {devices * config.accumulate}, with "
            "fewer data.grounded_rows and data.text_rows for a batch of the same size"
        )
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise ValueError(
            f"a mesh of {mesh.size} devices on {jax.process_count()} processes with {jax.device_count()}: "
            "all devices must take part (one mesh axis may be 0, all that are left)"
        )


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Where steps are traced and run: logical axis names mean the axes of `mesh`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def own_part(mesh: Mesh, groups: int) -> tuple[int, int]:
    """(host, hosts) as `batches` wants them: which part of a batch's groups lies on devices of this process.

    Processes that hold the same rows, for example where the tensor axis spans them, have the same part.

    Raises:
        ValueError: this process holds parts that do not lie side by side.
    """
    found = row_sharding(mesh).addressable_devices_indices_map((groups,)).values()
    spans = sorted({part[0].indices(groups)[:2] for part in found if part is not None})
    if any(before[1] != after[0] for before, after in itertools.pairwise(spans)):
        raise ValueError(
            "the rows of this process do not lie side by side on the mesh; order its axes otherwise"
        )
    count = spans[-1][1] - spans[0][0]
    return spans[0][0] // count, groups // count


def row_sharding(mesh: Mesh) -> NamedSharding:
    """How rows lie on a mesh."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def parameter_shardings(abstract: Flat, config: TrainConfig, mesh: Mesh | AbstractMesh) -> dict[str, Any]:
    """Sharding of every array of a trained or frozen part, from the logical axes of its parameter."""
    axes = flattened(logical_axes(config.model, config.scan_layers))

    def spec(shape: tuple[int, ...], names: tuple[str | None, ...]) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(shape, names, mesh))

    def one(path: str, leaf: Any) -> Any:
        if isinstance(leaf, Packed):
            (values, scale), names = cast(Any, leaf), axes[path]
            parts = spec(values.shape, names), spec(scale.shape, (*names[:-2], None, names[-1]))
            return Packed(*cast(Any, parts))
        if path.startswith(LORA):
            names = axes[path.removeprefix(LORA).rpartition("/")[0]]
            outer = (names[-2], None) if path.endswith("/down") else (None, names[-1])
            return spec(leaf.shape, (*names[:-2], *outer))
        if path in (NEW_EMBED, NEW_HEAD):
            names = axes[EMBED] if path == NEW_EMBED else axes[HEAD]
            return spec(leaf.shape, tuple(None if name == "vocab" else name for name in names))
        return spec(leaf.shape, axes[path])

    return {path: one(path, leaf) for path, leaf in abstract.items()}


def state_shardings(state: TrainState, config: TrainConfig, mesh: Mesh | AbstractMesh) -> TrainState:
    """Sharding of every array of a state (of anything with shapes); moments lie as their parameters."""
    trained = parameter_shardings(state.trained, config, mesh)
    frozen = parameter_shardings(state.frozen, config, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def moment(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        found = [name for name in names if name in trained]
        return trained[found[-1]] if found and leaf.ndim else everywhere

    optimizer = jax.tree_util.tree_map_with_path(moment, state.optimizer)
    return TrainState(cast(Any, everywhere), trained, optimizer, frozen)


def step_operations(config: TrainConfig, trained: Collection[str]) -> float:
    """Model operations of a step whose trained parameters have these paths, see `flops.step_flops`."""
    forward = forward_operations(config)
    whole = {group_of(path).removesuffix("_slow") for path in trained if not path.startswith(LORA)}
    if "new_tokens" in whole:  # a few rows of the two tables; the gradient of the input side passes through
        whole = whole - {"new_tokens"} | {"embed"}
    adapted = {"llama"} if any(path.startswith(LORA) for path in trained) else set()
    return step_flops(forward, whole, adapted)


def forward_operations(config: TrainConfig) -> dict[str, float]:
    """Model operations of the forward of a batch by part, see `flops.forward_flops`."""
    data, parts = config.data, config.loss.parts
    return forward_flops(
        config.model,
        rows=data.groups * (data.grounded_rows + data.text_rows),
        length=data.length,
        grounded_rows=data.groups * data.grounded_rows,
        phrases=data.phrases if "grounding" in parts else 0,
        objects=data.objects,
        prompts=data.objects if "prompting" in parts else 0,
        queries=config.loss.queries,
    )
