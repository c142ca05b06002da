"""A step of training, and a measurement of what is learnt, as jobs to plan for."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from lgjax.parallel.plan import TEMPORARIES, Job
from lgjax.text.tokenizer import Tokenizer
from lgjax.train.config import TrainConfig
from lgjax.train.start import abstract_rows, abstract_state, placed, shipped_tokenizer
from lgjax.train.step import (
    check_mesh,
    forward_operations,
    held_out,
    lower_measure,
    lower_step,
    step_operations,
)

_LEARNT = "more devices for --mesh.fsdp, or --optim.lora 16 in place of the language model's matrices"
_REMEDIES = {
    "parameters that learn": _LEARNT,
    "state of the optimiser": _LEARNT,
    "frozen parameters": "more devices for --mesh.fsdp, or --frozen int8",
    "batch": "a smaller batch (--data.groups), or smaller --data.mask-side",
    TEMPORARIES: "--accumulate 2 (or more), --remat, fewer rows a group, or smaller --data.length",
}


def train_job(config: TrainConfig, mesh: Mesh, tokenizer: Tokenizer | None = None) -> Job:
    """One step of a run with all its micro-batches. No dataset or checkpoint is opened.

    tokenizer: any gives the same shapes; default: the small one of the package.

    Raises:
        ValueError: the groups of the batch cannot be shared out over the mesh.
    """
    check_mesh(config, mesh)
    state = placed(abstract_state(config), config, mesh)
    rows = abstract_rows(config, tokenizer or shipped_tokenizer())
    count = config.data.groups * (config.data.grounded_rows + config.data.text_rows)
    return Job(
        name=f"{config.name}, a step of {count} rows of {config.data.length} tokens",
        lower=lambda: lower_step(config, mesh, state, rows),
        arguments={
            "parameters that learn": state.trained,
            "state of the optimiser": state.optimizer,
            "frozen parameters": state.frozen,
        },
        flops=step_operations(config, state.trained),
        handled={"tokens": float(count * config.data.length), "images": float(count)},
        remedies=_REMEDIES,
    )


def eval_job(config: TrainConfig, mesh: Mesh, tokenizer: Tokenizer | None = None) -> Job:
    """The losses of one held-out batch, without gradients, as a run takes them every `measure_every` steps.

    tokenizer: see `train_job`. The state of the optimiser, which waits meanwhile, is not counted.

    Raises:
        ValueError: the groups of the batch cannot be shared out over the mesh.
    """
    check_mesh(config, mesh)
    state, held = placed(abstract_state(config), config, mesh), held_out(config)
    rows = abstract_rows(held, tokenizer or shipped_tokenizer())
    count = held.data.groups * (held.data.grounded_rows + held.data.text_rows)
    return Job(
        name=f"{config.name}, the losses of {count} rows of {held.data.length} tokens",
        lower=lambda: lower_measure(config, mesh, state, rows),
        arguments={"parameters that learn": state.trained, "frozen parameters": state.frozen},
        flops=sum(forward_operations(held).values()),
        handled={"tokens": float(count * held.data.length), "images": float(count)},
        remedies=_REMEDIES,
    )


def shared_out(config: TrainConfig, shares: int) -> TrainConfig:
    """The same rows in a step, in as many groups as `shares` devices times the micro-batches need.

    Raises:
        ValueError: the rows of a group cannot be cut so far.
    """
    data, wanted = config.data, shares * config.accumulate
    if data.groups % wanted == 0:
        return config
    times = wanted // data.groups
    if wanted % data.groups or data.grounded_rows % times or data.text_rows % times:
        raise ValueError(
            f"{data.groups} groups of {data.grounded_rows} grounded and {data.text_rows} text rows cannot be "
            f"shared by {shares} devices (data x fsdp) times {config.accumulate} micro-batches; set "
            "--data.groups, --data.grounded-rows and --data.text-rows, or give devices to --mesh.tensor"
        )
    smaller = dict(grounded_rows=data.grounded_rows // times, text_rows=data.text_rows // times)
    return dataclasses.replace(config, data=dataclasses.replace(data, groups=wanted, **smaller))
