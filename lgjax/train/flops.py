"""How much arithmetic a training step is, worked out from the sizes of the model and of its batch.

A compiler counts the body of a loop once, so its figure for scanned layers is far too low (spec/jax_notes.md
8, trap 4). Counted here are matrix products, convolutions and the products of attention, two operations for
each multiply-add. Left out: norms, activations, softmax, rotary and sine codes, resizing, the sampling of
deformable attention and of mask points, the costs of matching objects, the other losses and the optimiser.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lgjax.config import ClipConfig, LlamaConfig, ModelConfig, SwinConfig, TransformerConfig
from lgjax.losses.language import head_chunks
from lgjax.models.deformable import projects_after
from lgjax.models.pixel_encoder import level_sizes_of
from lgjax.parallel.chips import chip_of
from lgjax.parallel.mesh import make_mesh

# what each part reads; "embed", the table of tokens, has no products but may be trained
_READS = {
    "embed": (),
    "clip": (),
    "prompt": (),
    "projector": ("clip",),
    "llama": ("embed", "projector", "prompt"),
    "head": ("llama",),
    "grounding": ("llama",),
}


def forward_flops(
    config: ModelConfig,
    *,
    rows: int,
    length: int,
    grounded_rows: int,
    phrases: int,
    objects: int,
    prompts: int,
    queries: int,
    answering: bool = False,
) -> dict[str, float]:
    """Operations of one forward over a batch, by part, padding included as it is computed too.

    rows of `length` positions with one picture each pass "clip", "projector", "llama" (every position against
    every other, masked or not) and "head" (logits of all positions). `grounded_rows` of them pass "grounding"
    with `phrases`, `objects` whose masks are compared and `queries`, and "prompt" with `prompts` regions, all
    a row. Parts that the config lacks or that nothing passes (no rows, no phrases, no prompts) are absent.

    "grounding" is Swin, pixel encoder, choice of queries, decoder, heads of all outputs (proposals, initial
    queries, layers) and the masks of the objects in each, and once a batch the square of the table that lifts
    states; "prompt" the same without choice and classes, with three tokens a region and the masks of the
    first. `answering` counts what inference computes: "head" for one position a row, and of the last output
    alone what an answer needs.
    Source: spec/training_and_data.md 14.2.
    """
    width = config.llama.hidden_size
    scored = 1 if answering else math.prod(head_chunks(length))
    parts = {
        "clip": rows * _clip(config.clip),
        "projector": rows * _product(config.clip.num_patches, config.clip.hidden_size, width),
        "llama": rows * _llama(config.llama, length),
        "head": rows * _product(scored, width, config.llama.vocab_size),
    }
    if config.grounding is not None and grounded_rows and phrases:
        grounding = config.grounding
        features = _image_features(grounding.swin, grounding.transformer, grounding.image_size)
        heads = _grounding_heads(
            grounding.transformer, grounding.image_size, width, phrases, objects, queries, answering
        )
        table = _product(grounding.transformer.hidden_size, width, grounding.transformer.hidden_size)
        parts["grounding"] = grounded_rows * (features + heads) + table
    if config.prompt is not None and grounded_rows and prompts:
        prompt = config.prompt
        features = _image_features(prompt.swin, prompt.transformer, prompt.image_size)
        heads = _prompt_heads(
            prompt.transformer, prompt.image_size, width, prompts, prompt.num_mask_tokens, answering
        )
        parts["prompt"] = grounded_rows * (features + heads)
    return {name: float(count) for name, count in parts.items()}


def step_flops(
    forward: Mapping[str, float], trained: Collection[str], adapted: Collection[str] = ()
) -> float:
    """Operations of a whole step, from those of its forward and the names of what is trained.

    Every part counts once for the forward; once more, for the gradients of its activations, if it or
    anything it reads from is trained; and once more, for the gradients of its weights, if it is trained.
    `trained` holds names of parts, or "embed" for the table of tokens; `adapted` those of parts that learn by
    low-rank updates, whose own weights have no gradients. What is computed again to save memory
    does not count. Of a frozen language model the attention scores are counted once too little in the
    backward pass (some 3 % of a step at 1536 positions), and of the trained grounding model the scores of
    all tokens twice too often, whose gradient nobody takes.

    Raises:
        ValueError: `trained` names something that is no part of a model.
    """
    unknown = (set(trained) | set(adapted)) - set(_READS)
    if unknown:
        raise ValueError(f"cannot train {sorted(unknown)}: the parts of a model are {sorted(_READS)}")
    learns = {part for part in trained if part in forward or part == "embed"}

    def needs_gradient(part: str) -> bool:
        return part in learns or part in adapted or any(needs_gradient(source) for source in _READS[part])

    return sum(count * (1 + needs_gradient(part) + (part in learns)) for part, count in forward.items())


def peak_flops(device: Any) -> float | None:
    """Operations a second that a device reaches at best; None for one that is not known.

    Of TPUs and GPUs the data sheet's bfloat16 figure. CPUs have none, so a float32 product is timed (under a
    second): the rate of all cores the process may use, whichever of its devices asks.
    """
    if device.platform == "cpu":
        return _measured(device)
    chip = chip_of(device.device_kind)
    return None if chip is None else chip.flops


def peak_flops_of_all(devices: Sequence[Any]) -> float | None:
    """`peak_flops` of several devices of one kind together; the CPU devices of a process count as one."""
    here = jax.process_index()
    first = next((device for device in devices if device.process_index == here), devices[0])
    peak = peak_flops(first)
    counted = {device.process_index for device in devices} if first.platform == "cpu" else devices
    return None if peak is None else peak * len(counted)


def _measured(device: Any, size: int = 1024, runs: int = 10, seconds: float = 0.5) -> float:
    """Best rate of a square float32 product; `seconds` end the trials of a slow device early."""
    best, multiply = float("inf"), jax.jit(jnp.matmul)
    with jax.set_mesh(make_mesh(devices=[device])):  # whatever mesh the caller is in
        matrix = jnp.ones((size, size), jnp.float32)
        multiply(matrix, matrix).block_until_ready()
        end = time.perf_counter() + seconds
        for _ in range(runs):
            start = time.perf_counter()
            multiply(matrix, matrix).block_until_ready()
            now = time.perf_counter()
            best = min(best, now - start)
            if now > end:
                break
    return _product(size, size, size) / best


def _product(rows: int, *widths: int) -> int:
    """Operations of `rows` vectors that pass matrices from each width to the next."""
    return 2 * rows * sum(a * b for a, b in itertools.pairwise(widths))


def _attention(queries: int, keys: int, width: int) -> int:
    """Scores and the mixture of values; `width` is that of all heads together."""
    return 2 * _product(queries, keys, width)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _clip(config: ClipConfig) -> int:
    width, tokens = config.hidden_size, config.num_patches + 1
    patches = _product(config.num_patches, 3 * config.patch_size**2, width)
    projections = 4 * _product(tokens, width, width)
    mlp = _product(tokens, width, config.mlp_size, width)
    return patches + config.used_layers * (projections + _attention(tokens, tokens, width) + mlp)


def _llama(config: LlamaConfig, length: int) -> int:
    width, heads = config.hidden_size, config.num_heads * config.head_dim
    keys_values = 2 * _product(length, width, config.num_kv_heads * config.head_dim)
    projections = _product(length, width, heads, width) + keys_values
    mlp = 3 * _product(length, width, config.mlp_size)
    return config.num_layers * (projections + _attention(length, length, heads) + mlp)


def _swin(config: SwinConfig, side: int) -> int:
    side = side // config.patch_size
    total = _product(side**2, 3 * config.patch_size**2, config.embed_dim)
    last = len(config.depths) - 1
    for stage, (depth, width) in enumerate(zip(config.depths, config.channels, strict=True)):
        padded = _round_up(side, config.window) ** 2
        attention = _product(padded, width, 4 * width) + _attention(padded, config.window**2, width)
        total += depth * (attention + _product(side**2, width, config.mlp_ratio * width, width))
        if stage < last:
            side = -(-side // 2)
            total += _product(side**2, 4 * width, 2 * width)
    return total


def _tokens(side: int) -> list[int]:
    """Tokens of the maps at stride 8, 16, 32 and 64."""
    return [height * width for height, width in level_sizes_of(side // 4, side // 4)]


def _samples(config: TransformerConfig) -> int:
    """Width of the offsets (x and y) and weights of deformable attention."""
    return 3 * config.num_heads * config.num_levels * config.num_points


def _image_features(swin: SwinConfig, config: TransformerConfig, side: int) -> int:
    """Swin and pixel encoder on one square picture."""
    width, cells, (res2, *rest) = config.hidden_size, _tokens(side), swin.channels
    projections = sum(_product(n, channels, width) for n, channels in zip(cells, rest, strict=False))
    projections += _product(cells[-1], 9 * rest[-1], width)
    tokens = sum(cells)
    layer = _product(tokens, width, 2 * width + _samples(config))
    layer += _product(tokens, width, config.ffn_size, width)
    mask_features = _product((side // 4) ** 2, res2 + 9 * width + width, width)
    return _swin(swin, side) + projections + config.encoder_layers * layer + mask_features


def _decoder(config: TransformerConfig, side: int, queries: int) -> int:
    """All layers, their position codes, and the boxes that the next layer starts from."""
    width = config.hidden_size
    self_attention = _product(queries, width, 4 * width) + _attention(queries, queries, width)
    tokens, samples = sum(_tokens(side)), _samples(config)
    valued = queries if projects_after(queries, tokens, width, samples // 3) else tokens
    sampled = _product(valued, width, width) + _product(queries, width, width + samples)
    mlp = _product(queries, width, config.ffn_size, width)
    position = _product(queries, 2 * width, width, width)
    layers = config.decoder_layers
    layer = self_attention + sampled + mlp + position
    return layers * layer + (layers - 1) * _box(config, queries)


def _box(config: TransformerConfig, queries: int) -> int:
    return _product(queries, config.hidden_size, config.hidden_size, config.hidden_size, 4)


def _mask(config: TransformerConfig, side: int, queries: int, objects: int) -> int:
    """Mask embeddings of all queries and the masks of `objects` of them."""
    width = config.hidden_size
    return 3 * _product(queries, width, width) + _product(objects, width, (side // 4) ** 2)


def _grounding_heads(
    config: TransformerConfig,
    side: int,
    embed: int,
    phrases: int,
    objects: int,
    queries: int,
    answering: bool,
) -> int:
    """Choice of queries, decoder and heads of one picture."""
    width, tokens = config.hidden_size, sum(_tokens(side))
    layers, before = (1, 0) if answering else (config.decoder_layers, 2)
    lowered = _product(phrases, embed, width)

    def classes(states: int) -> int:
        return _product(states, width, width) + _product(states, width, phrases)

    choice = lowered + _product(tokens, width, width) + classes(tokens) + _box(config, queries)
    outputs = (layers + before) * (classes(queries) + _mask(config, side, queries, objects))
    return choice + _decoder(config, side, queries) + outputs + layers * _box(config, queries)


def _prompt_heads(
    config: TransformerConfig, side: int, embed: int, prompts: int, tokens: int, answering: bool
) -> int:
    """Decoder and heads of one picture, and the features that the language model reads."""
    width, queries = config.hidden_size, prompts * tokens
    score = _product(queries, width, width, width, 1)
    mask = _mask(config, side, queries, prompts)
    heads = mask if answering else config.decoder_layers * (_box(config, queries) + score + mask)
    return _decoder(config, side, queries) + heads + _product(prompts, width, embed)
