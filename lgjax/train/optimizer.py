"""AdamW with a rate for each group of parameters; steps without finite gradients change nothing.

Source: spec/training_and_data.md 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax.numpy as jnp
import optax

from lgjax.train.config import OptimConfig
from lgjax.train.groups import group_of, rate_of

_NEVER = 2**30  # the loop ends a run of bad steps; optax would go on with one of them


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
    labels = {path: group_of(path) for path in paths}
    factor = schedule(config, steps)

    def adamw(group: str) -> optax.GradientTransformation:
        rate = config.lr * rate_of(group, config.rates)
        decay = optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity()
        return optax.chain(
            optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.float32),
            decay,
            optax.scale_by_learning_rate(lambda step: rate * factor(step)),
        )

    inner = optax.multi_transform({group: adamw(group) for group in sorted(set(labels.values()))}, labels)
    if config.clip_norm is not None:
        inner = optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)
    return optax.apply_if_finite(inner, _NEVER)
