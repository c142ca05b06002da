"""config.json of LLaVA, LLaMA and CLIP <-> our sizes; what config.json does not say comes from tensor shapes.

Source: spec/language_model.md 4, 14; spec/grounding_model.md 13.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from lgjax import config
from lgjax.config import ClipConfig, GroundingConfig, LlamaConfig, ModelConfig, PromptConfig, RopeScaling
from lgjax.convert import manifest, meta

Raw = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

EXTRA = "lgjax"  # entry of config.json for sizes that the original's own fields cannot express
_VISION = "model.vision_tower.vision_tower.vision_model"
_TOWER = "clip-vit-large-patch14"
_FIXED = {  # attributes that change the maths, and the values that this implementation computes
    "hidden_act": ("silu",),
    "mm_vision_select_feature": ("patch",),
    "mm_projector_type": ("linear",),
    "image_aspect_ratio": ("square",),
    "image_grid_pinpoints": (None,),
    "mm_use_im_start_end": (False,),
    "mm_use_im_patch_token": (False,),
}


def llava_config(raw: Raw, shapes: Shapes) -> ModelConfig:
    """Sizes of a LLaVA-Grounding checkpoint from its config.json and its tensor shapes (by checkpoint key).

    The two vision models are None when no key of theirs exists and `architectures` does not ask for them.

    Raises:
        ValueError: an attribute that is missing or not supported; one line for each.
    """
    base = meta.from_json(ModelConfig, raw[EXTRA]) if EXTRA in raw else config.llava_g_7b()
    findings = []
    if not str(raw.get("model_type", "llava")).lower().startswith("llava"):
        findings.append(f"config.json: model_type is '{raw['model_type']}', expected 'llava'")
    if not isinstance(layer := raw.get("mm_vision_select_layer", -2), int) or layer >= 0:
        findings.append(f"config.json: mm_vision_select_layer is {layer!r}, expected a number below 0")
        layer = -2
    parsed: dict[str, Any] = {}
    for name, parse in (
        ("llama", lambda: llama_config(raw)),
        (
            "clip",
            lambda: clip_config(shapes, raw.get("vision_config"), layer, base.clip if EXTRA in raw else None),
        ),
    ):
        try:
            parsed[name] = parse()
        except ValueError as error:
            findings += str(error).splitlines()
    if findings:
        raise ValueError("\n".join(findings))
    if raw.get("mm_hidden_size", parsed["clip"].hidden_size) != parsed["clip"].hidden_size:
        raise ValueError(
            f"config.json: mm_hidden_size is {raw['mm_hidden_size']}, "
            f"but the vision tower has width {parsed['clip'].hidden_size}"
        )
    has = {
        prefix: any(key.startswith(f"{prefix}.") for key in shapes)
        for prefix in ("seg_model", "interactive_model")
    }
    return ModelConfig(
        **parsed,
        grounding=grounding_config(shapes, base.grounding or GroundingConfig()) if has["seg_model"] else None,
        prompt=prompt_config(shapes, base.prompt or PromptConfig()) if has["interactive_model"] else None,
        seg_state=base.seg_state,
        history=base.history,
    )


def llama_config(raw: Raw) -> LlamaConfig:
    """Sizes of the decoder from the config.json of any Hugging Face LLaMA, old style or new.

    Raises:
        ValueError: an attribute that is missing or not supported; one line for each.
    """
    findings = [
        f"config.json: {name} is {raw[name]!r}, only {' or '.join(map(repr, values))} is supported"
        for name, values in _FIXED.items()
        if name in raw and raw[name] is not None and raw[name] not in values
    ]
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if raw.get("model_type", "llama") not in ("llama", "llava"):
        findings.append(f"config.json: model_type is {raw['model_type']!r}, only LLaMA models are read")
    findings += [
        f"config.json: {name} is {raw.get(name)!r}, expected a positive number"
        for name in names
        if not isinstance(raw.get(name), int) or raw[name] < 1
    ]
    if findings:
        raise ValueError("\n".join(findings))
    heads = raw["num_attention_heads"]
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    return LlamaConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        mlp_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_base=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        rope_scaling=_rope_scaling(rope, raw),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
    )


def _rope_scaling(rope: Raw, raw: Raw) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise ValueError(
            f"config.json: rope scaling '{kind}' is not supported, only 'linear' and 'llama3' are"
        )
    if "factor" not in rope:
        raise ValueError(f"config.json: rope scaling '{kind}' has no factor")
    if kind == "linear":
        return RopeScaling(kind="linear", factor=float(rope["factor"]))
    original = rope.get("original_max_position_embeddings") or raw.get("max_position_embeddings")
    return RopeScaling(
        kind="llama3",
        factor=float(rope["factor"]),
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        original_max_positions=int(original or RopeScaling.original_max_positions),
    )


def clip_config(
    shapes: Shapes, vision: Raw | None = None, select_layer: int = -2, base: ClipConfig | None = None
) -> ClipConfig:
    """Sizes of the vision tower from its tensor shapes; a vision config, when known, adds heads and epsilon.

    Without one a head has 64 columns, as in every CLIP ViT.

    Raises:
        ValueError: the number of heads cannot be known, or the activation is not quick GELU.
    """
    vision = vision or {}
    if (act := vision.get("hidden_act", "quick_gelu")) != "quick_gelu":
        raise ValueError(
            f"config.json: hidden_act of the vision tower is '{act}', only 'quick_gelu' is supported"
        )
    known = base or ClipConfig()
    width = _dim(shapes, f"{_VISION}.embeddings.class_embedding", 0, known.hidden_size)
    patch = _dim(shapes, f"{_VISION}.embeddings.patch_embedding.weight", -1, known.patch_size)
    rows = _dim(shapes, f"{_VISION}.embeddings.position_embedding.weight", 0, known.num_patches + 1)
    heads = vision.get("num_attention_heads") or (base.num_heads if base else width // 64)
    if not heads or width % heads:
        raise ValueError(
            f"vision tower: width {width} does not tell the number of heads; "
            "add its config to config.json as 'vision_config'"
        )
    return ClipConfig(
        image_size=patch * math.isqrt(rows - 1),
        patch_size=patch,
        hidden_size=width,
        mlp_size=_dim(shapes, f"{_VISION}.encoder.layers.0.mlp.fc1.weight", 0, known.mlp_size),
        num_layers=_count(shapes, f"{_VISION}.encoder.layers.", known.num_layers),
        num_heads=heads,
        select_layer=select_layer,
        norm_eps=float(vision.get("layer_norm_eps", known.norm_eps)),
    )


def grounding_config(shapes: Shapes, base: GroundingConfig) -> GroundingConfig:
    """Sizes of the grounding model from its tensor shapes; what they do not show is taken from `base`."""
    return dataclasses.replace(base, **_vision_sizes(shapes, "seg_model.model", base))


def prompt_config(shapes: Shapes, base: PromptConfig) -> PromptConfig:
    """Sizes of the visual-prompt model from its tensor shapes; what they do not show is taken from `base`."""
    sizes = _vision_sizes(shapes, "interactive_model.model", base)
    tokens = _dim(
        shapes, "interactive_model.model.sem_seg_head.predictor.mask_tokens.weight", 0, base.num_mask_tokens
    )
    return dataclasses.replace(base, num_mask_tokens=tokens, **sizes)


def _vision_sizes(shapes: Shapes, key: str, base: GroundingConfig | PromptConfig) -> dict[str, Any]:
    swin, head = f"{key}.backbone", f"{key}.sem_seg_head"
    encoder, stages = (
        f"{head}.pixel_decoder.transformer",
        _count(shapes, f"{swin}.layers.", len(base.swin.depths)),
    )
    depths = tuple(
        _count(shapes, f"{swin}.layers.{i}.blocks.", _at(base.swin.depths, i)) for i in range(stages)
    )
    table = "blocks.0.attn.relative_position_bias_table"
    embed = _dim(shapes, f"{swin}.patch_embed.proj.weight", 0, base.swin.embed_dim)
    mlp = _dim(shapes, f"{swin}.layers.0.blocks.0.mlp.fc1.weight", 0, embed * base.swin.mlp_ratio)
    rows = _dim(shapes, f"{swin}.layers.0.{table}", 0, (2 * base.swin.window - 1) ** 2)
    levels = _dim(shapes, f"{encoder}.level_embed", 0, base.transformer.num_levels)
    known = base.transformer
    weights = _dim(
        shapes,
        f"{encoder}.encoder.layers.0.self_attn.attention_weights.weight",
        0,
        known.num_heads * levels * known.num_points,
    )
    return {
        "swin": dataclasses.replace(
            base.swin,
            embed_dim=embed,
            depths=depths,
            num_heads=tuple(
                _dim(shapes, f"{swin}.layers.{i}.{table}", 1, _at(base.swin.num_heads, i))
                for i in range(stages)
            ),
            window=(math.isqrt(rows) + 1) // 2,
            patch_size=_dim(shapes, f"{swin}.patch_embed.proj.weight", -1, base.swin.patch_size),
            mlp_ratio=max(1, mlp // embed),
        ),
        "transformer": dataclasses.replace(
            known,
            hidden_size=_dim(shapes, f"{encoder}.level_embed", 1, known.hidden_size),
            ffn_size=_dim(shapes, f"{encoder}.encoder.layers.0.linear1.weight", 0, known.ffn_size),
            num_heads=max(1, weights // (levels * known.num_points)),
            num_levels=levels,
            encoder_layers=_count(shapes, f"{encoder}.encoder.layers.", known.encoder_layers),
            decoder_layers=_count(shapes, f"{head}.predictor.decoder.layers.", known.decoder_layers),
        ),
    }


def _dim(shapes: Shapes, key: str, axis: int, default: int) -> int:
    """Size of one axis; a key that is absent or has too few axes is reported later, by its name."""
    shape = shapes.get(key, ())
    return shape[axis] if -len(shape) <= axis < len(shape) else default


def _at(values: tuple[int, ...], i: int) -> int:
    return values[min(i, len(values) - 1)]


def _count(shapes: Shapes, prefix: str, default: int) -> int:
    """One more than the largest number that follows `prefix` in any key."""
    numbers = [int(m[1]) for key in shapes if (m := re.match(re.escape(prefix) + r"(\d+)\.", key))]
    return max(numbers) + 1 if numbers else default


def to_json(model: ModelConfig, dtype: str = "float16") -> dict[str, Any]:
    """Write config.json of the original for a model that has none (a trained one).

    Sizes that the original's fields cannot express stand under "lgjax"; other programs ignore that entry.
    """
    llama, clip = model.llama, model.clip
    scaling = llama.rope_scaling
    rope = (
        None
        if scaling is None
        else {"type": scaling.kind, "rope_type": scaling.kind, "factor": scaling.factor}
    )
    if rope is not None and scaling is not None and scaling.kind == "llama3":
        rope["low_freq_factor"] = scaling.low_freq_factor
        rope["high_freq_factor"] = scaling.high_freq_factor
        rope["original_max_position_embeddings"] = scaling.original_max_positions
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "vocab_size": llama.vocab_size,
        "hidden_size": llama.hidden_size,
        "intermediate_size": llama.mlp_size,
        "num_hidden_layers": llama.num_layers,
        "num_attention_heads": llama.num_heads,
        "num_key_value_heads": llama.num_kv_heads,
        "head_dim": llama.head_dim,
        "rms_norm_eps": llama.norm_eps,
        "rope_theta": llama.rope_base,
        "rope_scaling": rope,
        "tie_word_embeddings": llama.tie_embeddings,
        "attention_bias": llama.attention_bias,
        "mlp_bias": llama.mlp_bias,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_cache": True,
        "torch_dtype": dtype,
        "mm_vision_tower": f"openai/{_TOWER}",
        "mm_hidden_size": clip.hidden_size,
        "mm_vision_select_layer": clip.select_layer,
        "mm_vision_select_feature": "patch",
        "use_mm_proj": True,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "square",
        "image_grid_pinpoints": None,
        EXTRA: dataclasses.asdict(model),
    }


def part_config(part: str, raw: Raw, shapes: Shapes) -> ModelConfig:
    """Sizes for a checkpoint that holds one part only; every other part keeps the defaults or is absent.

    The width of the language model comes from the tensors that touch it, where there are any.

    Raises:
        ValueError: see `llama_config` and `clip_config`.
    """
    base = dataclasses.replace(config.llava_g_7b(), grounding=None, prompt=None)
    if part == "llama":
        return dataclasses.replace(base, llama=llama_config(raw))
    if part == "clip":
        return dataclasses.replace(base, clip=clip_config(shapes, raw.get("vision_config", raw)))
    if part == "projector":
        width = _dim(shapes, "model.mm_projector.weight", 0, base.llama.hidden_size)
        inputs = _dim(shapes, "model.mm_projector.weight", 1, base.clip.hidden_size)
        clip = dataclasses.replace(base.clip, hidden_size=inputs)
        return dataclasses.replace(base, clip=clip, llama=dataclasses.replace(base.llama, hidden_size=width))
    touching = {
        "grounding": ("seg_model.model.sem_seg_head.predictor.class_embed", 1),
        "prompt": ("interactive_model.model.obj_projector.weight", 0),
    }
    width = _dim(shapes, *touching[part], base.llama.hidden_size)
    if width != manifest.TEXT_SIZE:
        base = dataclasses.replace(base, llama=dataclasses.replace(base.llama, hidden_size=width))
    if part == "grounding":
        return dataclasses.replace(base, grounding=grounding_config(shapes, GroundingConfig()))
    return dataclasses.replace(base, prompt=prompt_config(shapes, PromptConfig()))
