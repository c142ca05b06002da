"""Next-token cross entropy, without ever holding the logits of a whole batch.

Source: spec/language_model.md 10; spec/training_and_data.md 4.1, 14.3.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lgjax.config import IGNORE_LABEL


def head_chunks(length: int, most: int = 256) -> tuple[int, int]:
    """How many chunks of at most `most` positions the head sees, and their equal size; few are padding."""
    count = -(-length // most)
    return count, -(-length // count)


def language_loss(
    hidden: Float[Array, "b t d"],
    labels: Int[Array, "b t"],
    logits: Callable[[Float[Array, "b c d"]], Float[Array, "b c v"]],
    row_weights: Float[Array, " b"],
    chunk: int = 256,
    label_weights: Float[Array, "b t"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of the losses of all labelled tokens, and of their weights; the quotient is the mean.

    The state at a position predicts the label of the next one. `logits` is the output head, applied to
    at most `chunk` positions at a time (and again in the backward pass); rows of weight 0 do not count.
    `label_weights` are 1 by default.
    """
    count, chunk = head_chunks(hidden.shape[1], chunk)
    targets = jnp.concatenate([labels[:, 1:], jnp.full_like(labels[:, :1], IGNORE_LABEL)], axis=1)
    shares = jnp.broadcast_to(row_weights[:, None], labels.shape)
    if label_weights is not None:
        shares = shares * jnp.roll(label_weights, -1, axis=1)
    padding = count * chunk - hidden.shape[1]
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)), constant_values=IGNORE_LABEL)
    shares = jnp.pad(shares, ((0, 0), (0, padding)))

    @jax.checkpoint
    def part(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        states = jax.lax.dynamic_slice_in_dim(hidden, start, chunk, axis=1)
        wanted = jax.lax.dynamic_slice_in_dim(targets, start, chunk, axis=1)
        share = jax.lax.dynamic_slice_in_dim(shares, start, chunk, axis=1)
        weights = jnp.where(wanted == IGNORE_LABEL, 0, share)
        scores = logits(states).astype(jnp.float32)
        # what does not count may hold anything, also numbers that are not finite, which spoil gradients too
        scores = jnp.where(weights[..., None] > 0, scores, 0)
        own = jnp.take_along_axis(scores, jnp.maximum(wanted, 0)[..., None], axis=-1)[..., 0]
        losses = (jax.nn.logsumexp(scores, axis=-1) - own) * weights
        return losses.sum(), weights.sum()

    sums, counts = jax.lax.map(part, jnp.arange(0, hidden.shape[1], chunk))
    return sums.sum(), counts.sum()
