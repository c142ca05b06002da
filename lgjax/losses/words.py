"""Reading states as words: what teaches names to models that start without pre-training.

A word is a row of the language model's input table. States that should stand for a word are compared with all
rows by their angle, so that image tokens, queries of the grounding model and phrases share one space with the
text. Source: none; these losses are lgjax's own.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

SHARPNESS = 16.0  # logit of a state that points exactly along a row
NOTHING_WEIGHT = 0.25  # of a state that shows nothing, beside 1 for one that shows a thing


def sphere(vectors: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Vectors of length sqrt(d), that of a fresh hidden state; zeros stay zeros."""
    vectors = vectors.astype(jnp.float32)
    return vectors * jax.lax.rsqrt(jnp.square(vectors).mean(-1, keepdims=True) + 1e-12)


def table_logits(states: Float[Array, "*n d"], table: Float[Array, "v d"]) -> Float[Array, "*n v"]:
    """`SHARPNESS` times the cosine between states and the rows of a table."""
    return sphere(states) @ sphere(table).T * (SHARPNESS / table.shape[1])


def word_loss(logits: Float[Array, "*n v"], words: Int[Array, "*n"], nothing: int) -> Float[Array, "*n"]:
    """Weighted cross entropy of each state; 0 where the word is -1. `nothing` weighs less than a thing."""
    known = jnp.maximum(words, 0)
    own = jnp.take_along_axis(logits, known[..., None], axis=-1)[..., 0]
    weights = jnp.where(words == nothing, NOTHING_WEIGHT, 1.0) * (words >= 0)
    return weights * (jax.nn.logsumexp(logits, axis=-1) - own)


def mean_word_loss(logits: Float[Array, "*n v"], words: Int[Array, "*n"], nothing: int) -> Float[Array, ""]:
    """Mean of `word_loss` over the states whose word is known."""
    return word_loss(logits, words, nothing).sum() / jnp.maximum((words >= 0).sum(), 1)


def choice_loss(
    logits: Float[Array, "b q p"], positive: Bool[Array, "b q p"], phrase_mask: Bool[Array, "b p"]
) -> Float[Array, " b"]:
    """How far each phrase is from choosing its own queries alone and alike, added up over the phrases.

    Cross entropy of the softmax over the queries, which is what inference reads. Phrases without a query
    do not count.
    """
    # padded phrases have all logits equal, so their gradients are finite
    share = positive / jnp.maximum(positive.sum(1, keepdims=True), 1)
    losses = -(share * jax.nn.log_softmax(logits, axis=1)).sum(1)
    return jnp.where(phrase_mask, losses, 0).sum(-1)


class NamePhrases(NamedTuple):
    """The names of the objects of b images as phrases, one slot for each object.

    mask: True at the first object of each name; objects: which slots name an object.
    """

    mask: Bool[Array, "b t"]
    objects: Bool[Array, "b t t"]


def name_phrases(words: Int[Array, "b t"], object_mask: Bool[Array, "b t"]) -> NamePhrases:
    """One phrase for each word among the objects; objects without one have no phrase."""
    known = object_mask & (words >= 0)
    same = (words[:, :, None] == words[:, None]) & known[:, :, None] & known[:, None]
    earlier = jnp.tril(jnp.ones(words.shape[1:] * 2, bool), -1)
    first = known & ~(same & earlier).any(-1)
    return NamePhrases(first, same & first[:, None])
