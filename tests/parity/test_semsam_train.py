"""Training of the visual-prompt model against the original: losses and gradients of `semsam_train*.npz`."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.convert import keys
from lgjax.data import prompts
from lgjax.losses.points import NUM_POINTS
from lgjax.losses.prompting import prompting_losses
from lgjax.models.grounding import pad_images
from tests.parity import cases
from tests.parity.test_semsam import model, parameters
from tests.weights import parameter_at

FILES = [path.name for path in cases.files("semsam_train*.npz")]


def uniform(seed: int, name: str, rows: int, count: int) -> np.ndarray:
    """Points of the first mask token of each object; the tables also hold those of the two others."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    return rng.random((3 * rows, count, 2), dtype=np.float32)[::3]


@functools.cache
def step(name: str) -> dict:
    """A training step of a file: its losses as a function of the parameters."""
    stored = np.load(cases.DATA / name)
    count, seed = int(stored["num_images"]), int(stored["points_seed"])
    images = [np.ascontiguousarray(stored[f"image{i}"].transpose(1, 2, 0)) for i in range(count)]
    pixels = jnp.asarray(pad_images(images))
    sizes = [int(stored[f"masks{i}_shape"][0]) for i in range(count)]
    most = max(sizes) + 1  # one padded slot at least
    padded = {
        "boxes": np.full((count, most, 4), 0.5, np.float32),
        "prompts": np.full((count, most, 4), 0.5, np.float32),
        "is_box": np.zeros((count, most), np.int32),
        "real": np.zeros((count, most), bool),
        "masks": np.zeros((count, most, *pixels.shape[1:3]), bool),
    }
    for i, n in enumerate(sizes):
        is_box = stored[f"pb{i}"].astype(np.int32)
        padded["boxes"][i, :n] = stored[f"target_boxes{i}"]
        padded["prompts"][i, :n] = prompts.add_noise(stored[f"boxes_dn{i}"], is_box, stored[f"noise_u{i}"])
        padded["is_box"][i, :n], padded["real"][i, :n] = is_box, True
        bits = np.unpackbits(stored[f"masks{i}_bits"], axis=-1, count=stored[f"masks{i}_shape"][2]).astype(
            bool
        )
        padded["masks"][i, :n, : bits.shape[1], : bits.shape[2]] = bits
    data = jax.tree.map(jnp.asarray, padded)

    def points(k: int):
        out = []
        for part, size in (("over", 3 * NUM_POINTS), ("rand", NUM_POINTS // 4)):
            table = np.zeros((count, most, size, 2), np.float32)
            for i, n in enumerate(sizes):
                table[i, :n] = uniform(seed, f"semsam_points/image{i}/loss{k}/{part}", n, size)
            out.append(jnp.asarray(table))
        return tuple(out)

    def losses(params):
        features, predictions, pixel_features = model().apply(
            {"params": params}, pixels, data["prompts"], data["is_box"], data["real"], True
        )
        over, extra = (
            jnp.stack(tables) for tables in zip(*map(points, range(len(predictions))), strict=True)
        )
        found = prompting_losses(
            predictions,
            pixel_features.mask_features,
            data["boxes"],
            data["masks"],
            data["real"],
            data["real"],
            lambda k: (over[k], extra[k]),
            jnp.maximum(data["real"].sum(1), 1).sum()[None],
        )
        found = {key: value.sum() for key, value in found.items()}
        means = jnp.where(data["real"][..., None], features**2, 0).sum((1, 2))
        surrogate = (means / jnp.asarray(sizes) / features.shape[-1]).sum()
        return {"total": sum(found.values()), "surrogate": surrogate}, (found, features)

    return {"stored": stored, "losses": losses, "sizes": sizes}


@pytest.mark.parametrize("name", FILES)
def test_semsam_train_losses(name):
    run = step(name)
    stored = run["stored"]
    parts, (found, features) = jax.jit(run["losses"])(parameters())
    assert set(stored["loss_names"].tolist()) == set(found)
    for key, want in zip(stored["loss_names"].tolist(), stored["loss_weighted"], strict=True):
        np.testing.assert_allclose(float(found[key]), want, rtol=5e-4, err_msg=key)
    np.testing.assert_allclose(float(parts["total"]), stored["loss_total"], rtol=1e-4)
    np.testing.assert_allclose(float(parts["surrogate"]), stored["surrogate_loss"], rtol=1e-4)
    for i, n in enumerate(run["sizes"]):
        np.testing.assert_allclose(features[i, :n], stored[f"obj_feats{i}"], atol=1e-4)


@pytest.mark.slow  # minutes to compile: two backward programs of the full-size network
@pytest.mark.parametrize("name", FILES)
def test_semsam_train_gradients(name):
    run = step(name)
    stored = run["stored"]
    for kind in ("total", "surrogate"):
        grads = jax.jit(jax.grad(lambda params, kind=kind: run["losses"](params)[0][kind]))(parameters())
        for key, want in zip(stored["grad_names"].tolist(), stored[f"grad_norm_{kind}"], strict=True):
            found = keys.parameter(keys.canonical(key))
            assert found is not None, key
            value = np.asarray(parameter_at({"prompt": grads}, found[0]), np.float64)
            np.testing.assert_allclose(np.linalg.norm(value), want, rtol=2e-3, atol=1e-7, err_msg=(kind, key))
        for leaf in ("mask_tokens", "pb_embedding", "label_enc"):
            value = np.asarray(grads[leaf])
            want = stored[f"grad_{kind}_{leaf}"]
            np.testing.assert_allclose(value, want, rtol=0, atol=2e-3 * np.abs(want).max(), err_msg=leaf)
