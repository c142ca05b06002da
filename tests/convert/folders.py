"""Small checkpoints in the original's layout, written with PyTorch's and safetensors' own writers."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from lgjax import config as configs
from lgjax.convert import hf_config
from lgjax.text.tokenizer import Tokenizer
from tests import synthetic

State = dict[str, np.ndarray]


def state(dtype: str = "float32", seed: int = 0) -> State:
    """All tensors of a checkpoint of the debug sizes."""
    return {key: tensor.load() for key, tensor in synthetic.tensors(configs.debug(), dtype, seed).items()}


def write_torch(path: Path, tensors: dict) -> None:
    import torch

    def tensor(value):
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(value.copy())

    torch.save({key: tensor(value) for key, value in tensors.items()}, path)


def write_safetensors(path: Path, tensors: State) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file({key: np.array(v, order="C") for key, v in tensors.items()}, path)


def beside(folder: Path, **changes) -> None:
    """config.json (with changes; None removes a name) and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = {**hf_config.to_json(configs.debug()), **changes}
    (folder / "config.json").write_text(json.dumps(raw))
    Tokenizer.from_model_file(synthetic.TINY_MODEL).save(folder)


def checkpoint(folder: Path, tensors: dict, shards: int = 1, form: str = "bin") -> Path:
    """A whole folder of these tensors."""
    beside(folder)
    stem, write = ("pytorch_model", write_torch) if form == "bin" else ("model", write_safetensors)
    names = list(tensors)
    if shards == 1:
        write(folder / f"{stem}.{form}", tensors)
        return folder
    cut = -(-len(names) // shards)
    for i in range(shards):
        part = {key: tensors[key] for key in names[i * cut : (i + 1) * cut]}
        write(folder / f"{stem}-{i + 1:05d}-of-{shards:05d}.{form}", part)
    return folder


def read(folder: Path) -> State:
    """All tensors of a folder through PyTorch's and safetensors' own readers; bfloat16 as its bits."""
    import safetensors.torch
    import torch

    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".bin":
            tensors = torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)
        else:
            continue
        for key, tensor in tensors.items():
            assert key not in found, key
            bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
            found[key] = (str(tensor.dtype), tuple(tensor.shape), bits.numpy().tobytes())
    return found
