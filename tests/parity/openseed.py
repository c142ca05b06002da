"""Inputs of the openseed files, generated as spec/grounding_model.md 15.1 says."""

import functools
import zlib

import jax
import numpy as np

from lgjax.config import GroundingConfig
from lgjax.models.grounding import Grounding
from tests.parity import cases

INDEX = "openseed_cases.json"
MANIFEST = "openseed_manifest.json"


def cases_of(kind: str) -> dict[str, dict]:
    """Cases of one kind in the parity folder: file name -> description."""
    if not (cases.DATA / INDEX).exists():
        return {}
    found = cases.read_json(INDEX)["files"]
    return {name: case for name, case in found.items() if case["kind"] == kind}


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
    """Phrase embeddings [b, p, 4096] and their mask [b, p]."""
    want = case["embeds"]
    shape = (want["batch"], want["phrases"], 4096)
    values = np.float32(want["scale"]) * generator(want["seed"]).standard_normal(shape, dtype=np.float32)
    mask = np.arange(want["phrases"])[None] < np.asarray(case["counts"])[:, None]
    return values, mask


@functools.cache
def parameters() -> dict:
    """Grounding parameters of the synthetic checkpoint."""
    return cases.parameters(MANIFEST, cases.read_json(INDEX)["weights_seed"])["grounding"]


MODEL = Grounding(GroundingConfig(), embed_size=4096)


@functools.partial(jax.jit, static_argnames="num_queries")
def run(params: dict, pixels: np.ndarray, phrases: np.ndarray, mask: np.ndarray, num_queries: int):
    """Predictions, features and every sown intermediate of one forward."""
    (out, features), state = MODEL.apply(
        {"params": params}, pixels, phrases, mask, num_queries, mutable=["intermediates"]
    )
    return out, features, state["intermediates"]
