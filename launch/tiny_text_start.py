"""Make a checkpoint with a language model that has learnt nothing, and can compare words from the start.

python launch/tiny_text_start.py runs/tiny/tower/model runs/tiny/text_start

Image tokens of the tower get the length of fresh hidden states, and so do the rows of the input table: what
the layers add would drown the words otherwise, and never reach the pictures. In the layers behind the first,
queries and keys begin as the same projection (with the other sign in the last head), and what is attended to
is handed on: a word then finds image tokens that mean the same, or something else. Source: mimetic
initialisation (Trockman and Kolter 2023), with one head of either sign.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from lgjax.config import ModelConfig, tiny
from lgjax.convert import meta, store
from lgjax.data.images import CLIP_MEAN, CLIP_STD
from lgjax.data.scenes import SceneConfig
from lgjax.data.sources.scenes import Scenes
from lgjax.models.llava_grounding import LlavaGrounding, init_params

SEED = 3
SCENES = 64  # whose image tokens are measured
MATCH = 0.5**0.5  # a word and itself: logit 4
HANDED_ON = 0.3
CHANCE = 0.5  # share of the usual random start
HEAD = 0.07  # of the input table: a state that is a word says it


def main(source: Path, target: Path) -> None:
    config = dataclasses.replace(tiny(), grounding=None, prompt=None)
    arrays = {path: np.asarray(array) for path, array in _read(source).items()}
    fresh = store.flattened(init_params(config, SEED)["llama"])
    llama = {path: np.asarray(array) for path, array in fresh.items()}
    table = arrays["llama/embed_tokens"]
    llama["embed_tokens"] = table * (table.shape[1] / np.square(table).sum(1).mean()) ** 0.5
    llama["lm_head/kernel"] = HEAD * llama["embed_tokens"].T
    rng = np.random.default_rng(SEED)
    for layer in range(1, config.llama.num_layers):
        llama |= _comparing(llama, f"layers_{layer}/self_attn", config, rng)
    leaves = {f"llama/{path}": array for path, array in llama.items()}
    length = _length(config, arrays)
    leaves |= {path: array / length for path, array in arrays.items() if path.startswith("projector/")}
    tokenizer = {file.name: file.read_bytes() for file in (source / store.TOKENIZER).iterdir()}
    params = store.nested({path: array.astype(np.float32) for path, array in leaves.items()})
    store.save(target, config, params, tokenizer=tokenizer, tokens=meta.read(source).tokens)


def _read(folder: Path) -> dict[str, np.ndarray]:
    return store.read_arrays(folder, list(store.stored_leaves(folder)))


def _comparing(
    llama: dict[str, np.ndarray], at: str, config: ModelConfig, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The attention of a layer that compares words; heads share an orthogonal basis among them."""
    width, heads = config.llama.hidden_size, config.llama.num_heads
    assert width == heads * config.llama.head_dim, "heads need a whole basis"
    compared, handed = (np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(2))
    signs = np.repeat([1] * (heads - 1) + [-1], config.llama.head_dim)
    parts = {
        "q_proj": MATCH * compared,
        "k_proj": MATCH * compared * signs,
        "v_proj": handed,
        "o_proj": HANDED_ON * handed.T,
    }
    paths = {f"{at}/{name}/kernel": part for name, part in parts.items()}
    return {path: CHANCE * llama[path] + part for path, part in paths.items()}


def _length(config: ModelConfig, arrays: dict[str, np.ndarray]) -> float:
    """Root mean square of the numbers of image tokens."""
    side = config.clip.image_size
    scenes = Scenes(config=SceneConfig(size=side), count=SCENES)
    images = np.stack([np.asarray(scenes.scene(i).image, np.float32) for i in range(SCENES)])
    pixels = (images / 255 - np.asarray(CLIP_MEAN)) / np.asarray(CLIP_STD)
    model = LlavaGrounding(config)
    tokens_of = jax.jit(lambda params, x: model.apply({"params": params}, x, method="image_tokens"))
    tokens = tokens_of(store.nested(arrays), np.float32(pixels))
    return float(np.sqrt(np.square(tokens).mean()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
