"""CLIP tower, projector, splicing and LLaMA against the original, on every `llm_forward*.npz`."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.models.clip import ClipTower
from lgjax.models.layers import Linear
from lgjax.models.llama import Llama
from lgjax.models.splice import plan_batch, plan_row, splice
from tests.parity import cases
from tests.parity.llm import PERCENT_ID, SEG_ID, clip_config, llama_config, manifest

ATOL = 1e-4
FILES = cases.files("llm_forward*.npz")
files = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@functools.cache
def load(path: Path) -> SimpleNamespace:
    stored, info = np.load(path), json.loads(path.with_suffix(".json").read_text())
    params = jax.tree.map(jnp.asarray, cases.parameters(manifest(info), info["seed"]))
    clip = ClipTower(clip_config(info))
    projector = Linear(info["config"]["hidden_size"], ("vision", "embed"))

    @jax.jit
    def encode(params, images):
        features, sown = clip.apply({"params": params["clip"]}, images, mutable=["intermediates"])
        projected = projector.apply({"params": params["projector"]}, features)
        return features, projected, sown["intermediates"]["hidden_states"]

    images = stored["images"].transpose(0, 2, 3, 1)
    features, projected, states = jax.tree.map(np.asarray, encode(params, images))
    return SimpleNamespace(
        stored=stored,
        info=info,
        params=params["llama"],
        projector_params=params["projector"],
        model=Llama(llama_config(info)),
        clip_states=states,
        features=features,
        projected=projected,
        zero_image=np.asarray(encode(params, np.zeros_like(images[:1]))[1]),
    )


def run(case: SimpleNamespace, embeds, mask) -> tuple[np.ndarray, np.ndarray]:
    """All hidden states [L+1, B, T, D] (the last post-norm) and the logits [B, T, vocab]."""

    @jax.jit
    def forward(params, embeds, mask):
        variables = {"params": params}
        positions = jnp.broadcast_to(jnp.arange(embeds.shape[1]), embeds.shape[:2])
        (last, _), sown = case.model.apply(variables, embeds, positions, mask, mutable=["intermediates"])
        layers = sown["intermediates"]
        inputs = [layers[f"layers_{i}"]["hidden_states"][0] for i in range(case.model.config.num_layers)]
        return jnp.stack([*inputs, last]), case.model.apply(variables, last, method="logits")

    return jax.tree.map(np.asarray, forward(case.params, embeds, mask))


def embeds_of(case: SimpleNamespace, plan, images, objects=None):
    def join(params, plan, images, objects):
        return splice(
            lambda ids: case.model.apply({"params": params}, ids, method="embed"), plan, images, objects
        )

    return jax.jit(join)(case.params, plan, images, objects)


@files
def test_clip(path):
    case = load(path)
    want = case.stored["clip.hidden_states"]
    config = clip_config(case.info)
    assert len(case.clip_states) == config.used_layers + 1 == len(want) + 1 + config.select_layer
    for got, expected in zip(case.clip_states, want, strict=False):
        np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)
    np.testing.assert_allclose(case.features, case.stored["clip.features"], rtol=0, atol=ATOL)
    np.testing.assert_allclose(case.projected, case.stored["clip.projected"], rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    "path,name",
    [
        (path, key.removesuffix(".spliced_embeds"))
        for path in FILES
        for key in np.load(path).files
        if key.endswith(".spliced_embeds") and key.startswith("batch")
    ],
    ids=lambda value: getattr(value, "stem", value),
)
def test_batch(path, name):
    case = load(path)
    stored = {key: case.stored[f"{name}.{key}"] for key in ("input_ids", "labels", "attention_mask")}
    rows = [
        plan_row(ids, case.projected.shape[1], labels=labels, mask=mask)
        for ids, labels, mask in zip(*stored.values(), strict=True)
    ]
    plan = plan_batch(rows)
    np.testing.assert_array_equal(plan.labels, case.stored[f"{name}.spliced_labels"])
    np.testing.assert_array_equal(plan.mask, case.stored[f"{name}.spliced_mask"])
    embeds = embeds_of(case, plan, case.projected[: len(rows)])
    np.testing.assert_allclose(embeds, case.stored[f"{name}.spliced_embeds"], rtol=0, atol=ATOL)

    hidden, logits = run(case, embeds, plan.mask)
    want = case.stored[f"{name}.hidden_states"]
    assert hidden.shape == want.shape
    real = plan.mask
    np.testing.assert_allclose(hidden[:, real], want[:, real], rtol=0, atol=ATOL)
    logits = logits[real].astype(np.float64)
    summary = {key: case.stored[f"{name}.logits.{key}"][real] for key in ("top_ids", "top_vals", "cols")}
    np.testing.assert_allclose(logits[:, case.stored["logit_cols"]], summary["cols"], rtol=0, atol=ATOL)
    top = np.take_along_axis(logits, summary["top_ids"].astype(int), 1)
    np.testing.assert_allclose(top, summary["top_vals"], rtol=0, atol=ATOL)
    best = np.sort(logits, axis=1)[:, : -top.shape[1] - 1 : -1]
    np.testing.assert_allclose(best, summary["top_vals"], rtol=0, atol=ATOL)
    total = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    np.testing.assert_allclose(total, case.stored[f"{name}.logits.logsumexp"][real], rtol=0, atol=ATOL)


@files
def test_visual_prompt(path):
    case = load(path)
    if "visual_prompt" not in case.info:
        pytest.skip("no visual prompt in this file")
    sample, info = case.info["cases"][case.info["visual_prompt"]["sample"]], case.info["visual_prompt"]
    ids = case.stored["visual_prompt.input_ids"][0]
    np.testing.assert_array_equal(ids, sample["input_ids"])
    row = plan_row(
        ids,
        case.projected.shape[1],
        PERCENT_ID,
        num_objects=info["n_objects"],
        labels=sample["labels"],
    )
    plan = plan_batch([row])
    np.testing.assert_array_equal(plan.labels, case.stored["visual_prompt.spliced_labels"])
    image = case.projected[info["image"] : info["image"] + 1]
    embeds = embeds_of(case, plan, image, case.stored["visual_prompt.obj_feats"])
    np.testing.assert_allclose(embeds, case.stored["visual_prompt.spliced_embeds"], rtol=0, atol=ATOL)
    hidden, _ = run(case, embeds, plan.mask)
    np.testing.assert_allclose(hidden[-1], case.stored["visual_prompt.last_hidden"], rtol=0, atol=ATOL)


@files
def test_training_seg_states(path):
    """States at and before `<seg>` of the batch that the JSON describes in words."""
    case = load(path)
    if "train_seg" not in case.info:
        pytest.skip("no training segments in this file")
    pattern = re.compile(r"(\w+): (\w+) with (?:image (\d+)|a zero image)")
    parts = [pattern.match(text).groups() for text in case.info["train_seg"]["order"]]
    rows, images = [], []
    for _, name, image in parts:
        sample = case.info["cases"][name]
        rows.append(plan_row(sample["input_ids"], case.projected.shape[1], labels=sample["labels"]))
        images.append(case.zero_image if image is None else case.projected[int(image)][None])
    plan = plan_batch(rows)
    hidden, _ = run(case, embeds_of(case, plan, np.concatenate(images)), plan.mask)
    last = hidden[-1]
    found = [np.flatnonzero(labels == SEG_ID) for labels in plan.labels]

    positions = case.stored["train_seg.positions"]
    np.testing.assert_array_equal(found[0], positions)
    np.testing.assert_allclose(
        last[0, positions], case.stored["train_seg.hidden_at_input"], rtol=0, atol=ATOL
    )
    np.testing.assert_allclose(
        last[0, positions - 1], case.stored["train_seg.hidden_before"], rtol=0, atol=ATOL
    )
    for kind in {kind for kind, _, _ in parts}:
        if f"train_seg.{kind}.embeddings" not in case.stored.files:
            continue
        members = [i for i, (other, _, _) in enumerate(parts) if other == kind]
        want, mask = case.stored[f"train_seg.{kind}.embeddings"], case.stored[f"train_seg.{kind}.mask"]
        assert len(members) == len(want)
        for nth, i in enumerate(members):
            keep = f"train_seg.grounding_mask_{kind}{nth}"
            chosen = found[i][case.stored[keep][: len(found[i])]] if keep in case.stored.files else found[i]
            assert mask[nth].sum() == len(chosen)
            np.testing.assert_allclose(last[i, chosen], want[nth][mask[nth]], rtol=0, atol=ATOL)
