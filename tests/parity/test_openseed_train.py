"""Training of the grounding model against the original: losses, assignments and gradients of every file."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.convert import keys
from lgjax.losses.grounding import grounding_losses
from lgjax.models.grounding import pad_images
from tests.parity import cases, openseed, training
from tests.weights import parameter_at

FILES = openseed.cases_of("train")
PREFIX = "seg_model.model."


@functools.cache
def step(name: str) -> dict:
    """A training step of a file: its losses as a function of parameters and phrases."""
    stored, case = np.load(cases.DATA / name), FILES[name]
    made = [
        training.target(info["seed"], height, width, info["n"])
        for info, (_, height, width) in zip(case["targets"], case["images"], strict=True)
    ]
    pixels = jnp.asarray(pad_images(openseed.images(case, stored)))
    phrases, phrase_mask = map(jnp.asarray, openseed.embeddings(case))
    boxes = []
    for i, (corners, masks) in enumerate(made):
        np.testing.assert_allclose(corners, stored[f"target{i}.boxes_xyxy_abs"], atol=1e-4)
        if f"target{i}.masks__bits" in stored.files:
            shape = tuple(stored[f"target{i}.masks__shape"])
            bits = np.unpackbits(stored[f"target{i}.masks__bits"], count=int(np.prod(shape))).reshape(shape)
            np.testing.assert_array_equal(masks, bits[:, : masks.shape[1], : masks.shape[2]])
        # by the sample's own size, as the original (quirk 13)
        scaled = corners / np.asarray(masks.shape[:0:-1] * 2)
        boxes.append(np.concatenate([(scaled[:, :2] + scaled[:, 2:]) / 2, scaled[:, 2:] - scaled[:, :2]], 1))
    labels = []
    for info in case["targets"]:
        named = np.zeros((info["n"], phrase_mask.shape[1]), bool)
        for row, numbers in enumerate(info["labels"]):
            named[row, numbers] = True
        labels.append(named)
    queries = stored["topk"].reshape(len(made), -1).shape[1]
    use_masks = case["key"] != "vg"
    size = pixels.shape[1:3]
    targets = training.pad_targets(boxes, [m for _, m in made], labels, phrase_mask, size, extra=1)
    pairs = sum(info["n"] for info in case["targets"])
    source = training.TablePoints(len(made), pairs)
    width = jnp.full(len(made), phrase_mask.shape[1], jnp.float32)

    def losses(params, phrases):
        (predictions, features), state = openseed.model().apply(
            {"params": params}, pixels, phrases, phrase_mask, queries, mutable=["intermediates"]
        )
        found, matches = grounding_losses(
            predictions,
            features.mask_features,
            targets,
            source,
            num_objects=targets.objects.sum()[None],
            phrase_counts=width,
            use_masks=use_masks,
        )
        found = {key: value.sum() for key, value in found.items()}
        parts = {"total": sum(found.values())}
        for group in ("cls", "box", "mask"):
            named = {"cls": ("mask_cls",), "box": ("bbox", "giou"), "mask": ("mask_bce", "mask_dice")}[group]
            parts[group] = sum(
                (v for k, v in found.items() if any(f"loss_{n}_" in k for n in named)), jnp.zeros(())
            )
        return parts, (found, matches, state["intermediates"]["topk"][0])

    return {"stored": stored, "case": case, "losses": losses, "inputs": (openseed.parameters(case), phrases)}


@functools.cache
def forward(name: str) -> tuple:
    """Losses of each group, all by name, assignments and chosen tokens."""
    made = step(name)
    parts, rest = jax.jit(made["losses"])(*made["inputs"])
    return parts, *rest


@functools.cache
def gradients(name: str, group: str) -> tuple:
    """Gradients of a group's losses, of the parameters and of the phrase embeddings."""
    made = step(name)
    return jax.jit(jax.grad(lambda *inputs: made["losses"](*inputs)[0][group], argnums=(0, 1)))(
        *made["inputs"]
    )


def align(stored, topk: np.ndarray) -> list[dict[int, int]]:
    """Our query index -> the original's, image by image, by the token that each query stands for."""
    want = stored["topk"].reshape(topk.shape)
    return [
        {i: int(np.flatnonzero(row == token)[0]) for i, token in enumerate(ours) if token in row}
        for ours, row in zip(np.asarray(topk), want, strict=True)
    ]


@pytest.mark.parametrize("name", FILES)
def test_openseed_train_losses(name):
    stored, case = step(name)["stored"], step(name)["case"]
    parts, found, _, _ = forward(name)
    prefix = f"loss.{case['key']}."
    names = [k for k in stored.files if k.startswith(prefix) and not k.endswith("__noise")]
    assert len(names) == len(found)
    for key in names:
        value = float(found[key.removeprefix(prefix)])
        np.testing.assert_allclose(value, stored[key], rtol=2e-4, atol=1e-6, err_msg=key)
    np.testing.assert_allclose(float(parts["total"]), stored["loss_total"], rtol=2e-4)


@pytest.mark.parametrize("name", FILES)
def test_openseed_train_matcher(name):
    stored, (_, _, matches, topk) = step(name)["stored"], forward(name)
    maps = align(stored, topk)
    outputs = {key.split(".")[1] for key in stored.files if key.startswith("match.")}
    assert outputs == set(matches)
    for output in outputs:
        for i, mapping in enumerate(maps):
            want = sorted(zip(*stored[f"match.{output}.{i}"].reshape(2, -1).tolist(), strict=True))
            got = sorted((mapping[int(q)], t) for t, q in enumerate(np.asarray(matches[output][i])) if q >= 0)
            assert got == want, (output, i)


def assert_noise(stored, key: str, value: np.ndarray) -> None:
    """Within ten times the original's own noise, and at least 2e-3 of the root mean square (spec 15.4)."""
    noise = float(stored[f"{key}__noise"]) if f"{key}__noise" in stored.files else 0.0
    rms = float(stored[f"{key}__rms"]) if f"{key}__rms" in stored.files else np.abs(stored[key]).max()
    cases.assert_stored(stored, key, value, max(10 * noise, 2e-3 * rms) + 1e-9)


@pytest.mark.slow  # minutes to compile: four backward programs of the full-size network
@pytest.mark.parametrize("name", FILES)
def test_openseed_train_gradients(name):
    stored = step(name)["stored"]
    compared = 0
    for key in stored.files:
        if not key.startswith("gradnorm") or key.endswith("__noise"):
            continue
        kind, parameter = key.split(".", 1)
        group = kind.removeprefix("gradnorm").removeprefix("_") or "total"
        grads, embeddings = gradients(name, group)
        if parameter == "embeds":
            value = np.asarray(embeddings)
            norm = np.linalg.norm(value, axis=-1) if stored[key].ndim else np.linalg.norm(value)
        else:
            full = keys.canonical(PREFIX + parameter)
            if keys.is_dead(full):
                continue
            found = keys.parameter(full)
            assert found is not None, full
            value = keys.to_checkpoint(np.asarray(parameter_at({"grounding": grads}, found[0])), found[1])
            norm = np.linalg.norm(value.astype(np.float64))
        want = np.where(stored[key] < 0, 0, stored[key])
        np.testing.assert_allclose(norm, want, rtol=6e-3, atol=1e-5, err_msg=key)
        if group == "total":
            assert_noise(stored, f"grad.{parameter}", value)
        compared += 1
    assert compared >= 20
