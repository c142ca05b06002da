"""Costs, assignments and losses of one output against the original: every `openseed_matcher*` case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.losses.grounding import Sums, Weights, grounding_losses, matching_costs
from lgjax.models.grounding import Prediction
from tests.parity import cases, training
from tests.parity.openseed import cases_of, generator

FILES = cases_of("matcher")
CASES = [
    (file, name, task) for file, case in FILES.items() for name in case["cases"] for task in ("seg", "det")
]


def predictions(case: dict, size: list[int], stored, name: str):
    """logits, boxes and masks of each image as the file's generator draws them."""
    out = []
    for seed in case["preds"]:
        draw, q, p = generator(seed), case["queries"], case["phrases"]
        logits = np.float32(2) * draw.standard_normal((q, p), dtype=np.float32)
        centres = draw.random((q, 2), dtype=np.float32)
        sizes = np.float32(0.05) + np.float32(0.5) * draw.random((q, 2), dtype=np.float32)
        masks = np.float32(3) * draw.standard_normal((q, *size), dtype=np.float32)
        out.append((logits, np.concatenate([centres, sizes], 1), masks))
    return [jnp.asarray(np.stack(part)) for part in zip(*out, strict=True)]


def build(file: str, name: str):
    info, stored = FILES[file], np.load(cases.DATA / file)
    case = info["cases"][name]
    height, width = info["target_size"]
    made = [training.target(t["seed"], height, width, t["n"]) for t in case["targets"]]
    boxes = [stored[f"{name}.target{i}.boxes_cxcywh"].reshape(-1, 4) for i in range(len(made))]
    for i, (pixels, masks) in enumerate(made):
        scale = np.asarray([width, height] * 2)
        corners = np.concatenate(
            [boxes[i][:, :2] - boxes[i][:, 2:] / 2, boxes[i][:, :2] + boxes[i][:, 2:] / 2], 1
        )
        np.testing.assert_allclose(corners * scale, pixels, atol=1e-3)
        np.testing.assert_array_equal(masks.sum((1, 2)), stored[f"{name}.target{i}.mask_area"])
    labels = [
        stored[f"{name}.target{i}.labels_multihot"].reshape(len(b), case["phrases"]).astype(bool)
        for i, b in enumerate(boxes)
    ]
    phrase_mask = np.ones((len(boxes), case["phrases"]), bool)
    masks = [mask for _, mask in made]
    targets = training.pad_targets(boxes, masks, labels, phrase_mask, (height, width), extra=2)
    return case, stored, targets, predictions(case, info["mask_size"], stored, name)


def split(parts):
    """Given masks as an embedding and features: features hold the masks, embeddings pick one."""
    logits, boxes, masks = parts
    queries = masks.shape[1]
    pick = jnp.broadcast_to(jnp.eye(queries), (len(masks), queries, queries))
    return Prediction(logits, boxes, pick), jnp.moveaxis(masks, 1, -1)


@pytest.mark.parametrize(("file", "name", "task"), CASES)
def test_openseed_matcher(file, name, task):
    case, stored, targets, parts = build(file, name)
    counts = np.asarray([t["n"] for t in case["targets"]])
    pairs = int(np.minimum(counts, case["queries"]).sum())
    source = training.TablePoints(len(counts), pairs)
    use_masks = task == "seg"

    @jax.jit
    def losses(parts):
        prediction, features = split(parts)
        phrases = jnp.full(len(counts), case["phrases"], jnp.float32)
        found, matches = grounding_losses(
            {"final": prediction},
            features,
            targets,
            source,
            num_objects=targets.objects.sum()[None],
            phrase_counts=phrases,
            use_masks=use_masks,
        )
        found = {key: value.sum() for key, value in found.items()}
        return sum(found.values()), (found, matches["final"])

    (_, (found, matches)), grads = jax.value_and_grad(losses, has_aux=True)(parts)
    prefix = f"{name}.{task}"
    for i, n in enumerate(counts):
        want = stored[f"{prefix}.match{i}"].reshape(2, -1)
        got = np.asarray(matches[i])
        pairs = sorted((int(q), t) for t, q in enumerate(got) if q >= 0)
        assert pairs == list(zip(*want.tolist(), strict=True)), i
        assert len(pairs) == min(n, case["queries"])
    weights = Weights()
    scale = dict(
        zip(Sums._fields, (weights.cls, weights.bbox, weights.giou, weights.bce, weights.dice), strict=True)
    )
    checked = 0
    for key in stored.files:
        if key.startswith(f"{prefix}.loss_") and not key.endswith("__noise"):
            part = key.removeprefix(f"{prefix}.loss_").removesuffix("_0")
            value = float(found.get(f"loss_{part}_0", 0.0)) / scale[part]
            np.testing.assert_allclose(value, stored[key], rtol=2e-4, atol=1e-6, err_msg=key)
            checked += 1
    assert checked >= 3
    for field, grad in zip(("pred_logits", "pred_boxes", "pred_masks"), grads, strict=True):
        if f"{prefix}.gradnorm_{field}" in stored.files:
            norm = float(jnp.linalg.norm(grad.ravel()))
            np.testing.assert_allclose(
                norm, stored[f"{prefix}.gradnorm_{field}"], rtol=2e-3, atol=1e-7, err_msg=field
            )
        name_of = f"{prefix}.grad_{field}"
        if name_of in stored.files or f"{name_of}__val" in stored.files:
            rms = float(stored[f"{name_of}__rms"]) if f"{name_of}__rms" in stored.files else 1.0
            cases.assert_stored(stored, name_of, np.asarray(grad), 5e-3 * rms + 1e-8)


@pytest.mark.parametrize(("file", "name", "task"), CASES)
def test_openseed_matcher_cost(file, name, task):
    case, stored, targets, parts = build(file, name)
    prediction, features = split(parts)
    source = training.TablePoints(len(case["targets"]), 1)
    where = source.matching(jnp.asarray(0)) if task == "seg" else None
    costs = jax.jit(matching_costs)(prediction, features, targets, where)
    total = np.asarray(costs.total(Weights()))
    for i, info in enumerate(case["targets"]):
        if info["n"]:
            cases.assert_stored(stored, f"{name}.{task}.cost{i}", total[i, : info["n"]].T, 2e-3)
    if task == "seg" and case["targets"][0]["n"]:
        terms = {"cls": costs.cls, "l1": costs.bbox, "giou": costs.giou, "bce": costs.bce, "dice": costs.dice}
        for term, value in terms.items():
            n = case["targets"][0]["n"]
            cases.assert_stored(stored, f"{name}.term_{term}0", np.asarray(value)[0, :n].T, 2e-4)
