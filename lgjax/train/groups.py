"""What learns and what does not: parameters cut into a trained and a frozen part, and put together again.

Both parts are flat dicts from parameter path to array. Besides paths of the model the trained part may hold
`new_tokens/...` (the rows of the grounding tokens, where the tables are frozen) and `lora/...` (low-rank
updates of matrices). Source: spec/training_and_data.md 2.1, 3.2.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lgjax.convert.store import FLOAT32_PARTS, nested
from lgjax.models.kernels import LowRank, Packed, dense, low_rank, quantize
from lgjax.models.layers import unstack_layers
from lgjax.text.tokenizer import GROUNDING_TOKENS
from lgjax.train.config import Rates, TrainConfig

Flat = dict[str, Any]
EMBED, HEAD = "llama/embed_tokens", "llama/lm_head/kernel"
NEW_EMBED, NEW_HEAD = "new_tokens/embed", "new_tokens/head"
LORA = "lora/"
NEW = len(GROUNDING_TOKENS)
_LAYER = re.compile(r"(llama/)layers_(\d+)/(.*)")
_SLOW = ("/backbone/", "/sampling_offsets/")


def group_of(path: str) -> str:
    """Group of a parameter: a field of `Rates`, "_slow" behind it for the slow part of a vision model."""
    if path.startswith(LORA):
        return "llama"
    if path in (EMBED, HEAD):
        return "embed" if path == EMBED else "head"
    part = path.split("/")[0]
    slow = part in FLOAT32_PARTS and any(mark in path for mark in _SLOW)
    return f"{part}_slow" if slow else part


def rate_of(group: str, rates: Rates) -> float:
    """Multiple of the run's rate that a group learns with."""
    part = group.removesuffix("_slow")
    return getattr(rates, part) * (rates.slow if group != part else 1.0)


def split(params: Mapping[str, Any], config: TrainConfig, key: jax.Array) -> tuple[Flat, Flat]:
    """Cut parameters (by path) into what learns, in float32, and what is frozen, in `config.frozen`.

    `key` starts low-rank updates.
    """
    rates, trained, frozen = config.optim.rates, {}, {}
    for path, leaf in params.items():
        group = group_of(path)
        adapted = config.optim.lora and _is_matrix(path)
        learns = rate_of(group, rates) > 0 and not (config.optim.lora and group == "llama")
        if learns:
            trained[path] = leaf.astype(jnp.float32)
            continue
        if rates.llama and adapted:
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            pair = low_rank(leaf, config.optim.lora, own)
            trained[f"{LORA}{path}/down"], trained[f"{LORA}{path}/up"] = pair
        if rates.new_tokens and path in (EMBED, HEAD):
            rows = leaf[-NEW:] if path == EMBED else leaf[:, -NEW:]
            trained[NEW_EMBED if path == EMBED else NEW_HEAD] = rows.astype(jnp.float32)
        frozen[path] = _frozen(path, leaf, config)
    return trained, frozen


def _is_matrix(path: str) -> bool:
    """A matrix of a layer of the language model."""
    return path.startswith("llama/layers") and path.endswith("/kernel")


def _frozen(path: str, leaf: jax.Array, config: TrainConfig) -> Any:
    if path.split("/")[0] in FLOAT32_PARTS:
        return leaf.astype(jnp.float32)
    if config.frozen == "int8":
        return quantize(leaf) if _is_matrix(path) else leaf.astype(jnp.bfloat16)
    return leaf.astype(config.frozen)


def join(trained: Mapping[str, Any], frozen: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The parameters of the model as a nested dict; what learns in its language part is cast to `dtype`."""
    params = dict(frozen)
    for path, leaf in trained.items():
        cast = leaf if path.split("/")[0] in FLOAT32_PARTS else leaf.astype(dtype)
        if path == NEW_EMBED:
            params[EMBED] = frozen[EMBED].at[-NEW:].set(cast.astype(frozen[EMBED].dtype))
        elif path == NEW_HEAD:
            params[HEAD] = frozen[HEAD].at[:, -NEW:].set(cast.astype(frozen[HEAD].dtype))
        elif path.startswith(LORA):
            if path.endswith("/down"):
                base = path.removeprefix(LORA).removesuffix("/down")
                up = trained[f"{LORA}{base}/up"].astype(dtype)
                params[base] = LowRank(frozen[base], cast, up)
        else:
            params[path] = cast
    return nested(params)


def apart(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of the model with the layers of its language model apart, as inference reads them."""
    if "layers" in params["llama"]:
        return {**params, "llama": unstack_layers(params["llama"])}
    return params


def leaf_of(trained: Mapping[str, Any], frozen: Mapping[str, Any], path: str, base: Any = None) -> Any:
    """One parameter of a checkpoint as a plain float32 array, what was learnt included.

    `base` stands for the frozen array, where that is kept in fewer bits than it had.
    """
    stored, layer = path, None
    if path not in trained and path not in frozen:
        head, number, rest = _LAYER.fullmatch(path).groups()  # pyright: ignore[reportOptionalMemberAccess]
        stored, layer = f"{head}layers/{rest}", int(number)

    def own(leaf: Any) -> Any:
        return leaf if layer is None else jax.tree.map(lambda array: array[layer], leaf)

    if stored in trained:
        return own(trained[stored])
    kept = own(frozen[stored]) if base is None else jnp.asarray(base)
    kept = dense(kept) if isinstance(kept, Packed) else kept.astype(jnp.float32)
    if f"{LORA}{stored}/down" in trained:
        pair = (own(trained[f"{LORA}{stored}/{name}"]) for name in ("down", "up"))
        return dense(LowRank(kept, *pair))
    if path == EMBED and NEW_EMBED in trained:
        return kept.at[-NEW:].set(trained[NEW_EMBED])
    if path == HEAD and NEW_HEAD in trained:
        return kept.at[:, -NEW:].set(trained[NEW_HEAD])
    return kept


def is_replaced(trained: Mapping[str, Any], path: str) -> bool:
    """Whether all of a parameter has learnt, so that nothing is left of what it was before."""
    return path in trained or _LAYER.sub(r"\1layers/\3", path) in trained


def is_unchanged(trained: Mapping[str, Any], path: str) -> bool:
    """Whether training cannot have changed a parameter of a checkpoint."""
    stored = _LAYER.sub(r"\1layers/\3", path)
    rows = {EMBED: NEW_EMBED, HEAD: NEW_HEAD}.get(path)
    names = {f"{LORA}{path}/down", f"{LORA}{stored}/down", rows}
    return not is_replaced(trained, path) and not any(name in trained for name in names)
