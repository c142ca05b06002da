"""The work of the language model: reading a prompt, and writing tokens."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from lgjax.bench.cases import Dtype, Sizes
from lgjax.bench.timing import Facts, Work, timed
from lgjax.bench.vision import operations
from lgjax.bench.weights import num_bytes, parameters
from lgjax.config import LlamaConfig
from lgjax.infer import generate
from lgjax.models.llama import Cache, Llama, init_cache

COMPARED = 512  # logits that are compared


def prompt_ids(sizes: Sizes, rows: int = 1) -> Int32[np.ndarray, "rows t"]:
    """Prompts of any ids."""
    vocabulary = sizes.config.llama.vocab_size
    return np.random.default_rng(5).integers(0, vocabulary, (rows, sizes.prompt_tokens), np.int32)


def read_bytes(params: dict) -> float:
    """Bytes of the weights that every token passes: all but the input table, of which it takes a row."""
    return num_bytes({name: leaf for name, leaf in params.items() if name != "embed_tokens"})


def cache_bytes(config: LlamaConfig, positions: float, itemsize: int) -> float:
    """Bytes of the keys and values of so many positions."""
    return 2.0 * config.num_layers * config.num_kv_heads * config.head_dim * positions * itemsize


def prefill(sizes: Sizes, dtype: Dtype) -> Work:
    """Read a prompt, up to the logits of its next token."""
    model, params, ids = _prepared(sizes, dtype)
    held, found = [_empty_cache(model, sizes, 1)], []
    lengths = np.asarray([sizes.prompt_tokens], np.int32)

    def run() -> None:
        hidden, held[0] = generate.prefill(model, params, _embed(model, params, ids), lengths, held[0])
        found[:] = [np.asarray(_logits(model, params, hidden))]

    length = sizes.prompt_tokens
    forward = operations(sizes, length=length)
    return Work(
        timed(run),
        lambda: Facts(
            what=f"{named(sizes, dtype)}, {length} tokens of prompt",
            output=[float(value) for value in found[0][0, :COMPARED]],
            flops=forward["llama"] + forward["head"],
            num_bytes=read_bytes(params) + cache_bytes(sizes.config.llama, length, _itemsize(model)),
            computes=_computes(model),
            handled={"tokens": length},
        ),
    )


def decode(sizes: Sizes, dtype: Dtype, *, rows: int = 1, together: bool = True) -> Work:
    """Write tokens after prompts, the likeliest each, on the device: in a batch or one after the other."""
    prompt, new = sizes.prompt_tokens, sizes.new_tokens
    model, params, ids = _prepared(sizes, dtype, rows)
    states = []
    for part in [ids] if together else np.split(ids, rows):
        lengths = np.full(len(part), prompt, np.int32)
        cache = _empty_cache(model, sizes, len(part))
        states.append(generate.prefill(model, params, _embed(model, params, part), lengths, cache))
    jax.block_until_ready(states)  # or the first time of decoding waits for it
    choices = generate.DecodeSizes(
        max_new_tokens=new, max_segs=1, seg_id=-1, stop_ids=(-1,), seg_state=sizes.config.seg_state
    )
    found: list[np.ndarray] = []

    def run() -> None:
        found.clear()
        for number, (hidden, cache) in enumerate(states):
            each = len(hidden)
            lengths, limits = np.full(each, prompt, np.int32), np.full(each, new, np.int32)
            out = generate.decode(model, params, choices, hidden, cache, lengths, limits)
            states[number] = hidden, out.cache
            found.append(np.asarray(out.ids))

    each, context = operations(sizes), prompt + new / 2
    scores = 4 * sizes.config.llama.num_layers * sizes.config.llama.num_heads * sizes.config.llama.head_dim
    passes = new - 1  # the first token comes of the prompt
    seen = cache_bytes(sizes.config.llama, context, _itemsize(model))
    how = "one row" if rows == 1 else f"{rows} rows"
    return Work(
        timed(run),
        lambda: Facts(
            what=f"{named(sizes, dtype)}, {new} tokens after {prompt}, {how}",
            output=[int(value) for value in np.concatenate(found).reshape(-1)],
            flops=rows * (passes * (each["llama"] + scores * context) + new * each["head"]),
            num_bytes=passes * (len(states) * read_bytes(params) + rows * seen),
            computes=_computes(model),
            handled={"tokens": rows * new},
        ),
    )


def _prepared(sizes: Sizes, dtype: Dtype, rows: int = 1) -> tuple[Llama, dict, np.ndarray]:
    """Module, parameters and prompts."""
    params = parameters(sizes.config, "llama", dtype=dtype)["llama"]
    model = Llama(sizes.config.llama, computing(dtype), scan_layers="layers" in params)
    return model, params, prompt_ids(sizes, rows)


def _empty_cache(model: Llama, sizes: Sizes, rows: int) -> Cache:
    """A cache with room for prompts and answers."""
    room = generate.coarse_bucket(sizes.prompt_tokens + sizes.new_tokens)
    dtype = jnp.dtype(model.dtype)
    return init_cache(sizes.config.llama, rows, room, dtype, scan_layers=model.scan_layers)


def computing(dtype: Dtype) -> np.dtype:
    """The type to compute in with such weights."""
    narrow = dtype != "float32" and jax.default_backend() != "cpu"
    return jnp.dtype(jnp.bfloat16 if narrow else jnp.float32)


def named(sizes: Sizes, dtype: Dtype) -> str:
    """Sizes of the language model and its weights, in words."""
    llama = sizes.config.llama
    return f"{llama.num_layers} layers of width {llama.hidden_size}, {dtype} weights"


def _computes(model: Llama) -> Literal["float32", "bfloat16"]:
    return "float32" if jnp.dtype(model.dtype) == jnp.float32 else "bfloat16"


def _itemsize(model: Llama) -> int:
    return jnp.dtype(model.dtype).itemsize


@functools.partial(jax.jit, static_argnames="model")
def _embed(model: Llama, params: dict, ids):
    return model.apply({"params": params}, ids, method="embed")


@functools.partial(jax.jit, static_argnames="model")
def _logits(model: Llama, params: dict, hidden):
    return model.apply({"params": params}, hidden, method="logits")
