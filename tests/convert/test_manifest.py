"""The key list made by arithmetic against the key lists taken from the original's own state dicts."""

import dataclasses

import numpy as np
import pytest

from lgjax import config
from lgjax.convert import hf_config, keys, manifest
from tests.parity import cases, llm

MANIFESTS = [path for path in cases.files("*manifest.json") if not path.name.startswith("llm_")]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_full_size_keys_shapes_and_order(path):
    want = [(key, tuple(shape)) for key, shape in cases.read_json(path.name).items()]
    parts = tuple(dict.fromkeys(manifest.part_of(key) for key, _ in want))
    sizes = hf_config.part_config(parts[0], {}, dict(want)) if len(parts) == 1 else config.llava_g_7b()
    entries = manifest.manifest(sizes, parts)
    assert [(key, entry.shape) for key, entry in entries.items()] == want


@pytest.mark.parametrize("path", cases.files("llm_forward*.json"), ids=lambda path: path.stem)
def test_small_language_model_from_its_config_and_shapes(path):
    info = cases.read_json(path.name)
    want = {key: tuple(shape) for key, shape in cases.read_json(llm.manifest(info)).items()}
    sizes = hf_config.llava_config({**info["config"], "vision_config": info["vision_config"]}, want)
    assert (sizes.llama, sizes.clip) == (llm.llama_config(info), llm.clip_config(info))
    entries = manifest.manifest(sizes)
    assert {key: entry.shape for key, entry in entries.items() if entry.kind != "buffer"} == want


def test_counts_of_the_specification():
    entries = manifest.manifest(config.llava_g_7b())
    kinds = {
        part: [entry.kind for key, entry in entries.items() if manifest.part_of(key) == part]
        for part in ("grounding", "prompt")
    }
    learned = {
        part: len(found) - found.count("alias") - found.count("buffer") for part, found in kinds.items()
    }
    assert learned == {"grounding": 521, "prompt": 529}
    assert kinds["prompt"].count("alias") == 110
    assert [found.count("buffer") for found in kinds.values()] == [13, 13]


@pytest.mark.parametrize(
    "change", [{}, {"tie_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"num_kv_heads": 1}]
)
def test_llama_variants_against_transformers(change):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = dataclasses.replace(config.debug().llama, head_dim=24, **change)
    theirs = LlamaConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        intermediate_size=ours.mlp_size,
        num_hidden_layers=ours.num_layers,
        num_attention_heads=ours.num_heads,
        num_key_value_heads=ours.num_kv_heads,
        head_dim=ours.head_dim,
        tie_word_embeddings=ours.tie_embeddings,
        attention_bias=ours.attention_bias,
        mlp_bias=ours.mlp_bias,
    )
    with torch.device("meta"):
        want = {key: tuple(value.shape) for key, value in LlamaForCausalLM(theirs).state_dict().items()}
    entries = manifest.manifest(dataclasses.replace(config.debug(), llama=ours), ("llama",))
    assert {key: entry.shape for key, entry in entries.items() if entry.kind != "buffer"} == want
    paths = [entry.path for entry in entries.values() if entry.kind == "parameter"]
    assert ("llama/lm_head/kernel" in paths) != ours.tie_embeddings


def test_every_parameter_path_leads_back_to_its_key():
    entries = manifest.manifest(config.debug())
    for key, entry in entries.items():
        if entry.kind == "parameter":
            assert keys.checkpoint_key(entry.path) == (key, entry.layout)
            array = np.empty(entry.shape, np.int8)
            assert keys.to_parameter(array, entry.layout).shape == manifest.parameter_shape(entry)


@pytest.mark.parametrize("window", [2, 4, 7])
def test_relative_position_index(window):
    index = manifest.buffer_value("relative_position_index", (window**2, window**2), config.debug())
    for a in range(window**2):
        for b in range(window**2):
            down, right = a // window - b // window, a % window - b % window
            assert index[a, b] == (down + window - 1) * (2 * window - 1) + right + window - 1


def test_inverse_frequencies_are_pytorchs():
    torch = pytest.importorskip("torch")
    model = config.llava_g_7b()
    want = 1.0 / (10000.0 ** (torch.arange(0, 128, 2).float() / 128))
    got = manifest.buffer_value("model.layers.0.self_attn.rotary_emb.inv_freq", (64,), model)
    np.testing.assert_allclose(got, want.numpy(), rtol=3e-7)
