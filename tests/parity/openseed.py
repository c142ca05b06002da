"""Inputs of the openseed files, generated as spec/grounding_model.md 15.1 says."""

import functools
import zlib

import jax
import numpy as np

from lgjax.config import GroundingConfig
from lgjax.convert.hf_config import grounding_config
from lgjax.models.grounding import Grounding
from tests.parity import cases

MANIFEST = "openseed_manifest.json"


def cases_of(kind: str) -> dict[str, dict]:
    """Cases of one kind in the parity folder: file name -> description."""
    return cases.indexed(kind)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def images(case: dict, stored) -> list[np.ndarray]:
    """uint8 HWC images of a case; the stored checksum proves the generator."""
    made = [
        generator(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
        for seed, height, width in case["images"]
    ]
    if len(made) == 1 and "image_crc32" in stored.files:
        assert zlib.crc32(made[0].tobytes()) == int(stored["image_crc32"])
    return [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in made]


def embeddings(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Phrase embeddings [b, p, d] and their mask [b, p]."""
    want = case["embeds"]
    shape = (want["batch"], want["phrases"], model().embed_size)
    values = np.float32(want["scale"]) * generator(want["seed"]).standard_normal(shape, dtype=np.float32)
    mask = np.arange(want["phrases"])[None] < np.asarray(case["counts"])[:, None]
    return values, mask


@functools.cache
def model() -> Grounding:
    """The network with the sizes of the manifest."""
    shapes = {key: tuple(shape) for key, shape in cases.read_json(MANIFEST).items()}
    width = shapes["seg_model.model.sem_seg_head.predictor.class_embed"][1]
    return Grounding(grounding_config(shapes, GroundingConfig()), embed_size=width)


def parameters(case: dict) -> dict:
    """Grounding parameters of the synthetic checkpoint that a case was made with."""
    return cases.parameters(MANIFEST, case["weights_seed"])["grounding"]


@functools.partial(jax.jit, static_argnames="num_queries")
def run(params: dict, pixels: np.ndarray, phrases: np.ndarray, mask: np.ndarray, num_queries: int):
    """Predictions, features and every sown intermediate of one forward."""
    (out, features), state = model().apply(
        {"params": params}, pixels, phrases, mask, num_queries, mutable=["intermediates"]
    )
    return out, features, state["intermediates"]
