"""Read checkpoints of PyTorch lazily: names, shapes and dtypes at once, the bytes of a tensor when asked for.

Source: spec/language_model.md 14.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from lgjax.convert.lazy import LazyTensor

Format = Literal["bin", "safetensors"]
INDEX = {"bin": "pytorch_model.bin.index.json", "safetensors": "model.safetensors.index.json"}
_SHARD = re.compile(r"(.*-)(\d+)(-of-)(\d+)(\.\w+)")
SAFE_DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint: `tensors` by key, `files` with the keys of each in order, and what is wrong.

    `findings` are one line each (damaged or missing files, values that are no tensors, keys met twice);
    nothing is raised here, so that one message can name every fault.
    """

    format: Format
    files: dict[str, list[str]]
    tensors: dict[str, LazyTensor]
    findings: list[str]


def weight_files(folder: Path) -> tuple[Format, list[Path]]:
    """List the weight files of a checkpoint folder: *.safetensors, else pytorch_model*.bin.

    Raises:
        FileNotFoundError: there are none.
    """
    if found := sorted(folder.glob("*.safetensors")):
        return "safetensors", found
    if found := sorted(folder.glob("pytorch_model*.bin")):
        return "bin", found
    raise FileNotFoundError(
        f"no weights in {folder}: expected *.safetensors or pytorch_model*.bin "
        f"(found {', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'an empty folder'})"
    )


def open_folder(folder: Path) -> Source:
    """Open every weight file of a folder; the index, if any, is only checked, as the original ignores it.

    Raises:
        FileNotFoundError: no weight files.
        ImportError: *.bin without PyTorch.
    """
    form, paths = weight_files(folder)
    files: dict[str, list[str]] = {}
    tensors: dict[str, LazyTensor] = {}
    findings = _missing_shards([path.name for path in paths])
    for path in paths:
        found, faults = _open_safetensors(path) if form == "safetensors" else _open_torch(path)
        findings += faults
        files[path.name] = list(found)
        for key in found.keys() & tensors.keys():
            first = next(name for name, keys in files.items() if key in keys)
            findings.append(f"key twice: '{key}' is in {first} and in {path.name}")
        tensors.update(found)
    if not findings:  # a file that cannot be read would be reported again, key by key
        findings += _check_index(folder / INDEX[form], files)
    return Source(form, files, tensors, findings)


def open_file(path: Path) -> Source:
    """Open one PyTorch or safetensors file; a "model" or "state_dict" entry is entered.

    Raises:
        ImportError: a PyTorch file without PyTorch.
    """
    form: Format = "safetensors" if path.suffix == ".safetensors" else "bin"
    tensors, findings = _open_safetensors(path) if form == "safetensors" else _open_torch(path, nested=True)
    return Source(form, {path.name: list(tensors)}, tensors, findings)


Opened = tuple[dict[str, LazyTensor], list[str]]


def _open_safetensors(path: Path) -> Opened:
    import safetensors

    try:
        handle = safetensors.safe_open(path, framework="np")
    except (safetensors.SafetensorError, OSError) as error:
        return {}, [f"unreadable file: {path.name} ({_size(path)}) is truncated or not safetensors: {error}"]
    tensors, findings = {}, []
    for key in handle.offset_keys():  # in the order of the file, so that an export can repeat it
        view = handle.get_slice(key)
        if (dtype := SAFE_DTYPES.get(view.get_dtype())) is None:
            findings.append(f"unknown dtype: '{key}' in {path.name} is {view.get_dtype()}")
            continue
        load = functools.partial(handle.get_tensor, key)
        tensors[key] = LazyTensor(tuple(view.get_shape()), dtype, load)
    return tensors, findings


def _open_torch(path: Path, nested: bool = False) -> Opened:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"reading {path.name} needs PyTorch: pip install 'lgjax[convert]' (safetensors files do not)"
        ) from error
    import pickle

    with path.open("rb") as file:
        mapped = file.read(2) == b"PK"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            return {}, [f"unsafe file: {path.name} holds code or objects ({named[1]}), only tensors are read"]
        return {}, [
            f"unreadable file: {path.name} ({_size(path)}) is no PyTorch file: it begins {_begin(path)}"
        ]
    except Exception as error:  # torch raises many kinds for damaged files
        first = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        return {}, [f"unreadable file: {path.name} ({_size(path)}) is truncated or no checkpoint: {first}"]
    if nested and isinstance(state, Mapping):
        state = next(
            (state[name] for name in ("model", "state_dict") if isinstance(state.get(name), Mapping)), state
        )
    if not isinstance(state, Mapping):
        return {}, [
            f"not a state dict: {path.name} holds a {type(state).__name__}, expected names and tensors"
        ]
    tensors, findings = {}, []
    for key, value in state.items():
        if not isinstance(key, str):
            findings.append(f"not a name: {path.name} has the key {key!r}, expected text")
        elif not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            findings.append(f"not a tensor: '{key}' in {path.name} is a {_kind(value)}")
        elif (dtype := _torch_dtype(value)) is None:
            findings.append(f"unknown dtype: '{key}' in {path.name} is {value.dtype}")
        else:
            tensors[key] = LazyTensor(tuple(value.shape), dtype, functools.partial(_to_numpy, value.detach()))
    return tensors, findings


def _torch_dtype(tensor: Any) -> np.dtype | None:
    name = str(tensor.dtype).removeprefix("torch.")
    name = {"bool": "bool_"}.get(name, name)
    return next(
        (dtype for dtype in SAFE_DTYPES.values() if dtype.type.__name__ in (name, name.rstrip("_"))), None
    )


def _to_numpy(tensor: Any) -> np.ndarray:
    """View a tensor as numpy; bfloat16, which numpy lacks, goes through its 16 bits."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _kind(value: object) -> str:
    import torch

    return f"{value.layout} tensor" if isinstance(value, torch.Tensor) else type(value).__name__


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"


def _begin(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        return "like a Git LFS pointer; fetch the real file with `git lfs pull`"
    return repr(start)


def _missing_shards(names: list[str]) -> list[str]:
    """Say which shards a name like pytorch_model-00001-of-00003.bin promises but the folder lacks."""
    findings = []
    for prefix, count, width, suffix in {
        (m[1], int(m[4]), len(m[2]), m[3] + m[4] + m[5]) for m in map(_SHARD.fullmatch, names) if m
    }:
        wanted = [f"{prefix}{i:0{width}d}{suffix}" for i in range(1, count + 1)]
        findings += [f"missing file: {name} (1 of {count} shards)" for name in wanted if name not in names]
    return sorted(findings)


def _check_index(path: Path, files: dict[str, list[str]]) -> list[str]:
    if not path.is_file():
        return []
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        listed = sorted(weight_map.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"unreadable index: {path.name} has no weight_map of names and files: {error!r}"]
    absent = sorted({name for _, name in listed if name not in files})
    findings = [f"missing file: {name}, which {path.name} names" for name in absent]
    held = {name: set(keys) for name, keys in files.items()}
    findings += [
        f"index: {path.name} puts '{key}' into {name}, which lacks it"
        for key, name in listed
        if name in held and key not in held[name]
    ]
    return findings
