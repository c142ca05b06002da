"""The programs of answering as jobs to plan for: read a prompt, write a token, ground phrases."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lgjax.config import ModelConfig
from lgjax.convert.store import flattened, nested, part_dtype
from lgjax.infer import engine, generate
from lgjax.models.llama import Llama, init_cache
from lgjax.models.llava_grounding import abstract_params, logical_axes
from lgjax.parallel.plan import TEMPORARIES, Job
from lgjax.parallel.rules import shardings
from lgjax.train.flops import forward_flops

Kind = Literal["prefill", "decode", "ground"]
PHRASES, NEW_TOKENS = 8, 256
_REMEDIES = {
    "parameters": "more devices for --mesh.tensor or --mesh.fsdp",
    TEMPORARIES: "a smaller --batch or --length, or more devices for --mesh.tensor",
}


def serve_job(kind: Kind, config: ModelConfig, mesh: Mesh, *, batch: int, length: int) -> Job:
    """A program of inference in bfloat16, its parameters on the mesh, everything else where XLA puts it.

    batch: questions at once; length: positions of the cache, of which 256 are for new tokens. "prefill" reads
    the rest or, of a long prompt, a whole chunk that sees all of it, the dearest one; "decode" writes one
    token. "ground" finds 8 phrases a picture, from the picture on.

    Raises:
        ValueError: the model cannot ground, or numbers that are too small.
    """
    if batch < 1 or length <= NEW_TOKENS:
        raise ValueError(f"batch {batch} must be at least 1, length {length} above {NEW_TOKENS}")
    params = _parameters(config, mesh)
    lowered, used = {"prefill": _prefill, "decode": _decode, "ground": _ground}[kind](
        config, params, batch, length
    )

    def lower() -> Any:
        with jax.set_mesh(mesh):
            return lowered()

    return Job(
        name=f"{kind} of {batch} question{'s' * (batch != 1)}" + _positions(kind, length),
        lower=lower,
        arguments={"parameters": {name: params[name] for name in used}},
        flops=_flops(kind, config, params, batch, length),
        handled=_handled(kind, batch, length),
        remedies=_REMEDIES,
    )


def _positions(kind: Kind, length: int) -> str:
    if kind == "prefill":
        return f", {_read(length)} of {length - NEW_TOKENS} positions"
    return f", {length} positions" if kind == "decode" else ""


def _parameters(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    abstract = abstract_params(config)
    where = flattened(shardings(abstract, logical_axes(config), mesh))
    wide, narrow = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
    return nested(
        {
            path: jax.ShapeDtypeStruct(
                leaf.shape, part_dtype(path.split("/")[0], narrow, wide), sharding=where[path]
            )
            for path, leaf in flattened(abstract).items()
        }
    )


def _llama(config: ModelConfig, batch: int, length: int) -> tuple[Llama, Any]:
    cache = jax.eval_shape(functools.partial(init_cache, config.llama, batch, length, jnp.bfloat16))
    return Llama(config.llama, jnp.bfloat16), cache


def _whole(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _prefill(config: ModelConfig, params: dict[str, Any], batch: int, length: int) -> Any:
    model, cache = _llama(config, batch, length)
    embeds = jax.ShapeDtypeStruct((batch, _read(length), config.llama.hidden_size), jnp.bfloat16)
    inputs = params["llama"], embeds, _whole(batch), cache, _whole(batch)
    return lambda: generate._prefill.lower(model, *inputs), ("llama",)


def _read(length: int) -> int:
    """Positions that "prefill" reads."""
    return min(length - NEW_TOKENS, generate.PREFILL_CHUNK)


def _decode(config: ModelConfig, params: dict[str, Any], batch: int, length: int) -> Any:
    model, cache = _llama(config, batch, length)
    last = config.llama.vocab_size - 1
    sizes = generate.DecodeSizes(
        max_new_tokens=NEW_TOKENS, max_segs=NEW_TOKENS, seg_id=last, stop_ids=(2,), seg_state=config.seg_state
    )
    hidden = jax.ShapeDtypeStruct((batch, config.llama.hidden_size), jnp.bfloat16)
    begun = jax.eval_shape(
        lambda *inputs: generate._begin(model, inputs[0], sizes, *inputs[1:], None, None),
        params["llama"],
        hidden,
        _whole(batch),
    )
    inputs = params["llama"], sizes, begun._replace(cache=cache), _whole(batch), _whole(), None, None
    return lambda: generate._advance.lower(model, *inputs), ("llama",)


def _ground(config: ModelConfig, params: dict[str, Any], batch: int, length: int) -> Any:
    grounding = config.grounding
    if grounding is None:
        raise ValueError("the model of this configuration has no grounding part")

    @jax.jit
    def run(params: Any, canvas: Any, phrases: Any, mask: Any) -> Any:
        features = engine.encode_grounding(config, params, canvas)
        found = engine.ground(config, params, features, phrases, mask, grounding.num_queries)
        chosen = jnp.zeros((batch, 2 * PHRASES), jnp.int32)
        return *found[:2], engine.masks_of(found[2], features.mask_features, chosen)

    canvas = jax.ShapeDtypeStruct((batch, grounding.image_size, grounding.image_size, 3), jnp.uint8)
    phrases = jax.ShapeDtypeStruct((batch, PHRASES, config.llama.hidden_size), jnp.float32)
    mask = jax.ShapeDtypeStruct((batch, PHRASES), jnp.bool_)
    own = {"grounding": params["grounding"]}
    return lambda: run.lower(own, canvas, phrases, mask), ("grounding",)


def _flops(kind: Kind, config: ModelConfig, params: dict[str, Any], batch: int, length: int) -> float:
    if kind != "ground":
        llama, decodes = config.llama, kind == "decode"
        kernels = sum(
            math.prod(leaf.shape)
            for path, leaf in flattened(params["llama"]).items()
            if "kernel" in path and (decodes or "lm_head" not in path)
        )
        seen = length if decodes else length - NEW_TOKENS
        attention = 2 * llama.num_layers * llama.num_heads * llama.head_dim * seen
        return 2.0 * batch * (1 if decodes else _read(length)) * (kernels + attention)
    queries = config.grounding.num_queries if config.grounding is not None else 0
    parts = forward_flops(
        config,
        rows=batch,
        length=length,
        grounded_rows=batch,
        phrases=PHRASES,
        objects=2,
        prompts=0,
        queries=queries,
    )
    return parts["grounding"]


def _handled(kind: Kind, batch: int, length: int) -> dict[str, float]:
    tokens = {"prefill": batch * _read(length), "decode": batch}
    return {"images": float(batch)} if kind == "ground" else {"tokens": float(tokens[kind])}
