"""The device mesh: copies of the model (data), pieces of weights (fsdp), pieces of matmuls (tensor)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # over which the rows of a batch lie


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Lay the first data * fsdp * tensor devices out as a mesh with the axes of `AXES`.

    Axis types are Auto: linen modules need them. `devices` defaults to all; they may be those of a topology
    that is only compiled for.

    Raises:
        ValueError: an axis below 1, or too few devices.
    """
    sizes = (data, fsdp, tensor)
    if min(sizes) < 1:
        raise ValueError(f"mesh axes must be at least 1, found data={data}, fsdp={fsdp}, tensor={tensor}")
    devices = list(jax.devices() if devices is None else devices)
    wanted = data * fsdp * tensor
    if wanted > len(devices):
        raise ValueError(
            f"a mesh of {data} (data) x {fsdp} (fsdp) x {tensor} (tensor) needs {wanted} devices, "
            f"found {len(devices)}"
        )
    grid = np.asarray(devices[:wanted], dtype=object).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
