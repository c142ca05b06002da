"""Which mesh axis each logical axis is split over; the only place that knows mesh axes.

A matmul's inner width ("embed", "vision", "hidden", "channels") is split over fsdp and gathered when needed;
the width between two matmuls ("mlp", "heads", ...) is split over tensor and stays split.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None

RULES: tuple[tuple[str, MeshAxes], ...] = (
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("layers", None),
    ("norm", None),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("vision", "fsdp"),
    ("vision_mlp", "tensor"),
    ("vision_heads", "tensor"),
    ("hidden", "fsdp"),
    ("hidden_out", "tensor"),
    ("ffn", "tensor"),
    ("samples", "tensor"),
    ("channels", "fsdp"),
    ("channels_out", "tensor"),
    ("channel_heads", None),
)
_TABLE = dict(RULES)


def partition_spec(
    shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Choose the mesh axes of one array from the logical names of its dimensions.

    A mesh axis is left out where it does not divide the dimension (a vocabulary of 32003 rows) and where an
    earlier dimension already uses it.

    Raises:
        ValueError: a logical name without a rule, or as many names as dimensions do not exist.
    """
    if len(axes) != len(shape):
        raise ValueError(f"array of shape {shape} has {len(axes)} logical axes: {axes}")
    spec: list[MeshAxes] = []
    used: set[str] = set()
    for size, name in zip(shape, axes, strict=True):
        if name is not None and name not in _TABLE:
            raise ValueError(f"logical axis '{name}' has no rule; add it to RULES of lgjax/parallel/rules.py")
        wanted = None if name is None else _TABLE[name]
        names = (wanted,) if isinstance(wanted, str) else wanted or ()
        taken = tuple(axis for axis in names if axis not in used and mesh.shape.get(axis, 1) > 1)
        if not taken or size % math.prod(mesh.shape[axis] for axis in taken):
            spec.append(None)
            continue
        used.update(taken)
        spec.append(taken[0] if len(taken) == 1 else taken)
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def shardings(abstract: Any, axes: Any, mesh: Mesh) -> Any:
    """Sharding of every array of a tree (of anything with a shape) from the tree of its logical axes.

    Raises:
        ValueError: see `partition_spec`.
    """

    def one(leaf: Any, names: tuple[str | None, ...]) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(tuple(leaf.shape), tuple(names), mesh))

    return jax.tree.map(one, abstract, axes)
