"""Write safetensors files tensor by tensor (the library's own writer wants all of them in memory)."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lgjax.convert.lazy import LazyTensor
from lgjax.convert.read import SAFE_DTYPES

_NAMES = {dtype: name for name, dtype in SAFE_DTYPES.items()}
_ALIGN = 8


def write(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a safetensors file in the order of `tensors`, holding one tensor at a time.

    Raises:
        ValueError: a dtype that the format lacks.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for key, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"'{key}' is {tensor.dtype}, which safetensors files cannot hold")
        size = tensor.nbytes
        header[key] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            np.ascontiguousarray(tensor.load()).tofile(file)
