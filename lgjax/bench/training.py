"""The work of training: matching objects to queries, a step, batches of data."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int, Int32

from lgjax.bench.cases import Sizes
from lgjax.bench.timing import Facts, Work, timed
from lgjax.bench.weights import num_bytes
from lgjax.config import ModelConfig, debug, tiny
from lgjax.convert.store import TOKENIZER
from lgjax.infer.load import folder_of
from lgjax.losses.matching import assign_all
from lgjax.parallel.mesh import make_mesh


def matching(sizes: Sizes, *, by_scipy: bool) -> Work:
    """The queries of the objects of all outputs of a batch, on the device or by scipy on the host."""
    queries = 0 if sizes.config.grounding is None else sizes.config.grounding.num_queries
    rng = np.random.default_rng(6)
    shape = (sizes.problems, sizes.targets, queries)
    # a part of the cost is that of the query, whichever the object: objects compete, as in training
    costs = rng.random((sizes.problems, 1, queries), np.float32) + rng.random(shape, np.float32)
    counts = rng.integers(1, max(2, 2 * sizes.targets // 5), sizes.problems).astype(np.int32)
    solve = jax.jit(_by_scipy if by_scipy else assign_all)
    found: list[np.ndarray] = []

    def run() -> None:
        found[:] = [np.asarray(solve(costs, counts))]

    def totals() -> list[float]:
        taken = np.take_along_axis(costs, np.maximum(found[0], 0)[..., None], 2)[..., 0]
        return [float(total) for total in np.where(found[0] >= 0, taken, 0).sum(1, dtype=np.float64)]

    return Work(
        timed(run),
        lambda: Facts(
            what=f"{sizes.problems} problems of 1 to {counts.max()} objects in {sizes.targets} places, "
            f"{queries} queries",
            output=totals(),
            handled={"problems": sizes.problems},
        ),
    )


def _by_scipy(costs: jax.Array, counts: jax.Array) -> jax.Array:
    shape = jax.ShapeDtypeStruct(costs.shape[:2], jnp.int32)
    return jax.pure_callback(_on_host, shape, costs, counts)


def _on_host(costs: Float32[Any, "n t q"], counts: Int[Any, " n"]) -> Int32[np.ndarray, "n t"]:
    from scipy.optimize import linear_sum_assignment

    found = np.full(costs.shape[:2], -1, np.int32)
    for number, (cost, count) in enumerate(zip(np.asarray(costs), np.asarray(counts), strict=True)):
        objects, queries = linear_sum_assignment(cost[:count])
        found[number, objects] = queries
    return found


def train_step(sizes: Sizes) -> Work:
    """A step with all losses, from rows to the new state."""
    from lgjax.data.pipeline import batches
    from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig
    from lgjax.train.objective import Rows
    from lgjax.train.start import load_tokenizer, start_state
    from lgjax.train.step import compile_step, on_mesh, step_operations

    small = sizes.chat == "debug"
    model: ModelConfig = debug() if small else tiny()
    config = TrainConfig(
        name="bench",
        model=dataclasses.replace(model, seg_state="at"),
        tokenizer="" if small else str(folder_of(sizes.chat) / TOKENIZER),
        data=DataConfig(
            grounded=(DataStream(sorts=("description", "prompts")),),
            grounded_rows=sizes.train_rows,
            length=192,
            phrases=8,
            objects=6,
            mask_side=64,
        ),
        loss=LossConfig(parts=("language", "grounding", "prompting"), queries=50, points=256),
        optim=OptimConfig(rates=Rates(projector=1, embed=1, head=1, llama=1, grounding=1, prompt=1, slow=1)),
        steps=1000,
    )
    mesh = make_mesh()
    made = batches(config.data.mixture(), config.data.batch(config.model), load_tokenizer(config), seed=0)
    batch = next(iter(made))
    rows = jax.tree.map(jnp.asarray, Rows(batch.language, batch.grounding))
    state = start_state(config, mesh)
    # of weights and moments each is read and written, gradients are too
    moved = num_bytes(state.frozen, rows) + 2 * num_bytes(state.trained, state.trained, state.optimizer)
    flops = step_operations(config, state.trained)
    step, key = compile_step(config, mesh, state), jax.random.key(0)
    held = [state]
    del state  # a step uses up the state it is given

    def run() -> None:
        with on_mesh(mesh):
            held[0], metrics = step(held[0], rows, key)
        jax.block_until_ready((held[0], metrics))

    return Work(
        timed(run),
        lambda: Facts(
            what=f"{sizes.train_rows} rows of {config.data.length} positions, losses of language, grounding "
            f"and prompts, AdamW, the sizes of '{sizes.chat}', float32",
            flops=flops,
            num_bytes=moved,
            handled={"rows": sizes.train_rows},
        ),
    )


def data(sizes: Sizes) -> Work:
    """Batches of composed scenes, as training reads them, by threads of one process."""
    from lgjax.data.batch import BatchConfig
    from lgjax.data.bench import maker_of, mixture_of, throughput

    side = sizes.data_canvas
    config = BatchConfig(length=sizes.data_length, canvas=side, mask_side=side // 2)
    mixture, maker = mixture_of((), (), sizes.data_rows, sizes.data_rows), maker_of(config, None)

    def seconds() -> float:
        return 1 / throughput(mixture, maker, 0, sizes.data_seconds).batches

    return Work(
        seconds,
        lambda: Facts(
            what=f"a batch of {sizes.data_rows} grounded and {sizes.data_rows} text rows, "
            f"canvas {side} x {side}, {sizes.data_length} positions",
            handled={"rows": mixture.rows},
            compiles=False,
        ),
    )
