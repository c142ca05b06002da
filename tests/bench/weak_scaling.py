"""What a device sends in a step as devices are added: `python -m tests.bench.weak_scaling [--config FILE]`.

Each device keeps the same rows, so a step on twice the devices takes twice the rows. The bytes are those of
the compiled programs, for host devices; times of two cores would say nothing of a pod.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from lgjax.jobs.train import train_job
from lgjax.parallel.chips import Chip
from lgjax.parallel.mesh import make_mesh
from lgjax.parallel.plan import make_plan
from lgjax.parallel.topology import Target
from lgjax.train.config import TrainConfig, load_config

Axis = Literal["data", "fsdp"]
_ANY = Chip(flops=1e12, memory=2.0**40, bandwidth=1e11, links=1e10, network=1e9)


class Row(NamedTuple):
    """A step on some devices: its rows, bytes that each device sends by kind, bytes of a device's state."""

    devices: int
    rows: int
    sent: dict[str, float]
    state: float


def rows_of(config: TrainConfig, axis: Axis, counts: Sequence[int]) -> list[Row]:
    """Compile a step for each number of devices, with as many groups a device as `config` has in all."""
    found = []
    for count in counts:
        data = dataclasses.replace(config.data, groups=config.data.groups * count)
        mesh = make_mesh(**{axis: count})
        job = train_job(dataclasses.replace(config, data=data), mesh)
        plan = make_plan(job, Target("host", tuple(jax.devices()[:count]), 1, _ANY), mesh)
        sent = {one.kind: one.sent for one in plan.collectives}
        found.append(Row(count, int(plan.handled["images"]), sent, sum(plan.parts_gib.values()) * 2**30))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("tests/train/words.py"))
    arguments = parser.parse_args()
    config, console = load_config(arguments.config, "paper"), Console()
    axes: tuple[Axis, ...] = ("data", "fsdp")
    for axis in axes:
        found = rows_of(config, axis, (1, 2, 4, 8))
        kinds = sorted({kind for row in found for kind in row.sent})
        title = f"{config.name}, devices along {axis}: MB that a device sends in a step"
        table = Table("devices", "rows", *kinds, "all", "MB of state", title=title)
        for row in found:
            sizes = [row.sent.get(kind, 0.0) for kind in kinds]
            figures = (f"{size / 1e6:.3f}" for size in (*sizes, sum(sizes), row.state))
            table.add_row(str(row.devices), str(row.rows), *figures)
        console.print(table)


if __name__ == "__main__":
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # read with the first use
    main()
