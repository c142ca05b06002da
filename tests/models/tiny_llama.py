"""Small random LLaMA models in our form and in Hugging Face's, with equal weights."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lgjax.config import LlamaConfig, RopeScaling
from lgjax.models.llama import Llama
from tests.weights import parameter_tree

BASE = LlamaConfig(
    vocab_size=97,
    hidden_size=48,
    mlp_size=80,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=12,
    rope_base=100.0,
)
CONFIGS = {
    "plain": BASE,
    "grouped, odd sizes": dataclasses.replace(
        BASE, hidden_size=42, mlp_size=53, num_heads=6, num_kv_heads=2, head_dim=10, norm_eps=1e-5
    ),
    "tied, linear rope": dataclasses.replace(
        BASE, tie_embeddings=True, rope_scaling=RopeScaling(kind="linear", factor=3.0)
    ),
    "biases, llama3 rope": dataclasses.replace(
        BASE,
        attention_bias=True,
        mlp_bias=True,
        num_kv_heads=1,
        rope_scaling=RopeScaling(
            kind="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_positions=64,
        ),
    ),
}


def hugging_face(config: LlamaConfig, seed: int = 0):
    """A transformers model with random weights; norms and biases are random too."""
    import torch
    import transformers

    rope: dict = {"rope_type": "default", "rope_theta": config.rope_base}
    if config.rope_scaling is not None:
        rope |= {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
        if config.rope_scaling.kind == "llama3":
            rope["low_freq_factor"] = config.rope_scaling.low_freq_factor
            rope["high_freq_factor"] = config.rope_scaling.high_freq_factor
            rope["original_max_position_embeddings"] = config.rope_scaling.original_max_positions
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.mlp_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            rope_parameters=rope,
            tie_word_embeddings=config.tie_embeddings,
            attention_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
            max_position_embeddings=512,
        )
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            norm = name.endswith("norm.weight")
            weight.copy_(
                1 + 0.2 * noise if norm else noise * (0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5)
            )
        model.model.embed_tokens.weight.mul_(4)
    return model


def parameters(model, config: LlamaConfig) -> dict:
    """Parameters of a Hugging Face model as ours."""
    state = {name: weight.detach().numpy() for name, weight in model.state_dict().items()}
    if config.tie_embeddings:
        state.pop("lm_head.weight", None)
    return jax.tree.map(jnp.asarray, parameter_tree(state)["llama"])


def parameter_shapes(config: LlamaConfig) -> dict:
    """Shape and dtype of every parameter."""

    def touch(model, ids):
        return model.logits(model(model.embed(ids), ids)[0])

    def init():
        return Llama(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method=touch)

    return nn.unbox(jax.eval_shape(init))["params"]


def random_parameters(config: LlamaConfig, seed: int = 0) -> dict:
    """Random parameters, large enough in the embedding for the residual stream to matter."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(1 + 0.2 * noise if leaf.ndim == 1 else noise * leaf.shape[0] ** -0.5)

    params = jax.tree.map(fill, parameter_shapes(config))
    return {**params, "embed_tokens": params["embed_tokens"] * config.vocab_size**0.5}
