"""Where the time of a training step goes: `python -m tests.bench.train_step [--config FILE] [--runs N]`.

Matching and points are timed as programs of their own, on arrays of the step's sizes with random costs and
logits; forward and backward as the whole objective without and with its gradient. Medians of several runs
after one to warm up.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from lgjax.bench.timing import Spread, peak_memory, timed
from lgjax.data.pipeline import batches
from lgjax.infer.load import use_compilation_cache
from lgjax.losses.matching import assign_all
from lgjax.losses.points import IMPORTANCE, RandomPoints, sample, uncertain_points
from lgjax.parallel.mesh import make_mesh
from lgjax.train.config import TrainConfig, load_config
from lgjax.train.groups import join
from lgjax.train.objective import Rows, normalisers
from lgjax.train.start import load_tokenizer, start_state
from lgjax.train.step import make_objective, make_step, on_mesh


def repeated(run: Callable[[], Any], runs: int) -> Spread:
    """Seconds of a call, after one to warm up."""
    seconds = timed(lambda: jax.block_until_ready(run()))
    seconds()
    return Spread.of([seconds() for _ in range(runs)])


def measure(config: TrainConfig, runs: int) -> dict[str, Spread]:
    """Seconds of a step and of its parts."""
    mesh = make_mesh()
    state = start_state(config, mesh)
    tokenizer = load_tokenizer(config)
    made = batches(config.data.mixture(), config.data.batch(config.model), tokenizer, seed=0)
    batch = next(iter(made))
    rows = jax.tree.map(jnp.asarray, Rows(batch.language, batch.grounding))
    objective, key, out = make_objective(config, mesh), jax.random.key(0), {}

    def loss(trained: Any) -> jax.Array:
        counts = normalisers(rows, config.loss, objective.shape)
        found = objective(join(trained, state.frozen, objective.dtype), rows, counts, key)
        return sum(found.values(), jnp.zeros(()))

    with on_mesh(mesh):
        forward, gradient = jax.jit(loss), jax.jit(jax.grad(loss))
        step = jax.jit(make_step(config, mesh))
        out["whole step"] = repeated(lambda: step(state, rows, key), runs)
        out["forward"] = repeated(lambda: forward(state.trained), runs)
        out["forward and backward"] = repeated(lambda: gradient(state.trained), runs)
        ground = rows.grounding
        if ground is not None and "grounding" in config.loss.parts and config.model.grounding is not None:
            g, t = ground.object_mask.shape
            outputs = config.model.grounding.transformer.decoder_layers + 2
            shared = jax.random.uniform(key, (outputs, g, 1, config.loss.queries))
            costs = shared + jax.random.uniform(key, (outputs, g, t, config.loss.queries))
            counts = jnp.broadcast_to(ground.object_mask.sum(1), (outputs, g)).reshape(-1)
            match = jax.jit(assign_all)
            flat = costs.reshape(outputs * g, t, -1)
            out["matching"] = repeated(lambda: match(flat, counts), runs)
            out["points"] = repeated(_points(config, rows, outputs), runs)
    return out


def _points(config: TrainConfig, rows: Rows, outputs: int) -> Callable[[], Any]:
    """Drawing, choosing and sampling the points of all outputs."""
    ground = rows.grounding
    assert ground is not None
    side = config.data.batch(config.model).canvas // 4
    logits = jax.random.normal(jax.random.key(1), (*ground.object_mask.shape, side, side))
    masks = jnp.unpackbits(ground.masks, axis=-1)
    ids = jnp.arange(len(ground.images), dtype=jnp.uint32)
    uncertain = int(IMPORTANCE * config.loss.points)

    @jax.jit
    def run(logits: jax.Array, masks: jax.Array, ids: jax.Array) -> jax.Array:
        total = jnp.zeros(())
        for number in range(outputs):
            points = RandomPoints(jax.random.key(number), ids, config.loss.points)
            over, extra = points.of_objects("loss", jnp.asarray(number), masks.shape[1])
            chosen = uncertain_points(logits, over, extra, uncertain)
            total += sample(logits, chosen).sum() + sample(masks, chosen).sum()
            total += points.matching(jnp.asarray(number)).sum()
        return total

    return lambda: run(logits, masks, ids)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/sixteen_scenes.py"))
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    use_compilation_cache()
    # the step here keeps its old state, so the bench can repeat it; in training it is used up
    found = measure(load_config(options.config, "paper"), options.runs)
    whole = found["whole step"].median
    table = Table("part", "median s", "least", "most", "share of the step")
    for name, seconds in found.items():
        figures = (f"{value:.4f}" for value in dataclasses.astuple(seconds))
        table.add_row(name, *figures, f"{seconds.median / whole:.1%}")
    console = Console()
    console.print(table)
    peak = peak_memory() / 2**30
    console.print(f"largest memory of the process, compiling included: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
