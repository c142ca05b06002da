"""From an lgjax checkpoint back to the original's layout: the same files, keys, order and bits.

Source: spec/language_model.md 14, spec/grounding_model.md 13, spec/visual_prompts.md 10.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lgjax.config import ModelConfig
from lgjax.convert import hf_config, keys, lazy, manifest, packed, read, safe_file, store
from lgjax.convert import meta as metas
from lgjax.convert.ahead import stored_tensors
from lgjax.convert.lazy import LazyTensor
from lgjax.convert.manifest import Entry
from lgjax.convert.meta import Meta
from lgjax.convert.read import Format

Files = dict[str, dict[str, LazyTensor]]
_STEM = {"bin": "pytorch_model", "safetensors": "model"}


def export(
    folder: str | Path,
    target: str | Path,
    *,
    format: Format | None = None,
    shard_bytes: int | None = None,
) -> list[str]:
    """Write a whole checkpoint in the original's layout into `target`; returns the names of the weight files.

    Without `format` and `shard_bytes` the files of the converted source are repeated: same names, keys, order
    and dtypes, with config.json and tokenizer byte for byte. A checkpoint that was trained, or a change of
    format or shard size (default 10 GB), gives the canonical layout with all keys that the original's strict
    loading asks for; never-read tensors that the checkpoint lacks are zeros.

    Raises:
        FileNotFoundError: no lgjax checkpoint.
        FileExistsError, OSError: the target exists, or the disk is too small.
        ValueError: the checkpoint holds only a part of the model, or packed matrices.
        ImportError: .bin files without PyTorch.
    """
    folder, target = Path(folder), Path(target)
    meta = metas.read(folder)
    store.check_files(folder, meta)
    packed.refuse(folder, meta, "an export")
    if lacking := [part for part in manifest.present_parts(meta.config) if part not in meta.parts]:
        raise ValueError(
            f"{folder} holds only {', '.join(meta.parts)}; an export needs {', '.join(lacking)} too"
        )
    tensors = _tensors(folder, meta)
    repeat = meta.source is not None and format is None and shard_bytes is None
    if repeat and meta.source is not None:
        form = meta.source.format
        files = {
            name: {key: _as_dtype(tensors[key], dtype) for key, dtype in listed}
            for name, listed in meta.source.files.items()
        }
    else:
        form = format or (meta.source.format if meta.source is not None else "bin")
        files = _shards(tensors, form, shard_bytes or 10_000_000_000)
    if form == "bin":
        _need_torch()
    size = sum(tensor.nbytes for shard in files.values() for tensor in shard.values())
    largest = max(sum(tensor.nbytes for tensor in shard.values()) for shard in files.values())
    with store.replacing(target, size + (largest if form == "bin" else 0)) as partial:
        for name, shard in files.items():
            (write_bin if form == "bin" else safe_file.write)(partial / name, shard)
        for path in _beside(folder):
            if repeat or path.name not in read.INDEX.values():
                (partial / path.name).write_bytes(path.read_bytes())
        if not (partial / "config.json").exists():
            dtype = max(meta.dtypes["llama"], key=lambda name: meta.dtypes["llama"][name])
            (partial / "config.json").write_text(
                json.dumps(hf_config.to_json(meta.config, dtype), indent=2) + "\n"
            )
        if not repeat and len(files) > 1:
            index = {
                "metadata": {"total_size": size},
                "weight_map": {key: name for name, shard in files.items() for key in shard},
            }
            (partial / read.INDEX[form]).write_text(json.dumps(index, indent=2) + "\n")
    return list(files)


def _tensors(folder: Path, meta: Meta) -> dict[str, LazyTensor]:
    """Every key of the checkpoint as a lazy tensor in PyTorch's layout, in the original's order."""
    stored = store.stored_leaves(folder)
    entries = manifest.manifest(meta.config)
    unused = read.open_file(folder / store.UNUSED).tensors
    own = _dtypes(meta)
    learned = manifest.parameters(entries)
    if lacking := sorted(learned.keys() - stored.keys()):
        raise ValueError(
            f"{folder} lacks {len(lacking)} parameters, such as '{lacking[0]}'; it cannot be exported"
        )
    read_ahead = stored_tensors({path: stored[path] for path in learned}, folder)
    tensors: dict[str, LazyTensor] = {}
    for key, entry in entries.items():
        if key in unused:
            tensors[key] = unused[key]
        elif entry.kind == "buffer":
            tensors[key] = _buffer(key, entry, meta.config, own(key))
        elif entry.kind == "dead":
            zeros = functools.partial(np.zeros, entry.shape, own(key))
            tensors[key] = LazyTensor(entry.shape, own(key), zeros)
        else:
            own_entry = entries[entry.canonical] if entry.kind == "alias" else entry
            tensors[key] = _in_their_layout(read_ahead[own_entry.path], own_entry)
    for key in _extra_keys(meta, entries):
        tensors[key] = unused.get(key) or _buffer(
            key, Entry("buffer", manifest.position_ids(meta.config.clip)[1]), meta.config, own(key)
        )
    return tensors


def _extra_keys(meta: Meta, entries: Mapping[str, Entry]) -> list[str]:
    listed: Iterable[str] = (
        () if meta.source is None else (k for f in meta.source.files.values() for k, _ in f)
    )
    return [key for key in listed if key not in entries]


def _in_their_layout(tensor: LazyTensor, entry: Entry) -> LazyTensor:
    def load() -> np.ndarray:
        return lazy.contiguous(keys.to_checkpoint(tensor.load(), entry.layout))

    return LazyTensor(entry.shape, tensor.dtype, load)


def _buffer(key: str, entry: Entry, config: ModelConfig, dtype: np.dtype) -> LazyTensor:
    value = manifest.buffer_value(key, entry.shape, config)
    value = value if value.dtype == np.int64 else value.astype(dtype)
    return LazyTensor(entry.shape, value.dtype, lambda: value)


def _dtypes(meta: Meta) -> Any:
    """Dtype of a tensor that has none of its own: the source's, else the most common one of its part."""
    listed = {} if meta.source is None else {k: d for f in meta.source.files.values() for k, d in f}

    def dtype(key: str) -> np.dtype:
        counts = meta.dtypes[manifest.part_of(key)]
        return _named(listed.get(key) or max(counts, key=lambda name: counts[name]))

    return dtype


def _named(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _as_dtype(tensor: LazyTensor, name: str) -> LazyTensor:
    return lazy.cast(tensor, _named(name), "exported tensor")


def _shards(tensors: Mapping[str, LazyTensor], form: Format, limit: int) -> Files:
    """Fill files up to `limit` bytes each, as Hugging Face names them."""
    shards: list[dict[str, LazyTensor]] = [{}]
    held = 0
    for key, tensor in tensors.items():
        if held and held + tensor.nbytes > limit:
            shards.append({})
            held = 0
        shards[-1][key] = tensor
        held += tensor.nbytes
    if len(shards) == 1:
        return {f"{_STEM[form]}.{form}": shards[0]}
    return {f"{_STEM[form]}-{i:05d}-of-{len(shards):05d}.{form}": shard for i, shard in enumerate(shards, 1)}


def write_bin(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a PyTorch file; the tensors wait in a scratch file beside it, not in memory, for torch.save."""
    import torch

    scratch = path.with_suffix(".scratch")
    starts, at = [], 0
    for tensor in tensors.values():
        starts.append(at)
        at += -(-tensor.nbytes // 64) * 64
    with scratch.open("wb") as file:
        file.truncate(max(at, 1))
        for start, tensor in zip(starts, tensors.values(), strict=True):
            file.seek(start)
            np.ascontiguousarray(tensor.load()).tofile(file)
    state = {}
    for start, (key, tensor) in zip(starts, tensors.items(), strict=True):
        kind = getattr(torch, tensor.dtype.name)
        if not tensor.nbytes:
            state[key] = torch.empty(tensor.shape, dtype=kind)
            continue
        bits = np.memmap(scratch, np.uint8, "r+", start, (tensor.nbytes,))
        state[key] = torch.from_numpy(bits).view(kind).reshape(tensor.shape)
    torch.save(state, path)
    del state
    scratch.unlink()


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "writing .bin files needs PyTorch: pip install 'lgjax[convert]', or export as safetensors"
        ) from error


def _beside(folder: Path) -> list[Path]:
    return sorted([*(folder / store.SOURCE).iterdir(), *(folder / store.TOKENIZER).iterdir()])
