"""Write synthetic checkpoints in the original's layout: small ones for tests, full-size ones by hand.

    python -m tests.synthetic --out DIR --shards 2 --dtype float16        (13.5 GB, the released sizes)
    python -m tests.synthetic --out DIR --size debug --format safetensors

Small tensors get values of their own. Tensors above a million numbers repeat one block of a million normal
numbers, starting at an offset that the key gives, scaled by 1/sqrt(fan in): not random enough to study, but
every tensor differs and the file is written as fast as the disk takes it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

from lgjax import config as configs
from lgjax.config import ModelConfig
from lgjax.convert import export, hf_config, manifest, read, safe_file
from lgjax.convert.lazy import LazyTensor
from lgjax.convert.manifest import Entry
from lgjax.convert.read import Format
from lgjax.text.tokenizer import Tokenizer

TINY_MODEL = Path(__file__).parent / "parity/data/llm_tiny_spm.model"
_BLOCK = 1 << 20
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@functools.cache
def _block(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(_BLOCK, dtype=np.float32)


def value(key: str, entry: Entry, config: ModelConfig, dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """The tensor of one key: aliases equal their tensor, buffers are true, norm scales are near 1."""
    if entry.kind == "buffer":
        buffer = manifest.buffer_value(key, entry.shape, config)
        return buffer if buffer.dtype == np.int64 else buffer.astype(dtype)
    code = zlib.crc32((entry.canonical or key).encode())
    size = int(np.prod(entry.shape, dtype=np.int64))
    if size <= _BLOCK:
        noise = np.random.default_rng([code, seed]).standard_normal(entry.shape, dtype=np.float32)
        if len(entry.shape) < 2:
            shift = 0.0 if key.endswith("bias") else 1.0
            return np.asarray(shift + 0.1 * noise).astype(dtype)
        scale = np.float32(1 / np.sqrt(np.prod(entry.shape[1:])))
        return (noise * scale).astype(dtype)
    scale = np.float32(1 / np.sqrt(np.prod(entry.shape[1:])))
    start = code % _BLOCK
    turned = np.roll(_block(seed) * scale, -start).astype(dtype)
    return np.resize(turned, entry.shape)


def tensors(config: ModelConfig, dtype: str, seed: int = 0) -> dict[str, LazyTensor]:
    """Every key of a checkpoint of these sizes, lazily."""
    kind = np.dtype(DTYPES[dtype])
    found = {}
    for key, entry in manifest.manifest(config).items():
        own = np.dtype(np.int64) if key.endswith("relative_position_index") else kind
        load = functools.partial(value, key, entry, config, kind, seed)
        found[key] = LazyTensor(entry.shape, own, load)
    return found


def write_weights(folder: Path, state: dict[str, LazyTensor], form: Format, shards: int, index: bool) -> None:
    """Write tensors into about `shards` files of equal size, with an index if asked for."""
    total = sum(t.nbytes for t in state.values())
    names = list(state)
    files: list[list[str]] = [[]]
    held = 0
    for key in names:
        size = state[key].nbytes
        if held + size > total / shards and files[-1] and len(files) < shards:
            files.append([])
            held = 0
        files[-1].append(key)
        held += size
    stem = {"bin": "pytorch_model", "safetensors": "model"}[form]
    weight_map = {}
    for i, keys in enumerate(files, 1):
        name = f"{stem}.{form}" if shards == 1 else f"{stem}-{i:05d}-of-{len(files):05d}.{form}"
        part = {key: state[key] for key in keys}
        (safe_file.write if form == "safetensors" else export.write_bin)(folder / name, part)
        weight_map.update(dict.fromkeys(keys, name))
    if index:
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / read.INDEX[form]).write_text(json.dumps(content, indent=2))


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: str = "float16",
    form: Format = "bin",
    shards: int = 2,
    index: bool = True,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a whole synthetic folder: weights, index, config.json, generation_config.json, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, tensors(config, dtype, seed), form, shards, index)
    (folder / "config.json").write_text(json.dumps(hf_config.to_json(config, dtype), indent=2))
    (folder / "generation_config.json").write_text('{"_from_model_config": true, "eos_token_id": 2}\n')
    (tokenizer or Tokenizer.from_model_file(TINY_MODEL)).save(folder)


def full_size_tokenizer(folder: Path) -> Tokenizer:
    """LLaMA's own tokenizer if LGJAX_LLAMA_TOKENIZER names it, else the tiny one with unused pieces added."""
    if real := os.environ.get("LGJAX_LLAMA_TOKENIZER"):
        return Tokenizer.from_model_file(real)
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(TINY_MODEL.read_bytes())
    lowest = min(piece.score for piece in model.pieces)
    for i in range(32000 - len(model.pieces)):
        piece = model.pieces.add(piece=f"\u2581unused{i}\u2581", score=lowest - 1 - i)
        piece.type = type(piece).NORMAL
    model.trainer_spec.vocab_size = 32000
    path = folder / "stand_in.model"
    path.write_bytes(model.SerializeToString())
    tokenizer = Tokenizer.from_model_file(path)
    path.unlink()
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=("full", "debug"), default="full")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16")
    parser.add_argument("--format", choices=("bin", "safetensors"), default="bin")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    full = options.size == "full"
    write_checkpoint(
        options.out,
        configs.llava_g_7b() if full else configs.debug(),
        dtype=options.dtype,
        form=options.format,
        shards=options.shards,
        seed=options.seed,
        tokenizer=full_size_tokenizer(options.out) if full else None,
    )


if __name__ == "__main__":
    main()
