"""AdamW or Muon with a rate for each group of parameters; steps without finite gradients change nothing.

Source: spec/training_and_data.md 3; Muon: Jordan et al. 2024, with the step size of Liu et al. 2025.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from lgjax.train.config import OptimConfig
from lgjax.train.groups import Flat, group_of, rate_of

_KERNELS = ("/kernel", "/class_embed")
_MATRICES = " matrices"  # behind the name of a group: its kernels, which Muon moves
_MUON_RMS = 0.2  # of its steps, that of AdamW's, so that both learn with one rate


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Factor of the rate at each step: linear from 0 over the warm-up, then half a cosine to 0."""
    warmup = math.ceil(config.warmup * steps)

    def factor(step):
        rising = step / max(warmup, 1)
        share = (step - warmup) / max(steps - warmup, 1)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1)))
        return jnp.where(step < warmup, rising, falling)

    return factor


def make_optimizer(config: OptimConfig, steps: int, paths: Iterable[str]) -> optax.GradientTransformation:
    """The optimiser of the trained parameters, a flat dict with these paths.

    Its state counts steps whose gradients were not finite (`optax.ApplyIfFiniteState`).
    """
    factor = schedule(config, steps)

    def label(path: str) -> str:
        group = group_of(path)
        matrix = config.method == "muon" and path.endswith(_KERNELS) and group != "head"
        return f"{group}{_MATRICES}" if matrix else group

    def transform(label: str) -> optax.GradientTransformation:
        group = label.removesuffix(_MATRICES)
        rate = config.lr * rate_of(group, config.rates)
        decay = optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity()
        if group != label:
            direction = optax.chain(
                optax.contrib.scale_by_muon(weight_dimension_numbers=_matrices),
                optax.stateless(lambda updates, _: jax.tree.map(_scaled, updates)),
            )
        else:
            direction = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.float32)
        return optax.chain(
            direction,
            decay,
            optax.scale_by_learning_rate(lambda step: rate * factor(step)),
        )

    labels = {path: label(path) for path in paths}
    inner = optax.multi_transform({name: transform(name) for name in sorted(set(labels.values()))}, labels)
    if config.clip_norm is not None:
        inner = optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)
    return _if_finite(inner)


def _if_finite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """As `optax.apply_if_finite`, but without a branch, across which XLA fuses nothing, and for ever.

    Squares count as well: where they overflow, they would spoil the moments.
    """

    def init(params: Flat) -> optax.ApplyIfFiniteState:
        row, total = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # not one array: steps use them up
        return optax.ApplyIfFiniteState(row, jnp.array(True), total, inner.init(params))

    def update(
        updates: Flat, state: optax.ApplyIfFiniteState, params: Flat
    ) -> tuple[Flat, optax.ApplyIfFiniteState]:
        squares = [jnp.square(leaf).sum() for leaf in updates.values()]
        finite = jnp.isfinite(jnp.stack(squares)).all()
        found, moved = inner.update(updates, state.inner_state, params)
        still = jax.tree.map(jnp.zeros_like, updates), state.inner_state
        moved, inside = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (found, moved), still)
        row = jnp.where(finite, 0, state.notfinite_count + 1)
        new = optax.ApplyIfFiniteState(row, finite, state.total_notfinite + ~finite, inside)
        return cast(Flat, moved), new

    return optax.GradientTransformation(cast(Any, init), cast(Any, update))


def _matrices(tree: Any) -> Any:
    """Which axes of a kernel are in and out: [in, out], a stack [layers, in, out], or [h, w, in, out]."""

    def axes(leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers:
        inputs = (1,) if leaf.ndim == 3 else tuple(range(leaf.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, (leaf.ndim - 1,))

    return jax.tree.map(axes, tree)


def _scaled(leaf: jax.Array) -> jax.Array:
    """An orthogonal matrix (or a stack of them) with entries of size `_MUON_RMS`."""
    inputs = leaf.shape[-2] if leaf.ndim == 3 else math.prod(leaf.shape[:-1])
    return leaf * (_MUON_RMS * math.sqrt(max(inputs, leaf.shape[-1])))
