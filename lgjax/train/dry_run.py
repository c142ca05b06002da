"""What a run would do, without doing it: what learns, what a batch holds, and how much memory it takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh
from rich.console import Console
from rich.table import Table

from lgjax.data.pipeline import Mixture, Stream
from lgjax.infer.load import use_compilation_cache
from lgjax.models.kernels import Packed
from lgjax.parallel.mesh import AXES, make_mesh
from lgjax.text.tokenizer import Tokenizer
from lgjax.train.config import DataStream, TrainConfig
from lgjax.train.groups import EMBED, HEAD, NEW_EMBED, NEW_HEAD, group_of, rate_of
from lgjax.train.objective import Rows
from lgjax.train.start import abstract_rows, abstract_state, load_tokenizer, placed, shipped_tokenizer
from lgjax.train.step import TrainState, check_mesh, lower_step, step_operations


def dry_run(config: TrainConfig, console: Console) -> None:
    """Print what a run would do. No parameter is allocated; the step is compiled where its devices are here.

    Raises:
        FileNotFoundError, ValueError: data or tokenizer cannot be read, or the batch does not fit the mesh.
    """
    use_compilation_cache()
    sizes = config.mesh.sizes(jax.device_count())
    here = math.prod(sizes) <= jax.device_count()
    mesh = make_mesh(*sizes) if here else AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    check_mesh(config, mesh)
    mixture, tokenizer = config.data.mixture(), _tokenizer(config, console)
    if config.measure_every:
        config.data.held_out_mixture()
    rows, state = abstract_rows(config, tokenizer), abstract_state(config)
    console.print(_groups(config, state))
    console.print(_rows(config, mixture))
    console.print(f"one step: {step_operations(config, state.trained):.3g} operations of the model")
    console.print(_memory(config, state, rows, mesh, here))


def _tokenizer(config: TrainConfig, console: Console) -> Tokenizer:
    """That of the run; any other gives the same shapes where its start folders are not there yet."""
    absent = [folder for folder in config.start if not Path(folder).exists()]
    for folder in absent:
        console.print(f"start folder {folder} is not there yet", style="yellow")
    if absent and not config.tokenizer:
        return shipped_tokenizer()
    return load_tokenizer(dataclasses.replace(config, start=()) if absent else config)


def _groups(config: TrainConfig, state: TrainState) -> Table:
    """How many numbers of the model (and of low-rank updates beside it) learn in each group."""
    table = Table("group", "trained", "frozen", "rate", title=f"{config.name}: what learns")
    counts: dict[str, list[int]] = {}
    for column, part in enumerate((state.trained, state.frozen)):
        for path, leaf in part.items():
            size = math.prod((leaf.values if isinstance(leaf, Packed) else leaf).shape)
            counts.setdefault(group_of(path), [0, 0])[column] += size
    for rows, table_path in ((NEW_EMBED, EMBED), (NEW_HEAD, HEAD)):
        if rows in state.trained:  # they stand in for rows of the frozen table
            counts[group_of(table_path)][1] -= math.prod(state.trained[rows].shape)
    for group, (trained, frozen) in counts.items():
        rate = config.optim.lr * rate_of(group, config.optim.rates)
        table.add_row(group, f"{trained:,}", f"{frozen:,}", f"{rate:.2g}" if trained else "-")
    sums = [sum(pair[column] for pair in counts.values()) for column in (0, 1)]
    table.add_row("all", *(f"{total:,}" for total in sums), "", style="bold")
    return table


def _rows(config: TrainConfig, mixture: Mixture) -> Table:
    data = config.data
    table = Table("rows of a step", "from", "records", "share", title="what a batch holds")
    lanes = (
        ("grounded", data.grounded, mixture.grounded, data.grounded_rows),
        ("text", data.text, mixture.text, data.text_rows),
    )
    for name, described, streams, size in lanes:
        total = sum(stream.weight for stream in streams)
        for stream, what in zip(streams, described, strict=True):
            share = stream.weight / total
            count = f"{name}: {data.groups * size * share:g}"
            table.add_row(count, _origin(what), _count(stream), f"{share:.0%}")
    return table


def _origin(stream: DataStream) -> str:
    return (
        f"{stream.folder} ({stream.split})"
        if stream.folder
        else f"composed scenes: {', '.join(stream.sorts)}"
    )


def _count(stream: Stream) -> str:
    count = len(stream.records)
    return "endless" if count >= 2**31 else f"{count:,}"


def _memory(
    config: TrainConfig, state: TrainState, rows: Rows, mesh: Mesh | AbstractMesh, here: bool
) -> Table:
    table = Table("memory", "all devices", "a device", title=f"mesh {dict(mesh.shape)}")
    where = placed(state, config, mesh)
    parts: Mapping[str, Any] = {
        "parameters that learn": where.trained,
        "their gradients": where.trained,
        "state of the optimiser": where.optimizer,
        "frozen parameters": where.frozen,
    }
    for name, part in parts.items():
        leaves = jax.tree.leaves(part)
        whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        own = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
        table.add_row(name, _bytes(whole), _bytes(own))
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    batch = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(rows))
    table.add_row("batch", _bytes(batch), _bytes(batch / shares))
    if isinstance(mesh, Mesh) and here:
        table.add_row(
            "step as compiled: state, batch, activations", "", _bytes(_compiled(config, where, rows, mesh))
        )
    else:
        table.add_row(
            f"activations: not known, {math.prod(mesh.shape.values())} devices are not here", "", ""
        )
    return table


def _compiled(config: TrainConfig, state: TrainState, rows: Rows, mesh: Mesh) -> float:
    """Bytes that the compiled step takes on a device."""
    found = lower_step(config, mesh, state, rows).compile().memory_analysis()
    assert found is not None
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
    )


def _bytes(size: float) -> str:
    return f"{size / 2**20:.2f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"
