"""Insertion of object features into the text against the original, on every `semsam_insert*.npz`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.models.splice import BatchPlan, plan_batch, plan_row, splice
from tests.parity import cases
from tests.parity.llm import PERCENT_ID

FILES = cases.files("semsam_insert*.npz")
pytestmark = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def word(ids, width: int) -> np.ndarray:
    """Word embeddings of these files: sin(0.001 id j), j = 1 to width, in float64."""
    return np.sin(0.001 * np.asarray(ids)[..., None] * np.arange(1, width + 1)).astype(np.float32)


def spliced(plan: BatchPlan, images: np.ndarray, objects: np.ndarray | None) -> np.ndarray:
    """Splice with words computed on the host, which must never be asked for a negative id."""

    def embed(ids):
        assert np.asarray(ids).min() >= 0
        return jnp.asarray(word(ids, images.shape[-1]))

    objects = None if objects is None else jnp.asarray(objects)
    return np.asarray(splice(embed, plan, jnp.asarray(images), objects))


def test_training_form(path):
    stored = np.load(path)
    if "train_input_ids" not in stored.files:
        pytest.skip("no training part in this file")
    images, batch = stored["train_image_features"], len(stored["train_input_ids"])
    features = [stored[f"train_obj_feats{i}"][0] for i in range(batch)]
    rows = [
        plan_row(
            stored["train_input_ids"][i],
            images.shape[1],
            PERCENT_ID,
            num_objects=len(features[i]),
            labels=stored["train_labels"][i],
            mask=stored["train_attention_mask"][i],
        )
        for i in range(batch)
    ]
    plan = plan_batch(rows)
    padded = np.zeros((batch, max(map(len, features)), images.shape[-1]), np.float32)
    for i, feature in enumerate(features):
        padded[i, : len(feature)] = feature
    np.testing.assert_array_equal(plan.labels, stored["train_out_labels"])
    np.testing.assert_array_equal(plan.mask, stored["train_out_attention_mask"])
    np.testing.assert_array_equal(spliced(plan, images, padded), stored["train_out_embeds"])


@pytest.mark.parametrize("prompted", [True, False])
def test_evaluation_form(path, prompted):
    """One feature goes to every mark; without a prompt the mark is an ordinary word."""
    stored = np.load(path)
    if "eval_input_ids" not in stored.files:
        pytest.skip("no evaluation part in this file")
    images = stored["eval_image_features"]
    percent = PERCENT_ID if prompted else None
    plan = plan_batch([plan_row(ids, images.shape[1], percent) for ids in stored["eval_input_ids"]])
    objects = stored["eval_obj_feats"][:, None] if prompted else None
    want = stored["eval_out_embeds" if prompted else "eval_out_embeds_no_prompt"]
    np.testing.assert_array_equal(spliced(plan, images, objects), want)
