"""One table of checkpoint keys, used in both directions: the original's name <-> our parameter path.

A pattern is a literal text with fields: `{i}` stands for a number, `{p:a|b}` for one of some words; the
same fields appear in the parameter path. Three more kinds of keys exist in the original's files: aliases (a
second name of one tensor), buffers (computed, not learned) and dead tensors (never read by any forward
pass, but needed by the original's strict loading). Source: spec/grounding_model.md 13,
spec/visual_prompts.md 10, spec/language_model.md 14.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Literal

import numpy as np

Layout = Literal["as_is", "linear", "conv"]
_FIELD = re.compile(r"\{(\w+)(?::([^}]*))?\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """`key` pattern of the checkpoint, `path` pattern of the parameter tree, and how the axes differ."""

    key: str
    path: str
    layout: Layout = "as_is"


@dataclasses.dataclass(frozen=True)
class Alias:
    """`key` names the same tensor as `canonical`; {_i}-style fields of the alias are dropped."""

    key: str
    canonical: str


def _linear(key: str, path: str, bias: bool = True) -> list[Rule]:
    rules = [Rule(f"{key}.weight", f"{path}/kernel", "linear")]
    return [*rules, Rule(f"{key}.bias", f"{path}/bias")] if bias else rules


def _norm(key: str, path: str, bias: bool = True) -> list[Rule]:
    rules = [Rule(f"{key}.weight", f"{path}/scale")]
    return [*rules, Rule(f"{key}.bias", f"{path}/bias")] if bias else rules


def _conv(key: str, path: str, bias: bool = True) -> list[Rule]:
    rules = [Rule(f"{key}.weight", f"{path}/kernel", "conv")]
    return [*rules, Rule(f"{key}.bias", f"{path}/bias")] if bias else rules


_MSDA = "{m:sampling_offsets|attention_weights|value_proj|output_proj}"
_VISION = "model.vision_tower.vision_tower.vision_model"


def _language_rules() -> list[Rule]:
    attention, mlp = "{p:q_proj|k_proj|v_proj|o_proj}", "{p:gate_proj|up_proj|down_proj}"
    norms = "{n:input_layernorm|post_attention_layernorm}"
    clip, block = "clip", f"{_VISION}.encoder.layers.{{i}}"
    return [
        Rule("model.embed_tokens.weight", "llama/embed_tokens"),
        *_linear(f"model.layers.{{i}}.self_attn.{attention}", f"llama/layers_{{i}}/self_attn/{attention}"),
        *_linear(f"model.layers.{{i}}.mlp.{mlp}", f"llama/layers_{{i}}/mlp/{mlp}"),
        *_norm(f"model.layers.{{i}}.{norms}", f"llama/layers_{{i}}/{norms}", bias=False),
        *_norm("model.norm", "llama/norm", bias=False),
        *_linear("lm_head", "llama/lm_head", bias=False),
        *_linear("model.mm_projector", "projector"),
        Rule(f"{_VISION}.embeddings.class_embedding", f"{clip}/class_embedding"),
        *_conv(f"{_VISION}.embeddings.patch_embedding", f"{clip}/patch_embedding", bias=False),
        Rule(f"{_VISION}.embeddings.position_embedding.weight", f"{clip}/position_embedding"),
        *_norm(f"{_VISION}.pre_layrnorm", f"{clip}/pre_layernorm"),
        *_linear(
            f"{block}.self_attn.{{p:q_proj|k_proj|v_proj|out_proj}}",
            f"{clip}/layers_{{i}}/self_attn/{{p:q_proj|k_proj|v_proj|out_proj}}",
        ),
        *_norm(
            f"{block}.{{n:layer_norm1|layer_norm2}}", f"{clip}/layers_{{i}}/{{n:layer_norm1|layer_norm2}}"
        ),
        *_linear(f"{block}.mlp.{{f:fc1|fc2}}", f"{clip}/layers_{{i}}/mlp/{{f:fc1|fc2}}"),
    ]


def _swin_rules(key: str, path: str) -> list[Rule]:
    block_key, block = f"{key}.layers.{{i}}.blocks.{{j}}", f"{path}/layers_{{i}}/blocks_{{j}}"
    return [
        *_conv(f"{key}.patch_embed.proj", f"{path}/patch_embed/proj"),
        *_norm(f"{key}.patch_embed.norm", f"{path}/patch_embed/norm"),
        *_norm(f"{block_key}.{{n:norm1|norm2}}", f"{block}/{{n:norm1|norm2}}"),
        Rule(f"{block_key}.attn.relative_position_bias_table", f"{block}/attn/relative_position_bias_table"),
        *_linear(f"{block_key}.attn.{{p:qkv|proj}}", f"{block}/attn/{{p:qkv|proj}}"),
        *_linear(f"{block_key}.mlp.{{f:fc1|fc2}}", f"{block}/mlp/{{f:fc1|fc2}}"),
        *_norm(f"{key}.layers.{{i}}.downsample.norm", f"{path}/layers_{{i}}/downsample/norm"),
        *_linear(
            f"{key}.layers.{{i}}.downsample.reduction", f"{path}/layers_{{i}}/downsample/reduction", False
        ),
        *_norm(f"{key}.norm{{i}}", f"{path}/norm{{i}}"),
    ]


def _pixel_encoder_rules(key: str, path: str) -> list[Rule]:
    layer_key, layer = f"{key}.transformer.encoder.layers.{{i}}", f"{path}/layers_{{i}}"
    return [
        *_conv(f"{key}.input_proj.{{i}}.0", f"{path}/input_proj_{{i}}/conv"),
        *_norm(f"{key}.input_proj.{{i}}.1", f"{path}/input_proj_{{i}}/norm"),
        Rule(f"{key}.transformer.level_embed", f"{path}/level_embed"),
        *_linear(f"{layer_key}.self_attn.{_MSDA}", f"{layer}/self_attn/{_MSDA}"),
        *_norm(f"{layer_key}.{{n:norm1|norm2}}", f"{layer}/{{n:norm1|norm2}}"),
        *_linear(f"{layer_key}.{{l:linear1|linear2}}", f"{layer}/{{l:linear1|linear2}}"),
        *_conv(f"{key}.{{a:adapter_1|layer_1}}", f"{path}/{{a:adapter_1|layer_1}}/conv", bias=False),
        *_norm(f"{key}.{{a:adapter_1|layer_1}}.norm", f"{path}/{{a:adapter_1|layer_1}}/norm"),
        *_conv(f"{key}.mask_features", f"{path}/mask_features"),
    ]


def _decoder_rules(key: str, path: str) -> list[Rule]:
    layer_key, layer = f"{key}.decoder.layers.{{i}}", f"{path}/layers_{{i}}"
    return [
        *_linear(f"{layer_key}.cross_attn.{_MSDA}", f"{layer}/cross_attn/{_MSDA}"),
        Rule(f"{layer_key}.self_attn.in_proj_weight", f"{layer}/self_attn/in_proj/kernel", "linear"),
        Rule(f"{layer_key}.self_attn.in_proj_bias", f"{layer}/self_attn/in_proj/bias"),
        *_linear(f"{layer_key}.self_attn.out_proj", f"{layer}/self_attn/out_proj"),
        *_norm(f"{layer_key}.{{n:norm1|norm2|norm3}}", f"{layer}/{{n:norm1|norm2|norm3}}"),
        *_linear(f"{layer_key}.{{l:linear1|linear2}}", f"{layer}/{{l:linear1|linear2}}"),
        *_norm(f"{key}.decoder_norm", f"{path}/norm"),
        *_linear(f"{key}.decoder.ref_point_head.layers.{{i}}", f"{path}/ref_point_head/layers_{{i}}"),
        *_linear(f"{key}._bbox_embed.layers.{{i}}", f"{path}/bbox_embed/layers_{{i}}"),
        *_linear(f"{key}.mask_embed.layers.{{i}}", f"{path}/mask_embed/layers_{{i}}"),
    ]


_SEG, _INTER = "seg_model.model", "interactive_model.model"


def _grounding_rules() -> list[Rule]:
    head = f"{_SEG}.sem_seg_head"
    return [
        *_swin_rules(f"{_SEG}.backbone", "grounding/backbone"),
        *_pixel_encoder_rules(f"{head}.pixel_decoder", "grounding/pixel_encoder"),
        *_decoder_rules(f"{head}.predictor", "grounding/decoder"),
        Rule(f"{head}.predictor.class_embed", "grounding/class_embed"),
        Rule(f"{head}.predictor.logit_scale", "grounding/logit_scale"),
        *_linear(f"{head}.predictor.enc_output", "grounding/enc_output"),
        *_norm(f"{head}.predictor.enc_output_norm", "grounding/enc_output_norm"),
    ]


def _prompt_rules() -> list[Rule]:
    head = f"{_INTER}.sem_seg_head"
    tables = "{t:mask_tokens|pb_embedding|label_enc}"
    return [
        *_swin_rules(f"{_INTER}.backbone", "prompt/backbone"),
        *_pixel_encoder_rules(f"{head}.pixel_decoder", "prompt/pixel_encoder"),
        *_decoder_rules(f"{head}.predictor", "prompt/decoder"),
        *_linear(
            f"{head}.predictor.iou_prediction_head.layers.{{i}}", "prompt/iou_prediction_head/layers_{i}"
        ),
        Rule(f"{head}.predictor.{tables}.weight", f"prompt/{tables}"),
        *_linear(f"{_INTER}.obj_projector", "prompt/obj_projector"),
    ]


RULES: tuple[Rule, ...] = (*_language_rules(), *_grounding_rules(), *_prompt_rules())

_PREDICTOR = f"{{m:{_SEG}|{_INTER}}}.sem_seg_head.predictor"
ALIASES: tuple[Alias, ...] = (
    Alias(f"{_PREDICTOR}.decoder.norm.{{w:weight|bias}}", f"{_PREDICTOR}.decoder_norm.{{w:weight|bias}}"),
    Alias(
        f"{_PREDICTOR}.{{d:|decoder.}}bbox_embed.{{k}}.layers.{{i}}.{{w:weight|bias}}",
        f"{_PREDICTOR}._bbox_embed.layers.{{i}}.{{w:weight|bias}}",
    ),
)

BUFFERS: tuple[str, ...] = (
    "model.layers.{i}.self_attn.rotary_emb.inv_freq",
    f"{_VISION}.embeddings.position_ids",
    f"{{m:{_SEG}|{_INTER}}}.backbone.layers.{{i}}.blocks.{{j}}.attn.relative_position_index",
    f"{{m:{_SEG}|{_INTER}}}.criterion.empty_weight",
)

DEAD: tuple[str, ...] = (
    f"{_VISION}.post_layernorm.{{w:weight|bias}}",
    f"{_SEG}.sem_seg_head.predictor.lang_mapper",
    f"{_INTER}.sem_seg_head.predictor.{{t:lang_mapper|class_embed|class_embed_part}}",
    f"{_INTER}.logit_scale",
)


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    out, at = "", 0
    for field in _FIELD.finditer(pattern):
        words = r"\d+" if field[2] is None else "|".join(re.escape(word) for word in field[2].split("|"))
        out += re.escape(pattern[at : field.start()]) + f"(?P<{field[1]}>{words})"
        at = field.end()
    return re.compile(out + re.escape(pattern[at:]))


def _fill(pattern: str, fields: dict[str, str]) -> str:
    return _FIELD.sub(lambda field: fields[field[1]], pattern)


def parameter(key: str) -> tuple[str, Layout] | None:
    """Return the parameter path and layout of a checkpoint key, None when no rule knows the key.

    Raises:
        AssertionError: two rules match (a fault of the table, held by a test).
    """
    found = [(rule, m) for rule in RULES if (m := _regex(rule.key).fullmatch(key))]
    if not found:
        return None
    assert len(found) == 1, f"{key} matches {[rule.key for rule, _ in found]}"
    rule, match = found[0]
    return _fill(rule.path, match.groupdict()), rule.layout


def checkpoint_key(path: str) -> tuple[str, Layout]:
    """Return the checkpoint key and layout of a parameter path such as `llama/norm/scale`.

    Raises:
        KeyError: no rule writes this path.
    """
    for rule in RULES:
        if match := _regex(rule.path).fullmatch(path):
            return _fill(rule.key, match.groupdict()), rule.layout
    raise KeyError(f"no checkpoint key is known for parameter '{path}'")


def canonical(key: str) -> str:
    """Return the one name that stands for all aliases of a tensor; any other key comes back unchanged."""
    for alias in ALIASES:
        if match := _regex(alias.key).fullmatch(key):
            return _fill(alias.canonical, match.groupdict())
    return key


def is_buffer(key: str) -> bool:
    """Say whether `key` is computed, not learned."""
    return any(_regex(pattern).fullmatch(key) for pattern in BUFFERS)


def is_dead(key: str) -> bool:
    """Say whether `key` is never read by any forward pass of the original."""
    return any(_regex(pattern).fullmatch(key) for pattern in DEAD)


def to_parameter(tensor: np.ndarray, layout: Layout) -> np.ndarray:
    """Turn PyTorch's axes into ours, as a view: Linear [out, in] -> [in, out], Conv OIHW -> HWIO."""
    if layout == "linear":
        return tensor.T
    return tensor.transpose(2, 3, 1, 0) if layout == "conv" else tensor


def to_checkpoint(value: np.ndarray, layout: Layout) -> np.ndarray:
    """Undo `to_parameter`, as a view."""
    if layout == "linear":
        return value.T
    return value.transpose(3, 2, 0, 1) if layout == "conv" else value
