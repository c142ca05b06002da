"""From the state of a run to a checkpoint folder that chats, exports, or starts the next stage."""

from __future__ import annotations

import functools
from collections.abc import Mapping
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
from lgjax.train.groups import Flat, is_unchanged, leaf_of
from lgjax.train.start import abstract_state, load_tokenizer, placed, start_frozen

MODEL = "model"


def write_model(
    config: TrainConfig,
    trained: Flat,
    frozen: Flat,
    tokenizer: Tokenizer,
    target: Path,
    *,
    overwrite: bool,
) -> None:
    """Write the model of a state, one tensor at a time.

    What cannot have changed is copied from the start folder it came from, bit for bit; what has learnt is
    float32 in the two vision models and `config.model_dtype` elsewhere. Tensors of the start folders that
    only an export needs go along.

    Raises:
        FileExistsError, OSError: see `store.write`.
    """
    origins = _origins(config)
    wanted = np.dtype(ml_dtypes.bfloat16 if config.model_dtype == "bfloat16" else config.model_dtype)
    leaves = {}
    for path, abstract in store.flattened(abstract_params(config.model)).items():
        folder, stored = origins.get(path, (None, abstract))
        origin = folder if tuple(stored.shape) == abstract.shape else None
        if origin is not None and is_unchanged(trained, path):
            dtype, load = np.dtype(stored.dtype), functools.partial(_read, origin, path)
        else:
            dtype = store.part_dtype(path.split("/")[0], wanted, np.dtype(np.float32))
            load = functools.partial(_learnt, trained, frozen, path, origin, dtype)
        leaves[path] = LazyTensor(abstract.shape, dtype, load)
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


def _read(folder: Path, path: str) -> np.ndarray:
    return store.read_arrays(folder, [path])[path]


def _learnt(
    trained: Mapping[str, Any], frozen: Mapping[str, Any], path: str, origin: Path | None, dtype: np.dtype
) -> np.ndarray:
    base = None if origin is None or path in trained else _read(origin, path)
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
