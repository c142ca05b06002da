"""Attention of many queries: by plain products, or by the kernel that an accelerator has for it.

The plain form holds the scores of all queries and keys, [b, heads, t, s] in float32; the kernels go over them
block by block and hold none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

Kernel = Literal["plain", "splash", "cudnn"]
Queries = Float[Array, "b t heads d"]
Keys = Float[Array, "b kv s d"]

_BLOCKS = (512, 256, 128)  # rows of a tile of splash attention, the best first; 128 is what TPUs ask for


def kernel_of(platform: str, dtype: DTypeLike) -> Kernel:
    """The kernel for devices of a platform ("cpu", "tpu", "gpu", ...) and a compute type.

    cuDNN has none for float32.
    """
    if platform == "tpu":
        return "splash"
    narrow = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return "cudnn" if platform in ("gpu", "cuda") and narrow else "plain"


def attend(
    q: Queries, keys: Keys, values: Keys, visible: Bool[Array, "b t s"], kernel: Kernel = "plain"
) -> Queries:
    """softmax(q k / sqrt(d)) v over the keys that each query sees, in float32; heads share keys evenly.

    With another kernel than "plain", `visible` must be causal, t = s: query i sees those of the keys 0..i
    that the last query sees. "cudnn" also takes the keys that are hidden to be the last ones.
    """
    if kernel == "splash":
        return _shared_out(_splash, q, keys, values, visible[:, -1])
    if kernel == "cudnn":
        return _library(q, keys, values, visible[:, -1], "cudnn")
    return _plain(q, keys, values, visible)


def _plain(q: Queries, keys: Keys, values: Keys, visible: Bool[Array, "b t s"]) -> Queries:
    b, t, heads, d = q.shape
    kv = keys.shape[1]
    q = q.reshape(b, t, kv, heads // kv, d)
    scores = jnp.einsum("btkgd,bksd->bkgts", q, keys).astype(jnp.float32) * d**-0.5
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(q.dtype)
    return jnp.einsum("bkgts,bksd->btkgd", weights, values).reshape(b, t, heads, d)


def _library(
    q: Queries, keys: Keys, values: Keys, seen: Bool[Array, "b s"], implementation: Literal["xla", "cudnn"]
) -> Queries:
    """Causal attention of jax over the first keys of each row; it shares rows and heads out by itself."""
    return jax.nn.dot_product_attention(
        q,
        keys.swapaxes(1, 2),
        values.swapaxes(1, 2),
        is_causal=True,
        key_value_seq_lengths=seen.sum(-1, dtype=jnp.int32),
        implementation=implementation,
    )


def _splash(q: Queries, keys: Keys, values: Keys, seen: Bool[Array, "b s"]) -> Queries:
    """Causal attention by Pallas' splash kernel for TPUs, which has a backward pass of its own."""
    # takes a second to load, and only TPUs need it
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length = q.shape[1]
    missing = -length % _BLOCKS[-1]  # tiles are whole

    def padded(array: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)])

    tile = next(block for block in _BLOCKS if (length + missing) % block == 0)
    blocks = splash.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    mask = splash.MultiHeadMask([splash.CausalMask((length + missing, length + missing))] * q.shape[2])
    run = splash.make_splash_mha_single_device(mask, block_sizes=blocks)
    seen = padded(seen, 1).astype(jnp.int32)
    segments = splash.SegmentIds(jnp.ones_like(seen), seen)  # every query, and the keys that are seen
    scaled = padded(q.swapaxes(1, 2) * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), 2)
    mixed = jnp.asarray(jax.vmap(run)(scaled, padded(keys, 2), padded(values, 2), segments))
    return mixed[:, :, :length].swapaxes(1, 2)


def _shared_out(function: Callable[..., Any], q: Queries, keys: Keys, values: Keys, seen: Any) -> Queries:
    """Run on each device for its rows and heads; the partitioner of XLA cannot look into a Pallas kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size < 2:
        return function(q, keys, values, seen)
    batch, heads = nn.logical_to_mesh_axes(("batch", "kv_heads")) or (None, None)
    if heads is not None:
        names = (heads,) if isinstance(heads, str) else heads
        if keys.shape[1] % math.prod(mesh.shape[name] for name in names):
            heads = None  # too few to share: every device computes all
    by_head = PartitionSpec(batch, heads)
    by_query = PartitionSpec(batch, None, heads)
    run = jax.shard_map(
        function,
        in_specs=(by_query, by_head, by_head, PartitionSpec(batch)),
        out_specs=by_query,
        check_vma=False,
    )
    return run(q, keys, values, seen)
