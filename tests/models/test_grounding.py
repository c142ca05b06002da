"""The grounding model's promises: padding, batching and the number of queries; all on a small network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgjax.config import debug
from lgjax.models import position
from lgjax.models.decoder import mask_logits
from lgjax.models.grounding import Grounding, normalize_pixels, pad_images, phrase_probabilities
from lgjax.models.swin import relative_position_index, shift_mask
from tests.weights import random_parameters

MODEL = Grounding(debug().grounding, embed_size=24)
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, size, dtype=np.uint8) for size in ((128, 128, 3), (96, 120, 3), (61, 128, 3))]


@functools.cache
def parameters():
    pixels, embeddings = jnp.zeros((1, 128, 128, 3)), jnp.zeros((1, 2, 24))
    return random_parameters(MODEL, pixels, embeddings, jnp.ones((1, 2), bool), num_queries=50)


@functools.partial(jax.jit, static_argnames="num_queries")
def run(params, pixels, phrases, mask, num_queries=50):
    out, features = MODEL.apply({"params": params}, pixels, phrases, mask, num_queries)
    final = out["final"]
    masks = mask_logits(final.mask_embedding, features.mask_features)
    return final.logits, final.boxes, masks, out["aux0"].boxes


def phrases(rows: int, count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((rows, count, 24), dtype=np.float32)


def test_padded_phrases_change_nothing_whatever_they_hold():
    pixels, embeddings = pad_images(IMAGES[:1]), phrases(1, 3)
    plain = run(parameters(), pixels, embeddings, np.ones((1, 3), bool))
    padded = np.concatenate([embeddings, np.full((1, 5, 24), 1e3, np.float32)], 1)
    mask = (np.arange(8) < 3)[None]
    wide = run(parameters(), pixels, padded, mask)
    np.testing.assert_allclose(wide[0][:, :, :3], plain[0], atol=1e-5)
    np.testing.assert_array_equal(wide[0][:, :, 3:], -100.0)
    np.testing.assert_allclose(wide[1], plain[1], atol=1e-6)
    np.testing.assert_allclose(wide[2], plain[2], atol=1e-4)


def test_phrases_that_fit_badly_still_win_over_padding():
    """Scores below the padding's -100: the padded slots must not blur the choice of tokens."""
    pixels, embeddings = pad_images(IMAGES[:1]), -300 * phrases(1, 1)
    plain = run(parameters(), pixels, embeddings, np.ones((1, 1), bool))
    padded = np.concatenate([embeddings, np.zeros((1, 1, 24), np.float32)], 1)
    wide = run(parameters(), pixels, padded, np.asarray([[True, False]]))
    assert float(plain[0].min()) < -100
    np.testing.assert_allclose(wide[1], plain[1], atol=1e-6)


def test_batch_of_different_images_equals_one_at_a_time():
    embeddings, counts = phrases(3, 4), (4, 1, 2)
    mask = np.arange(4)[None] < np.asarray(counts)[:, None]
    pixels = pad_images(IMAGES)
    together = run(parameters(), pixels, embeddings, mask)
    for i, count in enumerate(counts):
        alone = run(parameters(), pixels[i : i + 1], embeddings[i : i + 1, :count], np.ones((1, count), bool))
        np.testing.assert_allclose(together[0][i, :, :count], alone[0][0], atol=2e-5)
        np.testing.assert_allclose(together[1][i], alone[1][0], atol=2e-6)
        np.testing.assert_allclose(together[2][i], alone[2][0], atol=2e-4)


def test_class_scores_equal_the_lifted_states_in_float64():
    """Products and norms of states that are never lifted, one of zeros among them, and their gradients."""
    params, rng = parameters(), np.random.default_rng(7)
    states = rng.standard_normal((2, 40, params["class_embed"].shape[0]), np.float32)
    states[:, 0] = 0
    found = phrases(2, 3)
    mask = np.asarray([[True, True, False], [True, False, True]])

    def scores(states, found):
        def method(model, states):
            return model.class_logits(states, model.lower(found, jnp.asarray(mask)))

        return MODEL.apply({"params": params}, states, method=method)

    got, back = jax.vjp(scores, states, found)
    lifted = states.astype(np.float64) @ np.asarray(params["class_embed"], np.float64)
    direction = lifted / (np.linalg.norm(lifted, axis=-1, keepdims=True) + 1e-7)
    want = np.exp(np.float64(params["logit_scale"])) * direction @ found.astype(np.float64).swapaxes(1, 2)
    want = np.where(mask[:, None], want, -100.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
    to_states, to_phrases = back(jnp.ones_like(got))
    assert np.isfinite(to_states).all() and np.isfinite(to_phrases).all()
    assert not to_phrases[~mask].any()


def test_a_row_without_phrases_stays_finite():
    out = run(parameters(), pad_images(IMAGES[:1]), phrases(1, 2), np.zeros((1, 2), bool))
    assert all(np.isfinite(x).all() for x in out)


@pytest.mark.parametrize("num_queries", [1, 50, 200])
def test_number_of_queries_needs_no_other_weights(num_queries: int):
    """Fewer queries are the first of more queries: the same tokens are chosen."""
    pixels, embeddings = pad_images(IMAGES[:1]), phrases(1, 2)
    mask = np.ones((1, 2), bool)
    logits, boxes, *_ = run(parameters(), pixels, embeddings, mask, num_queries=num_queries)
    assert logits.shape == (1, num_queries, 2) and boxes.shape == (1, num_queries, 4)
    few = run(parameters(), pixels, embeddings, mask, num_queries=num_queries)[3]
    more = run(parameters(), pixels, embeddings, mask, num_queries=220)[3]
    np.testing.assert_allclose(few, more[:, :num_queries], atol=1e-6)


def test_more_queries_than_tokens_is_a_clear_error():
    with pytest.raises(ValueError, match=r"400 queries .* only \d+ tokens"):
        run(parameters(), pad_images(IMAGES[:1]), phrases(1, 1), np.ones((1, 1), bool), num_queries=400)


def test_images_must_be_multiples_of_32():
    with pytest.raises(ValueError, match="multiples of 32"):
        run(parameters(), np.zeros((1, 100, 128, 3), np.float32), phrases(1, 1), np.ones((1, 1), bool))


def test_padding_is_zero_after_normalisation_and_grey_stays_grey():
    batch = pad_images([IMAGES[2]])
    assert batch.shape == (1, 64, 128, 3) and not batch[0, 61:].any()
    np.testing.assert_allclose(batch[:, :61], normalize_pixels(jnp.asarray(IMAGES[2][None])), atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_one_compiled_layer_for_all_gives_the_same_predictions_and_gradients(remat: bool):
    pixels, embeddings, mask = map(
        jnp.asarray, (pad_images(IMAGES[:1]), phrases(1, 2), np.ones((1, 2), bool))
    )

    def loss(model: Grounding, params):
        out, features = model.apply({"params": params}, pixels, embeddings, mask, 20)
        parts = [part for name in sorted(out) for part in (out[name].logits, out[name].boxes)]
        masks = mask_logits(out["final"].mask_embedding, features.mask_features)
        return sum(jnp.sin(part).sum() for part in (*parts, masks)), parts

    (plain, wanted), slopes = jax.jit(jax.value_and_grad(functools.partial(loss, MODEL), has_aux=True))(
        parameters()
    )
    scanned = MODEL.clone(scan_layers=True, remat=remat)
    (value, found), gradient = jax.jit(jax.value_and_grad(functools.partial(loss, scanned), has_aux=True))(
        parameters()
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(value, plain, rtol=1e-3)
    for (path, a), b in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(slopes), strict=True):
        scale = max(float(np.abs(b).max()), 1e-3)
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=5e-3, err_msg=str(path))


def test_probabilities_are_a_softmax_over_queries():
    logits = jnp.asarray(RNG.standard_normal((2, 7, 3)), jnp.float32)
    np.testing.assert_allclose(phrase_probabilities(logits).sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "window"), [(14, 7, 7), (8, 12, 4), (7, 7, 7)])
def test_shift_mask_equals_labels_of_a_rolled_grid(height: int, width: int, window: int):
    """Cells may attend to each other only if they were neighbours before the roll."""
    shift = window // 2
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    rolled_y, rolled_x = (np.roll(g, (-shift, -shift), (0, 1)) for g in (y, x))
    wrapped = (rolled_y < shift).astype(int) * 2 + (rolled_x < shift)
    cut = wrapped.reshape(height // window, window, width // window, window).transpose(0, 2, 1, 3)
    cut = cut.reshape(-1, window * window)
    mask = shift_mask(height, width, window)[:, 0]
    np.testing.assert_array_equal(mask == 0, cut[:, :, None] == cut[:, None, :])


def test_relative_position_index_of_the_checkpoint_buffer():
    from tests.parity import cases

    want = cases.synth_state("openseed_manifest.json", 0)
    key = next(k for k in want if k.endswith("relative_position_index"))
    np.testing.assert_array_equal(relative_position_index(7), want[key])


@pytest.mark.parametrize(
    ("old", "new"), [((8, 6), (16, 12)), ((5, 7), (9, 20)), ((1, 2), (3, 4)), ((9, 8), (4, 8))]
)
def test_bilinear_resize_equals_torch(old, new):
    x = RNG.standard_normal((2, *old, 3)).astype(np.float32)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), size=new, mode="bilinear", align_corners=False
    )
    got = position.resize_bilinear(jnp.asarray(x), *new)
    np.testing.assert_allclose(got, want.numpy().transpose(0, 2, 3, 1), atol=2e-6)
