"""Every key that a checkpoint of given sizes holds, with its shape, in the original's order, by arithmetic.

Source: spec/language_model.md 14, spec/grounding_model.md 13, spec/visual_prompts.md 10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from lgjax.config import ClipConfig, GroundingConfig, LlamaConfig, ModelConfig, SwinConfig, TransformerConfig
from lgjax.convert import keys

Shape = tuple[int, ...]
Item = tuple[str, Shape]
Kind = Literal["parameter", "alias", "buffer", "dead"]

TEXT_SIZE = 512  # text space of the networks that the two vision models started from
_CLASSES = 134  # COCO panoptic classes and "nothing": only the size of an unused buffer
_VISION = "model.vision_tower.vision_tower.vision_model"
_SEG, _INTER = "seg_model.model", "interactive_model.model"
_PREFIXES = {
    "clip": _VISION,
    "projector": "model.mm_projector",
    "grounding": "seg_model",
    "prompt": "interactive_model",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One key of a checkpoint.

    `shape` is PyTorch's. A "parameter" has its `path` in the parameter tree and the `layout` of its axes; an
    "alias" has the `canonical` key whose tensor it repeats; a "buffer" is computed from the sizes; a "dead"
    tensor is never read by a forward pass, but the original's strict loading asks for it.
    """

    kind: Kind
    shape: Shape
    path: str = ""
    layout: keys.Layout = "as_is"
    canonical: str = ""


def part_of(key: str) -> str:
    """Name the part of the model that a checkpoint key belongs to: llama unless a prefix says otherwise."""
    return next((part for part, prefix in _PREFIXES.items() if key.startswith(f"{prefix}.")), "llama")


def manifest(config: ModelConfig, parts: tuple[str, ...] | None = None) -> dict[str, Entry]:
    """List the checkpoint keys of a model of these sizes, in the order of the original's state dict.

    `parts` restricts it to some of llama, clip, projector, grounding, prompt.
    """
    entries = {key: _entry(key, shape, config) for key, shape in _items(config)}
    if config.llama.tie_embeddings:
        entries["lm_head.weight"] = dataclasses.replace(
            entries["lm_head.weight"], kind="alias", path="", canonical="model.embed_tokens.weight"
        )
    return {key: entry for key, entry in entries.items() if parts is None or part_of(key) in parts}


def present_parts(config: ModelConfig) -> tuple[str, ...]:
    """Parts that a whole model of this config has."""
    vision = [name for name in ("grounding", "prompt") if getattr(config, name) is not None]
    return ("llama", "clip", "projector", *vision)


def parameters(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Parameter path -> entry, for the learned tensors only."""
    return {entry.path: entry for entry in entries.values() if entry.kind == "parameter"}


def parameter_shape(entry: Entry) -> Shape:
    """Shape of a parameter in our layout."""
    if entry.layout == "linear":
        return entry.shape[::-1]
    return tuple(entry.shape[i] for i in (2, 3, 1, 0)) if entry.layout == "conv" else entry.shape


def buffer_value(key: str, shape: Shape, config: ModelConfig) -> np.ndarray:
    """Compute the buffer that `key` names, in float32 or int64.

    Source: spec/grounding_model.md 3, 13; spec/language_model.md 4.

    Raises:
        KeyError: `key` is no buffer.
    """
    name = key.rsplit(".", 1)[-1]
    if name == "inv_freq":
        size = config.llama.head_dim
        exponent = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        return np.float32(1) / np.power(np.float32(config.llama.rope_base), exponent)
    if name == "position_ids":
        return np.arange(shape[-1], dtype=np.int64).reshape(shape)
    if name == "relative_position_index":
        window = round(shape[0] ** 0.5)
        row, column = np.divmod(np.arange(window * window), window)
        down = row[:, None] - row[None, :] + window - 1
        right = column[:, None] - column[None, :] + window - 1
        return (down * (2 * window - 1) + right).astype(np.int64)
    if name == "empty_weight":
        return np.append(np.ones(shape[0] - 1, np.float32), np.float32(0.1))
    raise KeyError(f"'{key}' is no buffer that can be computed")


def position_ids(config: ClipConfig) -> Item:
    """Key and shape of a buffer that only older releases of transformers write."""
    return f"{_VISION}.embeddings.position_ids", (1, config.num_patches + 1)


def _entry(key: str, shape: Shape, config: ModelConfig) -> Entry:
    if (canonical := keys.canonical(key)) != key:
        return Entry("alias", shape, canonical=canonical)
    if keys.is_buffer(key):
        return Entry("buffer", shape)
    if keys.is_dead(key) or _unused_block(key, config.clip):
        return Entry("dead", shape)
    found = keys.parameter(key)
    assert found is not None, f"no rule knows {key}"
    return Entry("parameter", shape, *found)


def _unused_block(key: str, config: ClipConfig) -> bool:
    prefix = f"{_VISION}.encoder.layers."
    return key.startswith(prefix) and int(key[len(prefix) :].split(".")[0]) >= config.used_layers


def _items(config: ModelConfig) -> Iterator[Item]:
    width = config.llama.hidden_size
    yield from _llama(config.llama)
    yield from _clip(config.clip)
    yield from _linear("model.mm_projector", config.clip.hidden_size, width)
    yield "lm_head.weight", (config.llama.vocab_size, width)
    if config.grounding is not None:
        yield from _grounding(config.grounding, width)
    if config.prompt is not None:
        yield f"{_INTER}.logit_scale", ()
        yield from _swin(f"{_INTER}.backbone", config.prompt.swin)
        yield from _pixel_encoder(
            f"{_INTER}.sem_seg_head.pixel_decoder", config.prompt.swin, config.prompt.transformer
        )
        hidden, head = config.prompt.transformer.hidden_size, f"{_INTER}.sem_seg_head.predictor"
        yield f"{head}.lang_mapper", (TEXT_SIZE, hidden)
        yield f"{head}.class_embed", (hidden, TEXT_SIZE)
        yield f"{head}.class_embed_part", (hidden, TEXT_SIZE)
        yield from _decoder(head, config.prompt.transformer)
        yield from _mlp(f"{head}.iou_prediction_head", hidden, hidden, hidden, 1)
        yield f"{head}.mask_tokens.weight", (config.prompt.num_mask_tokens, hidden)
        yield f"{head}.pb_embedding.weight", (2, hidden)
        yield f"{head}.label_enc.weight", (2, hidden)
        yield f"{_INTER}.criterion.empty_weight", (2,)
        yield from _linear(f"{_INTER}.obj_projector", hidden, width)


def _grounding(config: GroundingConfig, width: int) -> Iterator[Item]:
    hidden, head = config.transformer.hidden_size, f"{_SEG}.sem_seg_head.predictor"
    yield from _swin(f"{_SEG}.backbone", config.swin)
    yield from _pixel_encoder(f"{_SEG}.sem_seg_head.pixel_decoder", config.swin, config.transformer)
    yield f"{head}.lang_mapper", (width, hidden)
    yield f"{head}.class_embed", (hidden, width)
    yield f"{head}.logit_scale", ()
    yield from _linear(f"{head}.enc_output", hidden, hidden)
    yield from _norm(f"{head}.enc_output_norm", hidden)
    yield from _decoder(head, config.transformer)
    yield f"{_SEG}.criterion.empty_weight", (_CLASSES,)


def _linear(key: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[Item]:
    yield f"{key}.weight", (outputs, inputs)
    if bias:
        yield f"{key}.bias", (outputs,)


def _norm(key: str, size: int) -> Iterator[Item]:
    yield f"{key}.weight", (size,)
    yield f"{key}.bias", (size,)


def _mlp(key: str, *sizes: int) -> Iterator[Item]:
    for i in range(len(sizes) - 1):
        yield from _linear(f"{key}.layers.{i}", sizes[i], sizes[i + 1])


def _llama(config: LlamaConfig) -> Iterator[Item]:
    width, queries = config.hidden_size, config.num_heads * config.head_dim
    keyvals, bias = config.num_kv_heads * config.head_dim, config.attention_bias
    yield "model.embed_tokens.weight", (config.vocab_size, width)
    for i in range(config.num_layers):
        layer = f"model.layers.{i}"
        yield from _linear(f"{layer}.self_attn.q_proj", width, queries, bias)
        yield from _linear(f"{layer}.self_attn.k_proj", width, keyvals, bias)
        yield from _linear(f"{layer}.self_attn.v_proj", width, keyvals, bias)
        yield from _linear(f"{layer}.self_attn.o_proj", queries, width, bias)
        yield f"{layer}.self_attn.rotary_emb.inv_freq", (config.head_dim // 2,)
        yield from _linear(f"{layer}.mlp.gate_proj", width, config.mlp_size, config.mlp_bias)
        yield from _linear(f"{layer}.mlp.up_proj", width, config.mlp_size, config.mlp_bias)
        yield from _linear(f"{layer}.mlp.down_proj", config.mlp_size, width, config.mlp_bias)
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)


def _clip(config: ClipConfig) -> Iterator[Item]:
    width = config.hidden_size
    yield f"{_VISION}.embeddings.class_embedding", (width,)
    yield f"{_VISION}.embeddings.patch_embedding.weight", (width, 3, config.patch_size, config.patch_size)
    yield f"{_VISION}.embeddings.position_embedding.weight", (config.num_patches + 1, width)
    yield from _norm(f"{_VISION}.pre_layrnorm", width)
    for i in range(config.num_layers):
        block = f"{_VISION}.encoder.layers.{i}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{block}.self_attn.{name}", width, width)
        yield from _norm(f"{block}.layer_norm1", width)
        yield from _linear(f"{block}.mlp.fc1", width, config.mlp_size)
        yield from _linear(f"{block}.mlp.fc2", config.mlp_size, width)
        yield from _norm(f"{block}.layer_norm2", width)
    yield from _norm(f"{_VISION}.post_layernorm", width)


def _swin(key: str, config: SwinConfig) -> Iterator[Item]:
    yield f"{key}.patch_embed.proj.weight", (config.embed_dim, 3, config.patch_size, config.patch_size)
    yield f"{key}.patch_embed.proj.bias", (config.embed_dim,)
    yield from _norm(f"{key}.patch_embed.norm", config.embed_dim)
    for i, (depth, heads, width) in enumerate(
        zip(config.depths, config.num_heads, config.channels, strict=True)
    ):
        for j in range(depth):
            block = f"{key}.layers.{i}.blocks.{j}"
            yield from _norm(f"{block}.norm1", width)
            yield f"{block}.attn.relative_position_bias_table", ((2 * config.window - 1) ** 2, heads)
            yield f"{block}.attn.relative_position_index", (config.window**2, config.window**2)
            yield from _linear(f"{block}.attn.qkv", width, 3 * width)
            yield from _linear(f"{block}.attn.proj", width, width)
            yield from _norm(f"{block}.norm2", width)
            yield from _linear(f"{block}.mlp.fc1", width, config.mlp_ratio * width)
            yield from _linear(f"{block}.mlp.fc2", config.mlp_ratio * width, width)
        if i < len(config.depths) - 1:
            yield from _linear(f"{key}.layers.{i}.downsample.reduction", 4 * width, 2 * width, bias=False)
            yield from _norm(f"{key}.layers.{i}.downsample.norm", 4 * width)
    for i, width in enumerate(config.channels):
        yield from _norm(f"{key}.norm{i}", width)


def _sampling(key: str, config: TransformerConfig) -> Iterator[Item]:
    width, samples = config.hidden_size, config.num_heads * config.num_levels * config.num_points
    yield from _linear(f"{key}.sampling_offsets", width, 2 * samples)
    yield from _linear(f"{key}.attention_weights", width, samples)
    yield from _linear(f"{key}.value_proj", width, width)
    yield from _linear(f"{key}.output_proj", width, width)


def _pixel_encoder(key: str, swin: SwinConfig, config: TransformerConfig) -> Iterator[Item]:
    width, channels = config.hidden_size, swin.channels
    taken = channels[1:]
    for i in range(config.num_levels):
        inputs, side = (taken[i], 1) if i < len(taken) else (channels[-1] if i == len(taken) else width, 3)
        yield f"{key}.input_proj.{i}.0.weight", (width, inputs, side, side)
        yield f"{key}.input_proj.{i}.0.bias", (width,)
        yield from _norm(f"{key}.input_proj.{i}.1", width)
    yield f"{key}.transformer.level_embed", (config.num_levels, width)
    for i in range(config.encoder_layers):
        layer = f"{key}.transformer.encoder.layers.{i}"
        yield from _sampling(f"{layer}.self_attn", config)
        yield from _norm(f"{layer}.norm1", width)
        yield from _linear(f"{layer}.linear1", width, config.ffn_size)
        yield from _linear(f"{layer}.linear2", config.ffn_size, width)
        yield from _norm(f"{layer}.norm2", width)
    yield f"{key}.mask_features.weight", (width, width, 1, 1)
    yield f"{key}.mask_features.bias", (width,)
    yield f"{key}.adapter_1.weight", (width, channels[0], 1, 1)
    yield from _norm(f"{key}.adapter_1.norm", width)
    yield f"{key}.layer_1.weight", (width, width, 3, 3)
    yield from _norm(f"{key}.layer_1.norm", width)


def _decoder(key: str, config: TransformerConfig) -> Iterator[Item]:
    width = config.hidden_size
    yield from _mlp(f"{key}.mask_embed", width, width, width, width)
    yield from _norm(f"{key}.decoder_norm", width)
    for i in range(config.decoder_layers):
        layer = f"{key}.decoder.layers.{i}"
        yield from _sampling(f"{layer}.cross_attn", config)
        yield from _norm(f"{layer}.norm1", width)
        yield f"{layer}.self_attn.in_proj_weight", (3 * width, width)
        yield f"{layer}.self_attn.in_proj_bias", (3 * width,)
        yield from _linear(f"{layer}.self_attn.out_proj", width, width)
        yield from _norm(f"{layer}.norm2", width)
        yield from _linear(f"{layer}.linear1", width, config.ffn_size)
        yield from _linear(f"{layer}.linear2", config.ffn_size, width)
        yield from _norm(f"{layer}.norm3", width)
    yield from _norm(f"{key}.decoder.norm", width)
    yield from _mlp(f"{key}.decoder.ref_point_head", 2 * width, width, width)
    boxes = [f"{key}.decoder.bbox_embed.{i}" for i in range(config.decoder_layers)]
    boxes += [f"{key}._bbox_embed", *(f"{key}.bbox_embed.{i}" for i in range(config.decoder_layers))]
    for name in boxes:
        yield from _mlp(name, width, width, width, 4)
