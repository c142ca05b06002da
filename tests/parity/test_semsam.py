"""Visual-prompt model against the numbers of the original: all stored inference files."""

import functools

import jax
import numpy as np
import pytest

from lgjax.config import PromptConfig
from lgjax.convert.hf_config import prompt_config
from lgjax.models import position
from lgjax.models.decoder import mask_logits
from lgjax.models.grounding import pad_images
from lgjax.models.prompting import Prompting
from tests.parity import cases

MANIFEST = "semsam_manifest.json"
FILES = [path.name for path in cases.files("semsam_infer_*.npz")]


@functools.partial(jax.jit, static_argnames="separate")
def run(params, pixels, prompts, is_box, mask, separate):
    (features, predictions, pixel_features), state = model().apply(
        {"params": params}, pixels, prompts, is_box, mask, separate, mutable=["intermediates"]
    )
    return features, predictions, pixel_features, state["intermediates"]


@functools.cache
def model() -> Prompting:
    """The network with the sizes of the manifest."""
    shapes = {key: tuple(shape) for key, shape in cases.read_json(MANIFEST).items()}
    width = shapes["interactive_model.model.obj_projector.weight"][0]
    return Prompting(prompt_config(shapes, PromptConfig()), embed_size=width)


def parameters() -> dict:
    return cases.parameters(MANIFEST, cases.weights_seed("semsam"))["prompt"]


def close(stored, name: str, value, atol: float) -> None:
    if name in stored.files:
        np.testing.assert_allclose(np.asarray(value), stored[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", FILES)
def test_semsam_infer(name: str):
    stored = np.load(cases.DATA / name)
    image = np.ascontiguousarray(stored["image"].transpose(1, 2, 0))
    pixels = pad_images([image])
    scale = np.asarray([image.shape[1] / pixels.shape[2], image.shape[0] / pixels.shape[1]] * 2, np.float32)
    prompts = stored["points"].astype(np.float32) * scale
    np.testing.assert_allclose(prompts, stored["points_padded"], atol=1e-6)
    is_box = stored["pb"].astype(np.int32)
    count = len(prompts)
    features, predictions, pixel_features, state = run(
        parameters(), pixels, prompts[None], is_box[None], np.ones((1, count), bool), False
    )
    close(stored, "obj_feats", features[0], 1e-4)
    last = predictions[-1]
    close(stored, "obj_features", last.states[0], 1e-4)
    close(stored, "pred_ious", last.ious[0], 1e-4)
    close(stored, "pred_boxes", last.boxes[0], 1e-5)
    close(stored, "queries", state["queries"][0][0], 1e-6)
    references = np.stack([state[f"ref{i}"][0][0] for i in range(len(predictions) + 1)])
    close(stored, "references", references, 1e-5)
    if "hs" in stored.files:
        close(stored, "hs", np.stack([state[f"hs{i}"][0][0] for i in range(len(predictions))]), 1e-4)

    height, width = pixel_features.mask_features.shape[1:3]
    embedding = last.mask_embedding.reshape(1, count * 3, -1)
    masks = np.asarray(mask_logits(embedding, pixel_features.mask_features))
    close(stored, "mask_logits", masks.reshape(count, 3, height, width), 1e-3)
    # display: the first token, bilinear to the padded size, cut to the image
    first = masks.reshape(count, 3, height, width)[:, 0].transpose(1, 2, 0)[None]
    display = np.asarray(position.resize_bilinear(jax.numpy.asarray(first), 4 * height, 4 * width))[0]
    display = display.transpose(2, 0, 1)[:, : image.shape[0], : image.shape[1]]
    assert display.shape == tuple(stored["display_shape"])
    close(stored, "display_logits_s4", display[:, ::4, ::4], 1e-3)
    bits = np.unpackbits(stored["display_mask_bits"], axis=-1, count=display.shape[-1]).astype(bool)
    sure = np.abs(display) > 1e-3
    np.testing.assert_array_equal((display > 0)[sure], bits[sure])

    strides = {"res2": (1, 8), "res3": (1, 4), "res4": (2, 2), "res5": (4, 1)}
    for i, (key, (channel, step)) in enumerate(strides.items()):
        level = np.asarray(state["backbone"]["maps"][0][i][0]).transpose(2, 0, 1)
        close(stored, key, level[::channel, ::step, ::step], 1e-4)
    levels = position.split_levels(pixel_features.memory, pixel_features.level_sizes)[::-1]
    for i, step in enumerate((8, 4, 2, 1)):
        close(stored, f"ms{i}", np.asarray(levels[i][0]).transpose(2, 0, 1)[:, ::step, ::step], 1e-4)
    mask_features = np.asarray(pixel_features.mask_features[0]).transpose(2, 0, 1)
    close(stored, "mask_features", mask_features[:, ::8, ::8], 1e-4)
