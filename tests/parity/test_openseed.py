"""Grounding model against the numbers of the original: operators, Swin, pixel encoder, decoder, inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.convert import keys
from lgjax.infer.select import select_queries
from lgjax.models import position
from lgjax.models.decoder import mask_logits
from lgjax.models.deformable import DeformableAttention, multi_scale_deformable_attention
from lgjax.models.grounding import pad_images, phrase_probabilities
from tests.parity import cases, openseed


def load(name: str):
    return np.load(cases.DATA / name)


def nchw(x) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("name", openseed.cases_of("ops"))
def test_openseed_ops(name: str):
    stored, g = load(name), openseed.generator(openseed.cases_of("ops")[name]["seed"])
    sizes = ((5, 7), (3, 4), (2, 2), (1, 2))
    value = g.standard_normal((2, 53, 8, 32), dtype=np.float32)
    locations = np.float32(1.6) * g.random((2, 9, 8, 4, 4, 2), dtype=np.float32) - np.float32(0.3)
    weights = g.random((2, 9, 8, 4, 4), dtype=np.float32)
    weights = weights / weights.sum((-1, -2), keepdims=True)
    out = multi_scale_deformable_attention(*map(jnp.asarray, (value, locations, weights)), sizes)
    cases.assert_stored(stored, "core.out", out, 2e-5)

    shapes = {"sampling_offsets": 256, "attention_weights": 128, "value_proj": 256, "output_proj": 256}
    params = {}
    for part, rows in shapes.items():
        weight = cases.synth_tensor(f"ops.msda.{part}.weight", (rows, 256))
        bias = cases.synth_tensor(f"ops.msda.{part}.bias", (rows,))
        params[part] = {"kernel": keys.to_parameter(weight, "linear"), "bias": bias}
    params = jax.tree.map(jnp.asarray, params)
    query = jnp.asarray(g.standard_normal((2, 11, 256), dtype=np.float32))
    inputs = jnp.asarray(g.standard_normal((2, 53, 256), dtype=np.float32))
    for dims in (2, 4):
        reference = jnp.asarray(g.random((2, 11, 4, dims), dtype=np.float32))
        got = DeformableAttention(8, 4, 4).apply({"params": params}, query, reference, inputs, sizes)
        cases.assert_stored(stored, f"module.ref{dims}.out", got, 5e-5)

    sine = position.sine_position_map(5, 7, 256).reshape(5, 7, 256).transpose(2, 0, 1)
    cases.assert_stored(stored, "pos_sine_5x7", sine, 1e-5)
    code = position.sine_box_code(jnp.asarray(stored["sineembed.in"]), 128)
    cases.assert_stored(stored, "sineembed.out", code, 1e-5)
    anchors = position.anchor_logits(((2, 30), (3, 60)))
    cases.assert_stored(stored, "proposals.2x30_3x60", anchors, 1e-5)
    zeroed = ~np.isfinite(anchors[:, 0])
    np.testing.assert_array_equal(zeroed, stored["proposals.memory_zeroed"].astype(bool))
    logits = position.inverse_sigmoid(jnp.asarray(stored["inverse_sigmoid.in"]))
    cases.assert_stored(stored, "inverse_sigmoid.out", logits, 1e-5)
    cases.assert_stored(
        stored, "box.a_xyxy", position.cxcywh_to_xyxy(jnp.asarray(stored["box.a_cxcywh"])), 1e-6
    )


@pytest.mark.parametrize("name", openseed.cases_of("swin"))
def test_openseed_swin(name: str):
    stored, case = load(name), openseed.cases_of("swin")[name]
    pixels = pad_images(openseed.images(case, stored))
    encode = jax.jit(
        lambda p, x: openseed.model().apply({"params": p}, x, method="encode", mutable="intermediates")
    )
    _, state = encode(openseed.parameters(case), pixels)
    swin = state["intermediates"]["backbone"]
    cases.assert_stored(stored, "swin.patch_embed", nchw(swin["patches"][0]), 5e-5)
    compared = 0
    for key in names(stored, "swin.stage"):
        _, stage, part = key.split(".")
        part = "merged" if part == "downsample" else part
        value = swin[f"layers_{stage.removeprefix('stage')}"][part][0]
        cases.assert_stored(stored, key, value.reshape(value.shape[0], -1, value.shape[-1]), 5e-5)
        compared += 1
    assert compared
    for i in range(4):
        cases.assert_stored(stored, f"res{i + 2}", nchw(swin["maps"][0][i]), 5e-5)


def names(stored, prefix: str) -> list[str]:
    """Names of arrays of a file, without what belongs to their storage."""
    found = {key.split("__")[0] for key in stored.files if key.startswith(prefix)}
    return sorted(found)


@pytest.mark.parametrize("name", openseed.cases_of("pixel"))
def test_openseed_pixel(name: str):
    stored, case = load(name), openseed.cases_of("pixel")[name]
    pixels = pad_images(openseed.images(case, stored))
    check_input(stored, pixels)
    encode = jax.jit(
        lambda p, x: openseed.model().apply({"params": p}, x, method="encode", mutable="intermediates")
    )
    features, state = encode(openseed.parameters(case), pixels)
    for i in range(4):
        cases.assert_stored(
            stored, f"res{i + 2}", nchw(state["intermediates"]["backbone"]["maps"][0][i]), 5e-5
        )
    encoder = state["intermediates"]["pixel_encoder"]
    compared = 0
    for key in names(stored, "pixel."):
        part = key.split(".", 1)[1]
        if part.endswith(".attn"):
            value = encoder[f"layers_{part.removesuffix('.attn').removeprefix('layer')}"]["attn"][0]
        else:
            value = encoder[part][0]
        value = nchw(value) if value.ndim == 4 else np.asarray(value)
        if part == "pos":
            value = np.broadcast_to(value, stored_shape(stored, key))
        cases.assert_stored(stored, key, value, 1.2e-4)
        compared += 1
    assert compared
    check_features(stored, features)


def stored_shape(stored, key: str) -> tuple[int, ...]:
    return stored[key].shape if key in stored.files else tuple(stored[f"{key}__shape"])


def check_input(stored, pixels: np.ndarray) -> None:
    if names(stored, "input_tensor"):
        cases.assert_stored(stored, "input_tensor", nchw(pixels), 1e-5)


def check_features(stored, features) -> None:
    cases.assert_stored(stored, "mask_features", nchw(features.mask_features), 1.2e-4)
    levels = position.split_levels(features.memory, features.level_sizes)
    for i, level in enumerate(reversed(levels)):
        cases.assert_stored(stored, f"ms{i}", nchw(level), 1.2e-4)


def noise_tolerance(stored, name: str, floor: float) -> float:
    """Ten times the original's own float32 noise, but not below `floor`."""
    return max(floor, 10 * float(stored[f"{name}__noise"]))


@pytest.mark.parametrize("name", openseed.cases_of("decoder"))
def test_openseed_decoder(name: str):
    stored, case = load(name), openseed.cases_of("decoder")[name]
    images = openseed.images(case, stored)
    pixels = pad_images(images)
    check_input(stored, pixels)
    phrases, mask = openseed.embeddings(case)
    num_queries = stored["topk"].shape[1]
    out, features, state = openseed.run(openseed.parameters(case), pixels, phrases, mask, num_queries)
    if names(stored, "mask_features"):
        check_features(stored, features)
    anchors = position.anchor_logits(features.level_sizes)
    want = np.broadcast_to(anchors, stored["proposals"].shape)
    np.testing.assert_allclose(want, stored["proposals"], atol=1e-5)
    tolerance = noise_tolerance(stored, "enc_output_norm", 1.2e-4)
    cases.assert_stored(stored, "enc_output_norm", state["candidates"][0], tolerance)
    scores = np.asarray(state["scores"][0])
    np.testing.assert_allclose(scores, stored["scores"], atol=noise_tolerance(stored, "scores", 4e-4))

    # neighbours in the order may swap within float32 noise: the set must agree, then queries are aligned
    top, order = np.asarray(state["topk"][0]), []
    for got, wanted in zip(top, stored["topk"], strict=True):
        assert set(got) == set(wanted)
        place = {token: i for i, token in enumerate(got)}
        order.append([place[token] for token in wanted])
    rows = np.arange(len(order))[:, None]

    def aligned(x) -> np.ndarray:
        return np.asarray(x)[rows, np.asarray(order)]

    compared = set()
    for key in names(stored, "layer") + names(stored, "hs") + names(stored, "ref"):
        source = state["decoder"] if key.startswith("layer") else state
        value = aligned(source[key.removesuffix(".out")][0])
        floor = 2e-5 if key.startswith("ref") else 1.2e-4
        cases.assert_stored(stored, key, value, noise_tolerance(stored, key, floor))
        compared.add(key)
    assert len(compared) > 3

    for output, prediction in out.items():
        logits = aligned(prediction.logits)
        cases.assert_stored(
            stored, f"{output}.logits", logits, noise_tolerance(stored, f"{output}.logits", 7e-4)
        )
        boxes = aligned(prediction.boxes)
        cases.assert_stored(
            stored, f"{output}.boxes", boxes, noise_tolerance(stored, f"{output}.boxes", 2e-5)
        )
        if names(stored, f"{output}.masks"):
            masks = aligned(mask_logits(prediction.mask_embedding, features.mask_features))
            tolerance = noise_tolerance(stored, f"{output}.masks", 9e-4)
            cases.assert_stored(stored, f"{output}.masks", masks, tolerance)
    for key in names(stored, "eval_"):
        if key.endswith(".threshold"):
            check_inference(stored, key.removesuffix(".threshold"), out["final"], features, order[0])


def check_inference(stored, prefix: str, final, features, order: list[int]) -> None:
    """forward_eval: what is kept at a threshold, its boxes, and its masks."""
    logits, boxes = np.asarray(final.logits[0])[order], np.asarray(final.boxes[0])[order]
    masks = np.asarray(mask_logits(final.mask_embedding, features.mask_features)[0])[order] > 0
    chosen = select_queries(
        phrase_probabilities(jnp.asarray(logits[None]))[0], float(stored[f"{prefix}.threshold"])
    )
    empty = stored[f"{prefix}.is_empty"].astype(bool)
    np.testing.assert_array_equal([len(c) == 0 for c in chosen], empty)
    np.testing.assert_array_equal([max(len(c), 1) for c in chosen], stored[f"{prefix}.count"])
    pairs = [(phrase, query) for phrase, queries in enumerate(chosen) for query in queries]
    np.testing.assert_array_equal(np.asarray(pairs).reshape(-1, 2), stored[f"{prefix}.query"])
    xyxy = np.asarray(position.cxcywh_to_xyxy(jnp.asarray(boxes)))
    rows = [xyxy[c] if len(c) else np.zeros((1, 4), np.float32) for c in chosen]
    np.testing.assert_allclose(np.concatenate(rows), stored[f"{prefix}.boxes"], atol=2e-5)
    if pairs:
        shape = tuple(stored[f"{prefix}.masks__shape"])
        bits = np.unpackbits(stored[f"{prefix}.masks__bits"], count=int(np.prod(shape))).reshape(shape)
        got = masks[[query for _, query in pairs]]
        flips = (got != bits.astype(bool)).reshape(len(pairs), -1).sum(-1)
        assert flips.max() <= 5, flips
