"""What the language-model parity tests share: sizes of the stored configs, and which manifest fits."""

from __future__ import annotations

from lgjax.config import ClipConfig, LlamaConfig
from tests.parity import cases

# of the real LLaMA tokenizer with its three added tokens, which the stored cases use
PERCENT_ID, SEG_ID, EOS_ID = 1273, 32002, 2


def clip_config(info: dict) -> ClipConfig:
    vision = info["vision_config"]
    return ClipConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        hidden_size=vision["hidden_size"],
        mlp_size=vision["intermediate_size"],
        num_layers=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        select_layer=info["config"]["mm_vision_select_layer"],
        norm_eps=vision["layer_norm_eps"],
    )


def llama_config(info: dict) -> LlamaConfig:
    config = info["config"]
    heads = config["num_attention_heads"]
    return LlamaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        mlp_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config["hidden_size"] // heads,
        norm_eps=config["rms_norm_eps"],
        rope_base=info["rope_base"],
    )


def manifest(info: dict) -> str:
    """Name of the `llm_*manifest.json` whose sizes are those of the stored configs."""
    config, vision = info["config"], info["vision_config"]
    layer = f"model.layers.{config['num_hidden_layers'] - 1}.mlp.gate_proj.weight"
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    wanted = {
        "model.embed_tokens.weight": [config["vocab_size"], config["hidden_size"]],
        layer: [config["intermediate_size"], config["hidden_size"]],
        "model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight": [
            patches + 1,
            vision["hidden_size"],
        ],
    }
    fits = [
        path.name
        for path in cases.files("llm_*manifest.json")
        if all(cases.read_json(path.name).get(key) == shape for key, shape in wanted.items())
    ]
    assert fits, f"no llm_*manifest.json in {cases.DATA} has the sizes {wanted}"
    return fits[0]
