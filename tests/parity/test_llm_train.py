"""Language losses and their gradients against the original, on every `llm_forward*.npz`."""

from __future__ import annotations

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from lgjax.convert import keys
from lgjax.losses.language import language_loss
from lgjax.models.splice import plan_batch, plan_row, splice
from tests.parity.llm import PERCENT_ID
from tests.parity.test_llm_forward import files, load
from tests.weights import parameter_at


def loss_of(case: SimpleNamespace, params, plan, images, objects=None, weights=None):
    """Mean loss of a planned batch, as training computes it."""

    def apply(*args, method=None):
        return case.model.apply({"params": params["llama"]}, *args, method=method)

    tokens = images if params.get("projector") is None else project(case, params, images)
    embeds = splice(lambda ids: apply(ids, method="embed"), plan, tokens, objects)
    positions = jnp.broadcast_to(jnp.arange(embeds.shape[1]), embeds.shape[:2])
    hidden, _ = apply(embeds, positions, jnp.asarray(plan.mask))
    weights = jnp.ones(len(embeds)) if weights is None else jnp.asarray(weights, jnp.float32)
    total, count = language_loss(
        hidden, jnp.asarray(plan.labels), lambda h: apply(h, method="logits"), weights, chunk=32
    )
    return total / jnp.maximum(count, 1), count


def project(case: SimpleNamespace, params, features):
    return features @ params["projector"]["kernel"] + params["projector"]["bias"]


def stored_plan(case: SimpleNamespace, name: str):
    stored = {key: case.stored[f"{name}.{key}"] for key in ("input_ids", "labels", "attention_mask")}
    patches = case.projected.shape[1]
    return plan_batch(
        [
            plan_row(ids, patches, labels=labels, mask=mask)
            for ids, labels, mask in zip(*stored.values(), strict=True)
        ]
    )


@files
def test_losses(path):
    case = load(path)
    for name in ("batch", "batch_with_text_only"):
        if f"{name}.loss" not in case.stored.files:
            continue
        plan = stored_plan(case, name)
        images = jnp.asarray(case.projected[: len(plan.labels)])
        loss, count = jax.jit(lambda params, plan, images: loss_of(case, {"llama": params}, plan, images))(
            case.params, plan, images
        )
        np.testing.assert_allclose(float(loss), case.stored[f"{name}.loss"], rtol=1e-5)
        if "valid_targets" in case.info[name]:
            assert int(count) == case.info[name]["valid_targets"]


@files
def test_losses_of_visual_prompts_and_rows_that_do_not_count(path):
    case = load(path)
    if "visual_prompt" in case.info:
        info = case.info["visual_prompt"]
        sample = case.info["cases"][info["sample"]]
        row = plan_row(
            sample["input_ids"],
            case.projected.shape[1],
            PERCENT_ID,
            num_objects=info["n_objects"],
            labels=sample["labels"],
        )
        objects = jnp.asarray(case.stored["visual_prompt.obj_feats"])
        image = jnp.asarray(case.projected[info["image"] : info["image"] + 1])
        loss, _ = loss_of(case, {"llama": case.params}, plan_batch([row]), image, objects)
        np.testing.assert_allclose(float(loss), info["loss"], rtol=1e-5)
    if "train_seg" in case.info:
        pattern = re.compile(r"(\w+): (\w+) with (?:image (\d+)|a zero image)")
        parts = [pattern.match(text).groups() for text in case.info["train_seg"]["order"]]
        rows = [
            plan_row(s["input_ids"], case.projected.shape[1], labels=s["labels"])
            for s in (case.info["cases"][name] for _, name, _ in parts)
        ]
        images = [case.zero_image if i is None else case.projected[int(i)][None] for _, _, i in parts]
        plan, images = plan_batch(rows), jnp.asarray(np.concatenate(images))
        for key, rule in (("llava_loss_all", None), ("llava_loss_coco_only", "flickr")):
            weights = [float(kind != rule) for kind, _, _ in parts]
            loss, _ = loss_of(case, {"llama": case.params}, plan, images, weights=weights)
            np.testing.assert_allclose(float(loss), case.info["train_seg"][key], rtol=1e-5, err_msg=key)


@files
def test_gradients(path):
    """Of every parameter that the file stores, CLIP frozen."""
    case = load(path)
    plan = stored_plan(case, "batch")
    features = jnp.asarray(case.features[: len(plan.labels)])
    params = {"llama": case.params, "projector": case.projector_params}
    grads = jax.jit(jax.grad(lambda params: loss_of(case, params, plan, features)[0]))(params)
    for key, want in case.info["batch"]["grad_norms"].items():
        found = keys.parameter(key)
        assert found is not None, key
        value = keys.to_checkpoint(np.asarray(parameter_at(grads, found[0])), found[1])
        np.testing.assert_allclose(np.linalg.norm(value), want, rtol=1e-4, err_msg=key)
        if f"grad.{key}" in case.stored.files:
            stored = case.stored[f"grad.{key}"]
            rows = (
                value[-3:] if key in ("model.embed_tokens.weight", "lm_head.weight") else value.ravel()[:64]
            )
            np.testing.assert_allclose(rows.reshape(stored.shape), stored, rtol=0, atol=2e-6, err_msg=key)
