"""From the state of a run to a checkpoint folder that chats, exports, or starts the next stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lgjax.convert import read, store
from lgjax.convert.lazy import LazyTensor
from lgjax.convert.meta import TokenIds
from lgjax.parallel.mesh import make_mesh
from lgjax.text.tokenizer import Tokenizer
from lgjax.train.checkpoint import Checkpoints, digest, read_config
from lgjax.train.config import TrainConfig
from lgjax.train.groups import whole
from lgjax.train.start import abstract_state, load_tokenizer, placed, start_frozen
from lgjax.train.step import TrainState

MODEL = "model"


def write_model(
    config: TrainConfig, state: TrainState, tokenizer: Tokenizer, target: Path, *, overwrite: bool = True
) -> None:
    """Write the model of a state; language part and vision tower in `config.model_dtype`.

    Tensors of the start checkpoints that only an export needs go along.

    Raises:
        FileExistsError, OSError: see `store.write`.
    """
    wanted = np.dtype(ml_dtypes.bfloat16 if config.model_dtype == "bfloat16" else config.model_dtype)
    leaves = {}
    for path, leaf in store.flattened(whole(state.trained, state.frozen)).items():
        dtype = store.part_dtype(path.split("/")[0], wanted, np.dtype(np.float32))
        leaves[path] = LazyTensor(tuple(leaf.shape), dtype, lambda leaf=leaf, to=dtype: np.asarray(leaf, to))
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


def model_of_run(folder: Path, target: Path, *, step: str = "last") -> int:
    """Write the model of a checkpoint of a run: the "last", the "best" on held-out data, or that of a step.

    Raises:
        FileNotFoundError: no such checkpoint.
        FileExistsError: the target exists.
        ValueError: it cannot be read.
    """
    names = sorted(int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit())
    if not names:
        raise FileNotFoundError(f"{folder} holds no checkpoints of a training run")
    config = read_config(folder, names[-1])
    mesh = make_mesh()
    checkpoints = Checkpoints(folder, config)
    try:
        if step in ("last", "best"):
            chosen = names[-1] if step == "last" else checkpoints.best()
        else:
            chosen = int(step) if step.isdigit() else -1
        if chosen not in names:
            raise FileNotFoundError(f"{folder} has checkpoints of steps {names}, not of '{step}'")
        frozen = start_frozen(config, mesh)
        wanted = placed(abstract_state(config), config, mesh)
        state = checkpoints.read(chosen, wanted, frozen, int(digest(frozen)))
    finally:
        checkpoints.close()
    write_model(config, state, load_tokenizer(config), target, overwrite=False)
    return chosen
