"""The work of the vision modules: grounding, visual prompts, the vision tower."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from lgjax.bench.cases import Sizes
from lgjax.bench.timing import Facts, Work, timed
from lgjax.bench.weights import num_bytes, parameters
from lgjax.infer import engine, generate
from lgjax.models.pixel_encoder import PixelFeatures
from lgjax.train.flops import forward_flops


def canvas(side: int) -> UInt8[np.ndarray, "1 side side 3"]:
    """A picture of noise."""
    return np.random.default_rng(1).integers(0, 256, (1, side, side, 3), np.uint8)


def clip_view(side: int) -> Float32[np.ndarray, "1 side side 3"]:
    """The same for the vision tower, normalised."""
    return np.random.default_rng(2).standard_normal((1, side, side, 3), np.float32)


def regions(sizes: Sizes) -> tuple[Float32[np.ndarray, "1 n 4"], Int32[np.ndarray, "1 n"]]:
    """Clicks and boxes, as many as the engine pads them to, and which of them are boxes."""
    room = generate.bucket(sizes.prompts, 4)
    boxes = np.random.default_rng(4).uniform(0.2, 0.4, (1, room, 4)).astype(np.float32)
    return boxes, (np.arange(room)[None] % 2).astype(np.int32)


def sample(values: np.ndarray) -> list[float]:
    """Some 512 of many values, to be compared."""
    return [float(value) for value in values.ravel()[:: max(1, values.size // 512)]]


def operations(sizes: Sizes, *, rows: int = 1, length: int = 1, phrases: int = 0, prompts: int = 0) -> dict:
    """Operations of answering by part, see `forward_flops`; a mask for each phrase and region."""
    config = sizes.config
    queries = 0 if config.grounding is None else config.grounding.num_queries
    return forward_flops(
        config,
        rows=rows,
        length=length,
        grounded_rows=rows,
        phrases=phrases,
        objects=phrases,
        prompts=prompts,
        queries=queries,
        answering=True,
    )


def grounding(sizes: Sizes) -> Work:
    """A new picture and its phrases: features, decoder, and a mask for each phrase."""
    return _grounding(sizes, anew=True, number=0)


def grounding_again(sizes: Sizes, *, anew: bool) -> Work:
    """Other phrases in a picture that was seen before, with its features kept or (`anew`) made again."""
    return _grounding(sizes, anew=anew, number=1)


def _grounding(sizes: Sizes, *, anew: bool, number: int) -> Work:
    config, model = sizes.config, sizes.config.grounding
    assert model is not None
    params, pixels = parameters(config, "grounding"), canvas(model.image_size)
    room = generate.bucket(sizes.phrases, 8)  # as the engine pads them
    states = np.random.default_rng(3).standard_normal((2, 1, room, config.llama.hidden_size), np.float32)
    mask = np.arange(room)[None] < sizes.phrases
    kept: list[PixelFeatures] = [] if anew else [engine.encode_grounding(config, params, pixels)]
    found: list[np.ndarray] = []

    def run() -> None:
        if anew:
            kept[:] = [engine.encode_grounding(config, params, pixels)]
        features = kept[0]
        out = engine.ground(config, params, features, states[number], mask, model.num_queries)
        best = out[0][:, :, : sizes.phrases].argmax(1)
        wanted = np.zeros((1, 16), np.int32)
        wanted[:, : sizes.phrases] = best
        masks = engine.masks_of(out[2], features.mask_features, wanted)
        found[:] = [*map(np.asarray, (out[0], out[1], masks))]

    flops = operations(sizes, phrases=sizes.phrases)["grounding"] if anew else None
    side = model.image_size
    kind = "a new picture" if anew else "a picture whose features are kept"
    return Work(
        timed(run),
        lambda: Facts(
            what=f"{kind} of {side} x {side}, {sizes.phrases} phrases, {model.num_queries} queries, float32",
            output=[float(value) for part in found for value in part.ravel()[:512]],
            flops=flops,
            num_bytes=num_bytes(params, pixels, states[0]) if anew else None,
            handled={"pictures": 1},
        ),
    )


def prompt(sizes: Sizes) -> Work:
    """A new picture and regions in it: an embedding and a mask for each."""
    config, model = sizes.config, sizes.config.prompt
    assert model is not None
    params, pixels = parameters(config, "prompt"), canvas(model.image_size)
    boxes, is_box = regions(sizes)
    real = np.arange(boxes.shape[1])[None] < sizes.prompts
    found: list[np.ndarray] = []

    def run() -> None:
        features = engine.encode_prompting(config, params, pixels)
        out = engine.read_prompts(config, params, features, boxes, is_box, real)
        found[:] = [np.asarray(part)[:, : sizes.prompts] for part in out]

    side = model.image_size
    return Work(
        timed(run),
        lambda: Facts(
            what=f"a new picture of {side} x {side}, {sizes.prompts} regions, float32",
            output=[*sample(found[0]), *sample(found[1].mean((2, 3)))],
            flops=operations(sizes, prompts=sizes.prompts)["prompt"],
            num_bytes=num_bytes(params, pixels),
            handled={"pictures": 1},
        ),
    )


def clip(sizes: Sizes) -> Work:
    """A picture as tokens of the language model."""
    config = sizes.config
    params, pixels = parameters(config, "clip", "projector"), clip_view(config.clip.image_size)
    found: list[np.ndarray] = []

    def run() -> None:
        found[:] = [np.asarray(engine.encode_clip(config, params, pixels))]

    forward = operations(sizes)
    side = config.clip.image_size
    return Work(
        timed(run),
        lambda: Facts(
            what=f"a picture of {side} x {side}, {config.clip.used_layers} layers and the projector, float32",
            output=sample(found[0]),
            flops=forward["clip"] + forward["projector"],
            num_bytes=num_bytes(params, pixels),
            handled={"pictures": 1},
        ),
    )
