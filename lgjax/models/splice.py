"""Where every position of the language model's input comes from: a token, an image or an object feature.

The plan is made on the host with numpy; the device only gathers, so shapes stay static. Source:
spec/language_model.md 9.2, 9.3 and 17.1; spec/visual_prompts.md 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from lgjax.config import IGNORE_LABEL, IMAGE_TOKEN


class RowPlan(NamedTuple):
    """One spliced row of n positions; -1 means that a position is not of that kind.

    tokens: token id; patches: index into the row's image patches, image after image; objects: index into the
    row's object features; labels; mask: False where the tokenised row had padding.
    """

    tokens: Int32[np.ndarray, " n"]
    patches: Int32[np.ndarray, " n"]
    objects: Int32[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]
    mask: Bool[np.ndarray, " n"]


class BatchPlan(NamedTuple):
    """Spliced rows padded to one length; `lengths` are unpadded. No row needs another, so batches can be cut
    over devices and put together from several hosts."""

    tokens: np.ndarray | jax.Array
    patches: np.ndarray | jax.Array
    objects: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
    mask: np.ndarray | jax.Array
    lengths: np.ndarray | jax.Array


def plan_row(
    ids: Sequence[int] | Int[np.ndarray, " t"],
    num_image_tokens: int,
    percent_id: int | None = None,
    *,
    num_objects: int | None = None,
    labels: Sequence[int] | Int[np.ndarray, " t"] | None = None,
    mask: Sequence[bool] | Bool[np.ndarray, " t"] | None = None,
) -> RowPlan:
    """Plan one row of token ids in which each -200 becomes `num_image_tokens` positions.

    With `percent_id`, every such id after the last image is a mark and takes an object feature: the first one
    for all marks (`num_objects=None`, as released inference), or one each in order of appearance (training).
    Labels become -100 over images and marks; without `labels` all are -100. `mask` marks real ids (default:
    all).

    Raises:
        ValueError: `num_objects` differs from the number of marks; labels or mask have another length.
    """
    row = np.asarray(ids, np.int32)
    targets = np.full_like(row, IGNORE_LABEL) if labels is None else np.array(labels, np.int32)
    real = np.ones(row.shape, bool) if mask is None else np.asarray(mask, bool)
    if targets.shape != row.shape or real.shape != row.shape:
        raise ValueError(f"{len(row)} token ids, but {len(targets)} labels and {len(real)} mask entries")
    image = row == IMAGE_TOKEN
    marked = np.zeros(row.shape, bool)
    if percent_id is not None and image.any():
        marked = (row == percent_id) & (np.arange(len(row)) > np.flatnonzero(image)[-1])
        # the original looks at the labels, which hold the mark only in answers
        targets[(targets == percent_id) & (np.arange(len(row)) > np.flatnonzero(image)[-1])] = IGNORE_LABEL
    if num_objects is not None and marked.sum() != num_objects:
        raise ValueError(
            f"{num_objects} object features for {marked.sum()} marks (id {percent_id}) after the last image; "
            "write one mark for each visual prompt"
        )
    order = np.cumsum(marked) - 1 if num_objects is not None else np.zeros(len(row), np.int64)
    repeats = np.where(image, num_image_tokens, 1)
    is_patch = np.repeat(image, repeats)
    return RowPlan(
        tokens=np.repeat(np.where(image | marked, -1, row), repeats).astype(np.int32),
        patches=np.where(is_patch, np.cumsum(is_patch) - 1, -1).astype(np.int32),
        objects=np.repeat(np.where(marked, order, -1), repeats).astype(np.int32),
        labels=np.repeat(np.where(image, IGNORE_LABEL, targets), repeats).astype(np.int32),
        mask=np.repeat(real | image, repeats),
    )


def plan_batch(rows: Sequence[RowPlan], length: int | None = None) -> BatchPlan:
    """Pad rows on the right to `length` (default: the longest).

    Padding holds no token, no label and a False mask. Arrays are [B, length] int32 or bool, `lengths` [B].

    Raises:
        ValueError: a row is longer than `length`.
    """
    longest = max(len(row.tokens) for row in rows)
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"a spliced row has {longest} positions, more than the {length} of its batch")

    def pad(values: Sequence[np.ndarray], fill: int | bool) -> np.ndarray:
        out = np.full((len(rows), length), fill, values[0].dtype)
        for i, value in enumerate(values):
            out[i, : len(value)] = value
        return out

    return BatchPlan(
        tokens=pad([row.tokens for row in rows], -1),
        patches=pad([row.patches for row in rows], -1),
        objects=pad([row.objects for row in rows], -1),
        labels=pad([row.labels for row in rows], IGNORE_LABEL),
        mask=pad([row.mask for row in rows], False),
        lengths=np.asarray([len(row.tokens) for row in rows], np.int32),
    )


def splice(
    embed: Callable[[jax.Array], jax.Array],
    plan: BatchPlan,
    image_features: Float[Array, "b patches d"] | None = None,
    object_features: Float[Array, "b objects d"] | None = None,
) -> Float[Array, "b t d"]:
    """Gather the input embeddings of a plan, in the dtype of `embed(ids)`; zero where nothing stands.

    `embed` looks up ids [B, T] (never a negative one). Each row has its own features: the patches of its
    images, one image after the other, and its objects. What no row uses may be None.
    """
    tokens = jnp.asarray(plan.tokens)
    out = embed(jnp.maximum(tokens, 0))
    out = jnp.where((tokens >= 0)[..., None], out, 0)
    for index, features in ((plan.patches, image_features), (plan.objects, object_features)):
        if features is not None:
            index = jnp.asarray(index)[..., None]
            found = jnp.take_along_axis(features.astype(out.dtype), jnp.maximum(index, 0), axis=1)
            out = jnp.where(index >= 0, found, out)
    return out
