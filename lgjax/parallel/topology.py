"""Devices of TPU slices and GPU nodes that are not here, to compile for.

Nothing heavy is imported with this file: `compile_only` must run before jax is.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

from lgjax.parallel.chips import Chip, chip_of

# without these, libtpu looks for the machine's own TPU and holds a lock while it does
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # programs for devices that are not here cannot be read back
    "TPU_STDERR_LOG_LEVEL": "1",  # `plan.make_plan` reads the warnings
    "TPU_MIN_LOG_LEVEL": "1",
    "TF_CPP_MIN_LOG_LEVEL": "1",  # else XLA tells that there is no driver of GPUs here
}
# Triton's tiles are chosen by trying them on a card; without one some products get none, and no program
_PRODUCTS_OF_GPUS = "--xla_gpu_enable_triton_gemm=false"
EXAMPLES = "v5e:4x4, v6e:2x4, v5p:2x2x4, v4:2x2x4, tpu7x:2x2x1"
_MEGACORE = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
_GPUS = {
    # as the driver of the card describes it; XLA needs no more to compile for it
    "h100": """
        gpu_device_info {
          threads_per_block_limit: 1024 threads_per_warp: 32 core_count: 132 fpus_per_core: 128
          shared_memory_per_block: 49152 shared_memory_per_core: 233472
          shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
          device_memory_size: 84942979072
          cuda_compute_capability { major: 9 minor: 0 }
        }
        platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
        dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 8 }
    """,
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What is compiled for: its name, the devices of all slices, how many slices, what a device can do."""

    name: str
    devices: tuple[Any, ...]
    slices: int
    chip: Chip


def compile_only(fast: bool = False) -> None:
    """Set what jax and the TPU compiler read as they are loaded: no device of this machine is touched.

    fast: compile with little effort. It takes a third of the time; memory may differ a little.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["XLA_FLAGS"] = f"{_PRODUCTS_OF_GPUS} {os.environ.get('XLA_FLAGS', '')}".strip()
    if fast:
        os.environ.setdefault("JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "-1.0")


def tpu(name: str, slices: int = 1) -> Target:
    """Slices of a TPU by the name that the compiler gives them, such as "v5e:4x4".

    Raises:
        ValueError: no such slice.
        ImportError: there is no TPU compiler here.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError('compiling for a TPU needs its compiler: pip install "lgjax[tpu]"')
    from jax.experimental import topologies

    if slices < 1:
        raise ValueError(f"{slices} slices: there must be at least one")
    if not re.fullmatch(r"v[56]e:\d+x\d+|(?!v[56]e)\w+:\d+x\d+(x\d+)?", name):
        raise ValueError(f"target '{name}' is no slice; slices are named like {EXAMPLES}")
    options: dict[str, Any] = dict(_MEGACORE) if name.startswith("v4:") else {}
    if re.search(r":1x1(x1)?$", name):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"target '{name}' is unknown to the compiler ({reason}); slices are named like {EXAMPLES}"
        ) from None
    return _target(f"{slices} slices of {name}" if slices > 1 else name, found.devices, slices)


def gpu(name: str) -> Target:
    """GPUs of nodes of eight: "h100x8" is one node, "h100x16" two.

    Raises:
        ValueError: no such GPUs.
        ImportError: there is no GPU compiler here.
    """
    found = re.fullmatch(r"(\w+)x(\d+)", name)
    if found is None or found[1] not in _GPUS or int(found[2]) < 1:
        raise ValueError(f"'{name}' are no GPUs that can be planned for; known: h100x8, h100x16, ...")
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise ImportError('compiling for a GPU needs its compiler: pip install "lgjax[cuda]"')
    from jax.experimental import topologies

    count = int(found[2])
    nodes = -(-count // 8)
    if count % nodes:
        raise ValueError(f"{count} GPUs are no whole number of nodes of eight")
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=_GPUS[found[1]], topology=f"1x{nodes}x{count // nodes}"
    )
    return _target(name, topology.devices, nodes, kind=found[1].upper())


def _target(name: str, devices: Any, slices: int, kind: str = "") -> Target:
    chip = chip_of(kind or devices[0].device_kind)
    if chip is None or chip.memory is None:
        raise ValueError(f"the rates of {devices[0].device_kind} are not known (lgjax/parallel/chips.py)")
    return Target(name, tuple(devices), slices, chip)
