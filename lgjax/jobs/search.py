"""Which mesh and batch to take: several are compiled, the best come first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from lgjax.jobs.train import shared_out, train_job
from lgjax.parallel.mesh import make_mesh
from lgjax.parallel.plan import Plan, bytes_of_device, make_plan
from lgjax.parallel.topology import Target
from lgjax.train.config import MeshConfig, TrainConfig

_TENSOR = (1, 2, 4, 8)
_ROWS = (1, 2, 4)  # multiples of the configuration's batch


@dataclasses.dataclass(frozen=True)
class Found:
    """A configuration that was tried, and what it takes."""

    config: TrainConfig
    plan: Plan

    @property
    def seconds_per_row(self) -> float:
        """Of a step in which nothing overlaps; endless where it does not fit."""
        seconds = self.plan.seconds
        return math.inf if seconds is None else seconds.worst / self.plan.handled["images"]


def search(
    config: TrainConfig, target: Target, most: int, say: Callable[[str], None] = lambda line: None
) -> list[Found]:
    """Compile up to `most` meshes and batch sizes of a run, the likeliest first; the fastest come first.

    `say` gets a line before each. What cannot fit by the bytes of its state alone is not compiled.

    Raises:
        ValueError: no mesh of the target can share the batch.
    """
    tried: list[Found] = []
    limit = target.chip.memory or math.inf
    for candidate in candidates(config, target):
        mesh = make_mesh(*candidate.mesh.sizes(len(target.devices)), devices=target.devices)
        job = train_job(candidate, mesh)
        if sum(bytes_of_device(tree) for tree in job.arguments.values()) > limit:
            continue
        say(f"{len(tried) + 1} of {most}: {described(candidate)}")
        tried.append(Found(candidate, make_plan(job, target, mesh)))
        if len(tried) == most:
            break
    if not tried:
        raise ValueError(
            f"on {target.name} the state of this run fits no mesh, or its rows cannot be shared out"
        )
    return sorted(tried, key=lambda found: found.seconds_per_row)


def candidates(config: TrainConfig, target: Target) -> Iterator[TrainConfig]:
    """Ways to run a configuration: first its batch on every mesh, then the same with larger batches."""
    per_slice = len(target.devices) // target.slices
    for times in _ROWS:
        for tensor in _TENSOR:
            if per_slice % tensor or config.model.llama.num_heads % tensor:
                continue
            mesh = MeshConfig(data=target.slices, fsdp=per_slice // tensor, tensor=tensor)
            data = dataclasses.replace(config.data, groups=config.data.groups * times)
            larger = dataclasses.replace(config, mesh=mesh, data=data)
            try:
                yield shared_out(larger, mesh.data * mesh.fsdp)
            except ValueError:
                continue  # rows that this mesh cannot share


def described(config: TrainConfig) -> str:
    """The fields that a search changes, as options of `lgjax train`."""
    mesh, data = config.mesh, config.data
    return (
        f"--mesh.data {mesh.data} --mesh.fsdp {mesh.fsdp} --mesh.tensor {mesh.tensor} "
        f"--data.groups {data.groups} --data.grounded-rows {data.grounded_rows} "
        f"--data.text-rows {data.text_rows}"
    )
