"""Prefill and decoding of the language model, as programs for a few lengths of prompt and cache.

A long prompt is read in chunks, which takes less memory and less padding. The whole answer is decoded on the
device. A row's ids do not depend, but for rounding, on the other rows, on padding or on the bucket; each row
has its own length, limit, temperature and random seed.
Source: spec/language_model.md 11, 12, 17.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from lgjax.config import SegState
from lgjax.models.llama import Cache, LayerCache, Llama

GREEDY_BELOW = 1e-4  # a lower temperature takes the best token
PREFILL_CHUNK = 512  # positions of a prompt that are read at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSizes:
    """Static part of decoding: buffer sizes, the ids that matter, and which state stands for a `<seg>`."""

    max_new_tokens: int
    max_segs: int
    seg_id: int
    stop_ids: tuple[int, ...]
    seg_state: SegState


class Sampling(NamedTuple):
    """How the rows draw their ids: a key for the call, and per row [B] a seed, a temperature and a nucleus.

    A temperature below 1e-4 is greedy; otherwise ids are drawn from softmax(logits / temperature), cut to the
    smallest set of best ids whose mass reaches `top_p`. Draws depend on the key and the row's seed only.
    """

    key: jax.Array
    seeds: np.ndarray | jax.Array
    temperature: np.ndarray | jax.Array
    top_p: np.ndarray | jax.Array


class Generation(NamedTuple):
    """What was generated so far, for B rows.

    ids [B, max_new_tokens] int32: the first `counts` [B] of each row are real and include the stop id;
    `stopped` [B] says that a stop id came. seg_states [B, max_segs, D] float32: the first `seg_counts` [B]
    are real, but for the last one of rows that are `owed` [B] theirs: it comes with the next step. A count
    above max_segs means that states were left out: decode again with more room. `cached` [B] counts the valid
    positions of `cache`: everything but the last id, which is fed next.
    """

    ids: jax.Array
    counts: jax.Array
    stopped: jax.Array
    seg_states: jax.Array
    seg_counts: jax.Array
    owed: jax.Array
    cache: Cache
    cached: jax.Array


def bucket(n: int, multiple: int = 64) -> int:
    """Round `n` up to a multiple, at least one, so that few lengths are ever compiled."""
    return max(1, -(-n // multiple)) * multiple


def coarse_bucket(n: int, least: int = 64) -> int:
    """Round `n` up to 64, 96, 128, 192, 256, 384, 512, ...: a growing length is compiled log(n) times.

    `least`, a power of two, is the first of them.
    """
    size = least
    while size < n:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def cache_length(cache: Cache) -> int:
    """Positions that a cache can hold."""
    return (cache if isinstance(cache, LayerCache) else cache[0]).keys.shape[-2]


def prefill(
    model: Llama,
    params: dict,
    embeds: Float[Array, "b t d"],
    lengths: Int[np.ndarray, " b"],
    cache: Cache,
    starts: Int[np.ndarray, " b"] | None = None,
) -> tuple[Float[Array, "b d"], Cache]:
    """Write right-padded input embeddings into the cache; return the state after each row's last one.

    Row i holds `lengths[i]` >= 1 embeddings that belong to positions `starts[i]`, `starts[i]` + 1, ...
    (default 0); what the cache holds before `starts` is kept and seen. The cache is donated. `PREFILL_CHUNK`
    embeddings are read at a time; the last chunk is as long as what is left of the longest row, in a bucket.

    Raises:
        ValueError: a row is empty, longer than the embeddings, or does not fit into the cache.
    """
    lengths = np.asarray(lengths, np.int32)
    starts = np.zeros_like(lengths) if starts is None else np.asarray(starts, np.int32)
    if lengths.min() < 1 or lengths.max() > embeds.shape[1]:
        raise ValueError(f"row lengths {lengths.tolist()} must be 1 to {embeds.shape[1]}, the padded length")
    if (starts + lengths).max() > cache_length(cache):
        raise ValueError(f"rows end at {(starts + lengths).tolist()}, the cache holds {cache_length(cache)}")
    longest = int(lengths.max())

    def read(first: int, cache: Cache, least: int) -> tuple[jax.Array, Cache]:
        size = min(PREFILL_CHUNK, coarse_bucket(longest - first, least))
        part = embeds[:, first : first + size]
        return _prefill(model, params, part, lengths - first, cache, starts + first)

    state, cache = read(0, cache, 16)
    for first in range(PREFILL_CHUNK, longest, PREFILL_CHUNK):
        fresh, cache = read(first, cache, 128)  # what is left would rarely pay for a program of its own
        # a row that ended before wrote beyond its end, where nothing sees it
        state = jnp.where((lengths > first)[:, None], fresh, state)
    return state, cache


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _prefill(model: Llama, params: dict, embeds, lengths, cache, starts):
    positions = starts[:, None] + jnp.arange(embeds.shape[1])
    hidden, cache = model.apply({"params": params}, embeds, positions, cache=cache)
    last = jnp.clip(lengths, 1, embeds.shape[1]) - 1
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], cache


def decode(
    model: Llama,
    params: dict,
    sizes: DecodeSizes,
    hidden: Float[Array, "b d"],
    cache: Cache,
    positions: Int[np.ndarray, " b"],
    limits: Int[np.ndarray, " b"],
    sampling: Sampling | None = None,
    forced: Int[np.ndarray, "b n"] | None = None,
) -> Generation:
    """Generate until every row has a stop id or `limits[i]` (1 to max_new_tokens) ids.

    See `begin`; the cache is donated.
    """
    state = begin(model, params, sizes, hidden, cache, positions, limits, sampling, forced)
    return advance(model, params, sizes, state, limits, sizes.max_new_tokens, sampling, forced)


def begin(
    model: Llama,
    params: dict,
    sizes: DecodeSizes,
    hidden: Float[Array, "b d"],
    cache: Cache,
    positions: Int[np.ndarray, " b"],
    limits: Int[np.ndarray, " b"],
    sampling: Sampling | None = None,
    forced: Int[np.ndarray, "b n"] | None = None,
) -> Generation:
    """Choose the first id of every row; `advance` goes on from there.

    `hidden` and `cache` come from `prefill`, `positions` are the rows' lengths so far. Without `sampling` the
    best id is taken (the lowest one of equals). `forced[i, n]` >= 0 is taken in place of the n-th choice.

    Raises:
        ValueError: a limit is out of range, or the cache is too short for positions + limits.
    """
    positions, limits = np.asarray(positions, np.int32), np.asarray(limits, np.int32)
    if limits.min() < 1 or limits.max() > sizes.max_new_tokens:
        raise ValueError(f"limits {limits.tolist()} must be 1 to max_new_tokens = {sizes.max_new_tokens}")
    if (positions + limits).max() > cache_length(cache):
        needed, held = (positions + limits).max(), cache_length(cache)
        raise ValueError(f"the cache holds {held} positions, this generation may need {needed}")
    state = _begin(model, params, sizes, hidden, positions, sampling, _padded(forced, sizes))
    return state._replace(cache=cache)


def advance(
    model: Llama,
    params: dict,
    sizes: DecodeSizes,
    state: Generation,
    limits: Int[np.ndarray, " b"],
    steps: int,
    sampling: Sampling | None = None,
    forced: Int[np.ndarray, "b n"] | None = None,
) -> Generation:
    """Generate up to `steps` more ids of every row that has neither a stop id nor `limits[i]` ids.

    `state` is donated. Neither steps nor limits compile anew; a limit may be lowered on the way, to
    `counts[i]` to end a row.
    """
    limits = np.asarray(limits, np.int32)
    return _advance(model, params, sizes, state, limits, np.int32(steps), sampling, _padded(forced, sizes))


def _padded(forced: Int[np.ndarray, "b n"] | None, sizes: DecodeSizes) -> Int32[np.ndarray, "b m"] | None:
    if forced is None:
        return None
    room = sizes.max_new_tokens - forced.shape[1]
    if room < 0:
        raise ValueError(f"{forced.shape[1]} forced ids, more than max_new_tokens = {sizes.max_new_tokens}")
    return np.pad(np.asarray(forced, np.int32), ((0, 0), (0, room)), constant_values=-1)


@functools.partial(jax.jit, static_argnames=("model", "sizes"))
def _begin(model: Llama, params, sizes: DecodeSizes, hidden, positions, sampling, forced):
    b, width = hidden.shape
    none = jnp.zeros((b,), bool)
    empty = Generation(
        ids=jnp.zeros((b, sizes.max_new_tokens), jnp.int32),
        counts=jnp.zeros((b,), jnp.int32),
        stopped=none,
        seg_states=jnp.zeros((b, sizes.max_segs, width), jnp.float32),
        seg_counts=jnp.zeros((b,), jnp.int32),
        owed=none,
        cache=(),
        cached=jnp.asarray(positions),
    )
    return _emit(model, params, sizes, empty, hidden, ~none, sampling, forced)


@functools.partial(jax.jit, static_argnames=("model", "sizes"), donate_argnames="state")
def _advance(model: Llama, params, sizes: DecodeSizes, state: Generation, limits, steps, sampling, forced):
    def active_rows(state: Generation):
        return ~state.stopped & (state.counts < limits)

    def step(loop):
        done, state = loop
        newest = jnp.take_along_axis(state.ids, state.counts[:, None] - 1, axis=1)
        embeds = model.apply({"params": params}, newest, method="embed")
        states, cache = model.apply({"params": params}, embeds, state.cached[:, None], cache=state.cache)
        active = active_rows(state)
        state = state._replace(cache=cache, cached=state.cached + active)
        if sizes.seg_state == "at":
            state = _store(state, states[:, 0], state.owed)
        return done + 1, _emit(model, params, sizes, state, states[:, 0], active, sampling, forced)

    def unfinished(loop):
        done, state = loop
        return (done < steps) & (active_rows(state) | state.owed).any()

    return jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]


def _emit(model: Llama, params, sizes: DecodeSizes, state: Generation, hidden, active, sampling, forced):
    """Choose the next id of every active row from the state that predicts it."""
    logits: Any = model.apply({"params": params}, hidden, method="logits")
    ids = choose(logits, state.counts, sampling)
    if forced is not None:
        wish = jnp.take_along_axis(forced, state.counts[:, None], axis=1, mode="clip")[:, 0]
        ids = jnp.where(wish >= 0, wish, ids)
    row = jnp.arange(len(ids))
    seg = active & (ids == sizes.seg_id)
    stops = jnp.asarray(sizes.stop_ids, jnp.int32)
    slot = jnp.where(active, state.counts, sizes.max_new_tokens)
    state = state._replace(
        ids=state.ids.at[row, slot].set(ids, mode="drop"),
        counts=state.counts + active,
        stopped=state.stopped | (active & jnp.isin(ids, stops)),
        seg_counts=state.seg_counts + seg,
        owed=seg & (sizes.seg_state == "at"),
    )
    return _store(state, hidden, seg) if sizes.seg_state == "before" else state


def _store(state: Generation, hidden, which) -> Generation:
    """Write the state of the newest `<seg>` of the rows `which`; no room left: dropped, but counted."""
    b, room, _ = state.seg_states.shape
    slot = jnp.where(which, state.seg_counts - 1, room)
    states = state.seg_states.at[jnp.arange(b), slot].set(hidden.astype(jnp.float32), mode="drop")
    return state._replace(seg_states=states)


def choose(
    logits: Float32[Array, "b vocab"], counts: Int32[Array, " b"], sampling: Sampling | None
) -> Int32[Array, " b"]:
    """Take the best id of each row, or draw one; `counts` says how many ids each row already has."""
    best = logits.argmax(-1).astype(jnp.int32)
    if sampling is None:
        return best
    temperature = jnp.asarray(sampling.temperature, jnp.float32)
    top_p = jnp.asarray(sampling.top_p, jnp.float32)

    def draw(row_logits, count, seed, heat, mass):
        row_key = jax.random.fold_in(jax.random.fold_in(sampling.key, seed), count)
        return jax.random.categorical(row_key, nucleus(row_logits / heat, mass))

    def sample():
        heat = jnp.maximum(temperature, GREEDY_BELOW)
        drawn = jax.vmap(draw)(logits, counts, jnp.asarray(sampling.seeds), heat, top_p)
        return jnp.where(temperature < GREEDY_BELOW, best, drawn).astype(jnp.int32)

    return jax.lax.cond((temperature >= GREEDY_BELOW).any(), sample, lambda: best)


def nucleus(logits: Float32[Array, " vocab"], top_p: Float32[Array, ""]) -> Float32[Array, " vocab"]:
    """Set to -inf all but the smallest set of best ids whose mass reaches `top_p` (ties stay together)."""
    order = -jnp.sort(-logits)
    probabilities = jax.nn.softmax(order)
    before = jnp.cumsum(probabilities) - probabilities
    kept = (before < top_p).at[0].set(True)
    threshold = jnp.where(kept, order, jnp.inf).min()
    return jnp.where((logits >= threshold) | (top_p >= 1), logits, -jnp.inf)
