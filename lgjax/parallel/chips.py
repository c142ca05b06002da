"""What one device of each accelerator can do, from the data sheets of Google Cloud and NVIDIA."""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Rates and memory of one device of JAX (half a chip for TPU v3 and 7x).

    flops: bfloat16 operations a second without sparsity; memory: bytes that a program may take; bandwidth:
    bytes a second between memory and cores; links: bytes a second that the device sends to others of its
    slice or node over all links together; network: its share of the host's way to other slices or nodes.
    None: not known here, as nothing but the rate of operations is asked of that device.
    """

    flops: float
    memory: float | None = None
    bandwidth: float | None = None
    links: float | None = None
    network: float | None = None


_GIB = 2**30
_V5E = Chip(flops=197e12, memory=15.75 * _GIB, bandwidth=819e9, links=200e9, network=3.1e9)
_V5P = Chip(flops=459e12, memory=95.74 * _GIB, bandwidth=2765e9, links=600e9, network=6.25e9)
_V6E = Chip(flops=918e12, memory=31.25 * _GIB, bandwidth=1640e9, links=448e9, network=12.5e9)
# of 79.1 GiB, what launch/restart.sh lets jax take
_H100 = Chip(flops=989e12, memory=72.8 * _GIB, bandwidth=3350e9, links=450e9, network=50e9)

# memory of TPUs: what their compiler allows. The first name that stands in a device's kind as a word decides.
_CHIPS = {
    "TPU v3": Chip(flops=61.5e12, memory=15.48 * _GIB, bandwidth=450e9, links=41e9, network=3.1e9),
    "TPU v4 lite": Chip(flops=138e12),
    "TPU v4": Chip(flops=275e12, memory=30.75 * _GIB, bandwidth=1228e9, links=300e9, network=6.25e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5p": _V5P,
    "TPU v5": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Chip(flops=1153.5e12, memory=94.75 * _GIB, bandwidth=3690e9, links=600e9, network=12.5e9),
    "A100": Chip(flops=312e12),
    "H100 PCIe": Chip(flops=756e12),
    "H100 NVL": Chip(flops=835e12),
    "H100": _H100,
    "H200": Chip(flops=989e12),
    "GH200": Chip(flops=989e12),
    "B200": Chip(flops=2250e12),
    "L40S": Chip(flops=362e12),
    "L4": Chip(flops=121e12),
}


def chip_of(kind: str) -> Chip | None:
    """The chip of a device by its `device_kind`; None for one that is not known."""
    for name, chip in _CHIPS.items():
        if re.search(rf"\b{name}\b", kind):
            return chip
    return None
