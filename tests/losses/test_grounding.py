"""Room to spare changes no grounding loss and no gradient: phrases, objects, images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.losses.grounding import Targets, grounding_losses
from lgjax.models.grounding import MASKED_LOGIT, Prediction

B, Q, P, T, C, H, W = 2, 12, 3, 4, 6, 8, 10


class SharedPoints:
    """The same random points for every image and object, so that padding moves none."""

    def __init__(self, b: int) -> None:
        self.b = b

    def matching(self, output: jax.Array) -> jax.Array:
        points = np.random.default_rng(1).random((1, 40, 2), np.float32)
        return jnp.broadcast_to(jnp.asarray(points), (self.b, 40, 2))

    def losses(self, output: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        rng = np.random.default_rng(2)
        over, extra = (jnp.asarray(rng.random((1, 1, n, 2), np.float32)) for n in (48, 4))
        return tuple(jnp.broadcast_to(x, (*queries.shape, *x.shape[2:])) for x in (over, extra))


def boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(0.2, 0.6, (*shape, 4)).astype(np.float32)


@functools.cache
def data(phrases: int = 0, objects: int = 0, images: int = 0, junk: float = 0.5):
    """A batch of two images with this much room to spare, filled with `junk`."""
    rng = np.random.default_rng(0)
    predictions = {}
    for name in ("final", "aux0", "interm"):
        logits, embedding = (rng.normal(size=(B, Q, n)).astype(np.float32) for n in (P, C))
        predictions[name] = Prediction(logits, boxes(rng, B, Q), embedding)
    features = rng.normal(size=(B, H, W, C)).astype(np.float32)
    targets = Targets(
        boxes=boxes(rng, B, T),
        object_mask=np.asarray([[1, 1, 1, 0], [1, 0, 1, 0]], bool),
        has_mask=np.asarray([[1, 0, 1, 0], [1, 0, 1, 0]], bool),
        object_phrases=rng.random((B, T, P)) < 0.5,
        phrase_mask=np.asarray([[1, 1, 1], [1, 0, 0]], bool),
        masks=rng.random((B, T, 16, 20)) < 0.4,
        image_mask=np.ones(B, bool),
    )

    def pad(value: np.ndarray, *more: int) -> jax.Array:
        widths = [(0, n) for n in (*more, *[0] * (value.ndim - len(more)))]
        fill = bool(junk) if value.dtype == bool else junk
        return jnp.asarray(np.pad(value, widths, constant_values=fill))

    off = functools.partial(np.pad, constant_values=False)
    padded = Targets(
        boxes=pad(targets.boxes, images, objects),
        object_mask=jnp.asarray(off(targets.object_mask, ((0, images), (0, objects)))),
        has_mask=pad(targets.has_mask, images, objects),
        object_phrases=pad(targets.object_phrases, images, objects, phrases),
        phrase_mask=jnp.asarray(off(targets.phrase_mask, ((0, images), (0, phrases)))),
        masks=pad(targets.masks, images, objects),
        image_mask=jnp.asarray(off(targets.image_mask, ((0, images),))),
    )
    out = {}
    for name, p in predictions.items():
        logits = np.where(targets.phrase_mask[:, None], p.logits, MASKED_LOGIT)
        logits = np.pad(logits, ((0, images), (0, 0), (0, phrases)), constant_values=MASKED_LOGIT)
        out[name] = Prediction(jnp.asarray(logits), pad(p.boxes, images), pad(p.mask_embedding, images))
    return out, pad(features, images), padded


def run(**room):
    predictions, features, targets = data(**room)
    count = len(targets.image_mask)

    def total(predictions, features):
        losses, matches = grounding_losses(
            predictions,
            features,
            targets,
            SharedPoints(count),
            num_objects=targets.objects.sum()[None],
            phrase_counts=jnp.full(count, 3.0),
        )
        losses = {name: value.sum() for name, value in losses.items()}
        return sum(losses.values()), (losses, matches)

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, (losses, matches)), grads = step(predictions, features)
    return losses, matches, grads


@pytest.mark.parametrize("junk", [0.5, 0.9])
@pytest.mark.parametrize(
    "room", [{"phrases": 4}, {"objects": 3}, {"images": 1}, {"phrases": 2, "objects": 5, "images": 2}]
)
def test_room_to_spare_changes_nothing(room, junk):
    want, matches, grads = run()
    found, more, padded = run(**room, junk=junk)
    assert set(found) == set(want) and len(found) == 15
    for name in want:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.isfinite(found[name]) and found[name] > 0
    for name in matches:
        assert np.array_equal(more[name][:B, :T], matches[name]) and (more[name][B:] == -1).all()
    for a, b in zip(jax.tree.leaves(padded), jax.tree.leaves(grads), strict=True):
        kept = a[tuple(slice(0, n) for n in b.shape)]
        np.testing.assert_allclose(kept, b, rtol=1e-5, atol=1e-6)
        assert abs(np.asarray(a)[B:]).max(initial=0) == 0


def test_objects_without_a_mask_learn_no_mask():
    """Of the two objects that are matched without one, only box and phrase losses come."""
    predictions, features, targets = data()
    none = targets._replace(has_mask=jnp.zeros_like(targets.has_mask))
    losses, _ = grounding_losses(
        predictions,
        features,
        none,
        SharedPoints(B),
        num_objects=jnp.asarray([5]),
        phrase_counts=jnp.full(B, 3.0),
    )
    assert all(
        (value.sum() == 0) == ("mask_bce" in name or "mask_dice" in name) for name, value in losses.items()
    )


def test_no_objects_leave_only_the_class_loss():
    predictions, features, targets = data()
    empty = targets._replace(object_mask=jnp.zeros_like(targets.object_mask))
    losses, matches = grounding_losses(
        predictions,
        features,
        empty,
        SharedPoints(B),
        num_objects=jnp.asarray([0]),
        phrase_counts=jnp.full(B, 3.0),
    )
    assert all((value.sum() > 0) == ("cls" in name) for name, value in losses.items())
    assert all((found == -1).all() for found in matches.values())
