"""The same work in PyTorch, for comparison: models of transformers on CPUs."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lgjax.bench import torch_vision
from lgjax.bench.cases import Dtype, Sizes
from lgjax.bench.language import COMPARED, prompt_ids
from lgjax.bench.timing import Facts, Work, timed
from lgjax.bench.vision import canvas, clip_view, regions, sample
from lgjax.bench.weights import checkpoint_tensors, parameters
from lgjax.models.grounding import normalize_pixels
from lgjax.models.pixel_encoder import level_sizes_of


def mask2former(sizes: Sizes) -> Work:
    """A picture through Mask2Former of the grounding model's shape: Swin, deformable encoder, decoder.

    Its pixel decoder samples by transformers' deformable attention in plain PyTorch. The weights are fresh.
    """
    model = sizes.config.grounding
    assert model is not None
    swin, transformer, side = model.swin, model.transformer, model.image_size
    config = transformers.Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": side,
            "patch_size": swin.patch_size,
            "embed_dim": swin.embed_dim,
            "depths": list(swin.depths),
            "num_heads": list(swin.num_heads),
            "window_size": swin.window,
            "mlp_ratio": swin.mlp_ratio,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        feature_size=transformer.hidden_size,
        mask_feature_size=transformer.hidden_size,
        hidden_dim=transformer.hidden_size,
        encoder_feedforward_dim=transformer.ffn_size,
        dim_feedforward=transformer.ffn_size,
        encoder_layers=transformer.encoder_layers,
        decoder_layers=transformer.decoder_layers + 1,  # it counts the heads before the first layer
        num_attention_heads=transformer.num_heads,
        num_queries=model.num_queries,
    )
    torch.manual_seed(0)
    network = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    pixels = torch.from_numpy(canvas(side)).permute(0, 3, 1, 2).float() / 255

    @torch.inference_mode()
    def run() -> None:
        network(pixel_values=pixels)

    return Work(timed(run), lambda: Facts(what="Mask2Former", compiles=False))


def clip(sizes: Sizes) -> Work:
    """The vision tower up to the layer whose output is taken, and the projector."""
    model = sizes.config.clip
    config = transformers.CLIPVisionConfig(
        image_size=model.image_size,
        patch_size=model.patch_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.mlp_size,
        num_hidden_layers=model.used_layers,
        num_attention_heads=model.num_heads,
        layer_norm_eps=model.norm_eps,
    )
    tower = transformers.CLIPVisionModel(config).eval()
    inner = getattr(tower, "vision_model", tower)
    state = {
        key.rpartition("vision_model.")[2]: torch.from_numpy(value)
        for key, value in checkpoint_tensors(sizes.config, "clip")
    }
    missing, unexpected = inner.load_state_dict(state, strict=False)
    if unexpected or any("post_layernorm" not in name for name in missing if "position_ids" not in name):
        raise ValueError(f"transformers' CLIPVisionModel has other names: {unexpected[:1] or missing[:1]}")
    projector = {
        key.rpartition(".")[2]: torch.from_numpy(value)
        for key, value in checkpoint_tensors(sizes.config, "projector")
    }
    pixels = torch.from_numpy(clip_view(model.image_size)).permute(0, 3, 1, 2).contiguous()
    found: list[torch.Tensor] = []

    @torch.inference_mode()
    def run() -> None:
        states = tower(pixel_values=pixels).last_hidden_state[:, 1:]
        found[:] = [torch.nn.functional.linear(states, projector["weight"], projector["bias"])]

    def facts() -> Facts:
        return Facts(what="CLIPVisionModel", compiles=False, output=sample(found[0].numpy()))

    return Work(timed(run), facts)


def prompt(sizes: Sizes) -> Work:
    """A picture and regions in it: an embedding and a mask for each."""
    model = sizes.config.prompt
    assert model is not None
    network = torch_vision.Prompting(model, parameters(sizes.config, "prompt")["prompt"])
    pixels = np.asarray(normalize_pixels(jnp.asarray(canvas(model.image_size)))).transpose(0, 3, 1, 2)
    levels = torch_vision.Levels.of(level_sizes_of(*[side // 4 for side in pixels.shape[2:]])[::-1])
    inputs = [torch.tensor(value) for value in (pixels, *regions(sizes))]
    found: list[torch.Tensor] = []

    @torch.inference_mode()
    def run() -> None:
        found[:] = network(*inputs, levels)

    def facts() -> Facts:
        objects, masks = (part.numpy()[:, : sizes.prompts] for part in found)
        output = [*sample(objects), *sample(masks.mean((2, 3)))]
        return Facts(what="Swin and layers of Deformable DETR", compiles=False, output=output)

    return Work(timed(run), facts)


def prefill(sizes: Sizes, dtype: Dtype) -> Work:
    """Read a prompt, up to the logits of its next token."""
    network = _llama(sizes, dtype)
    ids = torch.from_numpy(prompt_ids(sizes)).long()
    found: list[torch.Tensor] = []

    @torch.inference_mode()
    def run() -> None:
        found[:] = [network(input_ids=ids, use_cache=True, logits_to_keep=1).logits[0, -1]]

    def facts() -> Facts:
        logits = found[0].float().numpy()[:COMPARED]
        return Facts(what="LlamaForCausalLM", compiles=False, output=[float(value) for value in logits])

    return Work(timed(run), facts)


def decode(sizes: Sizes, dtype: Dtype) -> Work:
    """Write tokens after a prompt, the likeliest each."""
    network = _llama(sizes, dtype)
    cache = transformers.DynamicCache()
    found: list[int] = []
    with torch.inference_mode():
        prompt = torch.from_numpy(prompt_ids(sizes)).long()
        hidden = network.model(input_ids=prompt, past_key_values=cache, use_cache=True)[0][:, -1:]

    @torch.inference_mode()
    def run() -> None:
        newest = network.lm_head(hidden).argmax(-1)
        tokens = [newest]
        for _ in range(sizes.new_tokens - 1):
            logits = network(input_ids=newest, past_key_values=cache, use_cache=True).logits
            newest = logits[:, -1:].argmax(-1)
            tokens.append(newest)
        cache.crop(-(sizes.new_tokens - 1))  # as it was after the prompt
        found[:] = [int(token) for token in torch.cat(tokens, 1)[0]]

    return Work(timed(run), lambda: Facts(what="LlamaForCausalLM", compiles=False, output=list(found)))


def _llama(sizes: Sizes, dtype: Dtype) -> transformers.LlamaForCausalLM:
    """The language model with the weights that ours has; they are held once."""
    llama = sizes.config.llama
    config = transformers.LlamaConfig(
        vocab_size=llama.vocab_size,
        hidden_size=llama.hidden_size,
        intermediate_size=llama.mlp_size,
        num_hidden_layers=llama.num_layers,
        num_attention_heads=llama.num_heads,
        num_key_value_heads=llama.num_kv_heads,
        head_dim=llama.head_dim,
        rms_norm_eps=llama.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": llama.rope_base},
        tie_word_embeddings=llama.tie_embeddings,
    )
    with torch.device("meta"):
        network = transformers.LlamaForCausalLM(config)
    state = {
        key: torch.from_numpy(value).to(getattr(torch, dtype))
        for key, value in checkpoint_tensors(sizes.config, "llama")
    }
    network.load_state_dict(state, assign=True)
    network.model.rotary_emb = LlamaRotaryEmbedding(config)  # frequencies are no part of a checkpoint
    return network.eval()


def pin(cores: int) -> None:
    """Let PyTorch use as many threads."""
    torch.set_num_threads(cores)
