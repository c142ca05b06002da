"""A small random model and pictures, shared by the inference tests."""

import functools
from importlib.resources import files

import jax.numpy as jnp
import numpy as np

from lgjax.config import debug
from lgjax.infer.chat import GroundedChat
from lgjax.infer.request import Model
from lgjax.models.llava_grounding import abstract_params
from lgjax.text.tokenizer import Tokenizer
from tests.weights import fill

GROUNDED = "<g_s> A man <g_e> <seg> rides <g_s> two brown horses <g_e> <seg> , slowly."


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_model_file(str(files("lgjax") / "assets/debug_tokenizer.model"))


@functools.cache
def model() -> Model:
    params = fill(abstract_params(debug()), seed=3)
    return Model(
        debug(), {name: _device(part) for name, part in params.items()}, tokenizer(), jnp.float32, jnp.float32
    )


def _device(tree: dict) -> dict:
    return {
        name: _device(leaf) if isinstance(leaf, dict) else jnp.asarray(leaf) for name, leaf in tree.items()
    }


def chat() -> GroundedChat:
    return GroundedChat(model())


@functools.cache
def picture(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    """Smooth random colours, uint8 RGB."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 10, width // 10, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((10, 10, 1), np.uint8))
