"""From the state of a run to a checkpoint folder that chats, exports, or starts the next stage."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lgjax.convert import meta, read, store
from lgjax.convert.lazy import LazyTensor
from lgjax.convert.meta import TokenIds
from lgjax.models.llava_grounding import abstract_params
from lgjax.parallel.mesh import make_mesh
from lgjax.text.tokenizer import Tokenizer
from lgjax.train.checkpoint import Checkpoints, digest, kept_steps, read_config
from lgjax.train.config import TrainConfig
from lgjax.train.groups import Flat, is_replaced, is_unchanged, leaf_of
from lgjax.train.start import abstract_state, load_tokenizer, placed, start_frozen

MODEL = "model"
Reader = Callable[[str], np.ndarray]
_TOGETHER = 256 * 2**20  # bytes of parameters that are read at once: each reading takes its time


def write_model(
    config: TrainConfig,
    trained: Flat,
    frozen: Flat,
    tokenizer: Tokenizer,
    target: Path,
    *,
    overwrite: bool,
) -> None:
    """Write the model of a state, a few tensors at a time.

    What cannot have changed is copied from the start folder it came from, bit for bit; what has learnt is
    float32 in the two vision models and `config.model_dtype` elsewhere. Tensors of the start folders that
    only an export needs go along.

    Raises:
        FileExistsError, OSError: see `store.write`.
    """
    shapes = {path: leaf.shape for path, leaf in store.flattened(abstract_params(config.model)).items()}
    needed = {
        path: (folder, leaf)
        for path, (folder, leaf) in _origins(config).items()
        if tuple(leaf.shape) == shapes.get(path) and not is_replaced(trained, path)
    }
    readers = {
        folder: _reader(folder, {path: leaf for path, (own, leaf) in needed.items() if own == folder})
        for folder in {folder for folder, _ in needed.values()}
    }
    wanted = np.dtype(ml_dtypes.bfloat16 if config.model_dtype == "bfloat16" else config.model_dtype)
    leaves = {}
    for path, shape in shapes.items():
        folder, stored = needed.get(path, (None, None))
        origin = None if folder is None else readers[folder]
        if origin is not None and stored is not None and is_unchanged(trained, path):
            dtype, load = np.dtype(stored.dtype), functools.partial(origin, path)
        else:
            dtype = store.part_dtype(path.split("/")[0], wanted, np.dtype(np.float32))
            load = functools.partial(_learnt, trained, frozen, path, origin, dtype)
        leaves[path] = LazyTensor(shape, dtype, load)
    unused: dict[str, Any] = {}
    for folder in config.start:
        unused |= read.open_file(Path(folder) / store.UNUSED).tensors
    tokens = TokenIds(
        rows=config.model.llama.vocab_size,
        g_s=tokenizer.g_s_id,
        g_e=tokenizer.g_e_id,
        seg=tokenizer.seg_id,
        percent=tokenizer.percent_id,
    )
    content = store.Content(
        config=config.model, leaves=leaves, unused=unused, tokenizer=tokenizer.files, tokens=tokens
    )
    store.write(target, content, overwrite=overwrite)


def _origins(config: TrainConfig) -> dict[str, tuple[Path, Any]]:
    """The start folder that each parameter came from, with shape and dtype as stored there."""
    found: dict[str, tuple[Path, Any]] = {}
    for folder in map(Path, config.start):
        parts = meta.read(folder).parts
        found |= {
            path: (folder, leaf)
            for path, leaf in store.stored_leaves(folder).items()
            if path.split("/")[0] in parts
        }
    return found


def _reader(folder: Path, leaves: Mapping[str, Any]) -> Reader:
    """Gives the parameters of a folder; with each it reads those that follow, up to `_TOGETHER`."""
    order, held = list(leaves), {}

    def value(path: str) -> np.ndarray:
        if path not in held:
            held.clear()
            chosen, size = [], 0
            for name in order[order.index(path) :]:
                size += math.prod(leaves[name].shape) * np.dtype(leaves[name].dtype).itemsize
                if chosen and size > _TOGETHER:
                    break
                chosen.append(name)
            held.update(store.read_arrays(folder, chosen))
        return held.pop(path)

    return value


def _learnt(
    trained: Mapping[str, Any], frozen: Mapping[str, Any], path: str, origin: Reader | None, dtype: np.dtype
) -> np.ndarray:
    base = None if origin is None else origin(path)
    return np.asarray(leaf_of(trained, frozen, path, base), dtype)


def model_of_run(folder: Path, target: Path, *, step: str = "last") -> int:
    """Write the model of a checkpoint of a run: the "last", the "best" on held-out data, or that of a step.

    The run may still be going on.

    Raises:
        FileNotFoundError: no such checkpoint, or nothing was measured to call one the best.
        FileExistsError: the target exists.
        ValueError: it cannot be read.
    """
    steps = kept_steps(folder)
    if not steps:
        raise FileNotFoundError(f"{folder} holds no checkpoints of a training run")
    chosen = _choose(folder, steps, step)
    config, mesh = read_config(folder, chosen), make_mesh()
    frozen = start_frozen(config, mesh)
    wanted = placed(abstract_state(config), config, mesh)
    checkpoints = Checkpoints(folder, config, read_only=True)
    try:
        trained = checkpoints.read_trained(chosen, wanted.trained, int(digest(frozen)))
    finally:
        checkpoints.close()
    write_model(config, trained, frozen, load_tokenizer(config), target, overwrite=False)
    return chosen


def _choose(folder: Path, steps: list[int], step: str) -> int:
    if step == "best":
        checkpoints = Checkpoints(folder, read_config(folder, steps[-1]), read_only=True)
        best = checkpoints.best()
        checkpoints.close()
        if best is None:
            raise FileNotFoundError(
                f"{folder} measured nothing on held-out data (measure_every); take --step last"
            )
        return best
    if step == "last":
        return steps[-1]
    if not step.isdigit() or int(step) not in steps:
        kept = ", ".join(map(str, steps))
        raise FileNotFoundError(f"{folder} has no checkpoint of step {step}; it has last, best, {kept}")
    return int(step)
