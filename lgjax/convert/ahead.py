"""The arrays of a checkpoint folder as lazy tensors that are read in batches."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lgjax.convert import lazy, store
from lgjax.convert.lazy import LazyTensor


def stored_tensors(stored: Mapping[str, Any], folder: Path) -> dict[str, LazyTensor]:
    """Turn `store.stored_leaves` of a folder, in the order of their use, into tensors of the stored dtypes.

    One that is asked for brings those after it along, as opening the store once for each would take most of
    the time; these are kept until another batch is asked for.
    """
    sizes = {path: math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for path, leaf in stored.items()}
    batches = lazy.batches(list(stored), sizes.__getitem__)
    batch_of = {path: batch for batch in batches for path in batch}
    held: dict[str, np.ndarray] = {}

    def load(path: str) -> np.ndarray:
        nonlocal held
        if path not in held:
            held = {}
            held = store.read_arrays(folder, batch_of[path])
        return held[path]

    return {
        path: LazyTensor(tuple(leaf.shape), np.dtype(leaf.dtype), functools.partial(load, path))
        for path, leaf in stored.items()
    }
