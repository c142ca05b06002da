"""Files that training starts from: LLaMA and CLIP folders, OpenSeeD, Semantic-SAM, a projector."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lgjax import config as configs
from lgjax.convert import describe, store
from lgjax.convert.convert import convert
from tests import synthetic
from tests.convert import folders

torch = pytest.importorskip("torch")

SEG, INTER = "seg_model.model.", "interactive_model.model."


def below(prefix):
    """Tensors of one vision model with the keys of its own file."""
    found = folders.state("float32")
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


def leaves(folder):
    return {path: np.asarray(leaf) for path, leaf in store.flattened(store.load(folder).params).items()}


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 1, "head_dim": 24, "attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 5e5,
            }
        },
    ],
)
def test_llama_folder_as_transformers_writes_it(tmp_path, change, safe):
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaConfig(
        vocab_size=90,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        rms_norm_eps=1e-5,
        **change,
    )
    model = LlamaForCausalLM(theirs)
    model.save_pretrained(tmp_path / "llama")
    if not safe:
        next((tmp_path / "llama").glob("*.safetensors")).unlink()
        torch.save(model.state_dict(), tmp_path / "llama" / "pytorch_model.bin")
    meta = convert(tmp_path / "llama", tmp_path / "converted")
    config = meta.config.llama
    assert meta.parts == ("llama",) and meta.tokens is None and meta.source.kind == "llama"
    assert (config.hidden_size, config.mlp_size, config.norm_eps) == (48, 80, 1e-5)
    assert config.tie_embeddings == bool(change.get("tie_word_embeddings"))
    assert config.head_dim == change.get("head_dim", 12)
    if rope := change.get("rope_parameters"):
        assert config.rope_base == 5e5 and config.rope_scaling.kind == rope["rope_type"]
        assert config.rope_scaling.factor == rope["factor"]
        assert rope["rope_type"] == "linear" or config.rope_scaling.original_max_positions == 64
    else:
        assert config.rope_base == 10000.0 and config.rope_scaling is None

    from lgjax.models.llama import Llama

    module, params = Llama(config), store.load(tmp_path / "converted").params["llama"]
    ids = np.array([[3, 14, 15, 9, 2, 6]], np.int64)

    def forward(llama):
        hidden, _ = llama(llama.embed(jnp.asarray(ids)), jnp.arange(6)[None])
        return llama.logits(hidden)

    got = module.apply({"params": params}, method=forward)
    with torch.no_grad():
        want = model(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_llama_folder_with_a_missing_layer(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(theirs).save_pretrained(tmp_path / "llama")
    theirs.num_hidden_layers = 2
    theirs.save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"(?s)9 faults found.*missing: 'model.layers.1.self_attn.q_proj"):
        convert(tmp_path / "llama", tmp_path / "converted")


def test_llama_rows_are_held_against_the_pieces(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    for rows in (800, 90):
        folder = tmp_path / f"llama{rows}"
        LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes)).save_pretrained(folder)
        (folder / "tokenizer.model").write_bytes(synthetic.TINY_MODEL.read_bytes())
    convert(tmp_path / "llama800", tmp_path / "converted")
    kept = tmp_path / "converted" / "tokenizer" / "tokenizer.model"
    assert kept.read_bytes() == synthetic.TINY_MODEL.read_bytes()
    with pytest.raises(
        ValueError, match=r"row count: the embedding has 90 rows, tokenizer.model has 800 pieces"
    ):
        convert(tmp_path / "llama90", tmp_path / "again")


def test_pytorch_files_without_pytorch(tmp_path, monkeypatch):
    import sys

    folders.write_torch(tmp_path / "mm_projector.bin", {"mm_projector.weight": np.zeros((2, 2), np.float32)})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"needs PyTorch: pip install 'lgjax\[convert\]'"):
        convert(tmp_path / "mm_projector.bin", tmp_path / "converted")
    source = tmp_path / "source"
    synthetic.write_checkpoint(source, configs.debug(), form="safetensors")
    convert(source, tmp_path / "whole")  # safetensors need no PyTorch


@pytest.mark.parametrize("whole", [False, True])
def test_clip_folder(tmp_path, whole):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**sizes, image_size=56, patch_size=14, projection_dim=16)
    if whole:
        text = CLIPTextConfig(**sizes, vocab_size=60, projection_dim=16)
        model = CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
        )
        tower = model.vision_model
    else:
        model = CLIPVisionModel(vision)
        tower = model
    folder = tmp_path / "clip"
    model.save_pretrained(folder)
    meta = convert(folder, tmp_path / "converted")
    config = meta.config.clip
    want = configs.ClipConfig(
        image_size=56, patch_size=14, hidden_size=32, mlp_size=48, num_layers=3, num_heads=4
    )
    assert meta.parts == ("clip",) and config == want
    assert any("text" in name for name in meta.source.skipped) == whole

    from lgjax.models.clip import ClipTower

    images = np.random.default_rng(0).standard_normal((2, 56, 56, 3), np.float32)
    got = ClipTower(config).apply(
        {"params": store.load(tmp_path / "converted").params["clip"]}, jnp.asarray(images)
    )
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    np.testing.assert_allclose(got, hidden[:, 1:].numpy(), atol=2e-5)


def test_openseed_file_keeps_what_fits(tmp_path):
    tensors = below(SEG)
    given = {key: value for key, value in tensors.items() if "enc_output" not in key}
    given["sem_seg_head.predictor.class_embed"] = np.ones((32, 512), np.float32)
    given["sem_seg_head.predictor.lang_encoder.positional"] = np.ones((77, 64), np.float32)
    given["sem_seg_head.predictor.mask_embed.layers.0.bias"] = np.ones(33, np.float32)
    folders.write_torch(tmp_path / "openseed.pt", given)
    meta = convert(tmp_path / "openseed.pt", tmp_path / "converted")
    assert meta.parts == ("grounding",) and meta.source.kind == "openseed"
    got = leaves(tmp_path / "converted")
    assert {
        "grounding/enc_output/kernel",
        "grounding/class_embed",
        "grounding/decoder/mask_embed/layers_0/bias",
    } < {*meta.source.missing}
    skipped = " ".join(meta.source.skipped)
    assert (
        "class_embed [32, 512]" in skipped
        and "lang_encoder" in skipped
        and "mask_embed.layers.0.bias" in skipped
    )
    assert not got.keys() & set(meta.source.missing)
    key = "sem_seg_head.pixel_decoder.layer_1.weight"
    np.testing.assert_array_equal(
        got["grounding/pixel_encoder/layer_1/conv/kernel"], tensors[key].transpose(2, 3, 1, 0)
    )
    assert len(got) + len(meta.source.missing) == len(store.flattened(_tree().get("grounding")))
    text = describe.describe(tmp_path / "converted")
    assert "skipped: " in text and "kept fresh: " in text


def _tree():
    from lgjax.models.llava_grounding import abstract_params

    return abstract_params(configs.debug())


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("entry", [True, False])
def test_semantic_sam_file(tmp_path, prefix, entry):
    tensors = below(INTER)
    given = {prefix + key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}
    extra = {"optimizer": [1, 2], "iteration": 7}
    torch.save({"model": given, **extra} if entry else given, tmp_path / "visual_prompt_enc.pth")
    meta = convert(tmp_path / "visual_prompt_enc.pth", tmp_path / "converted")
    assert meta.parts == ("prompt",) and meta.source.kind == "semantic-sam"
    assert meta.source.missing == () and meta.source.skipped == ()
    want = dataclasses.replace(
        configs.debug().prompt,
        transformer=dataclasses.replace(configs.debug().prompt.transformer, norm_groups=32),
        image_size=1024,
    )
    assert meta.config.prompt == want
    got = leaves(tmp_path / "converted")
    np.testing.assert_array_equal(got["prompt/obj_projector/kernel"].T, tensors["obj_projector.weight"])
    np.testing.assert_array_equal(
        got["prompt/mask_tokens"], tensors["sem_seg_head.predictor.mask_tokens.weight"]
    )
    shapes = {path: leaf.shape for path, leaf in store.flattened(_tree()["prompt"]).items()}
    assert {path.removeprefix("prompt/"): leaf.shape for path, leaf in got.items()} == shapes


def test_semantic_sam_with_six_mask_tokens_keeps_them_apart(tmp_path):
    tensors = below(INTER)
    tensors["sem_seg_head.predictor.mask_tokens.weight"] = np.ones((6, 32), np.float32)
    folders.write_torch(tmp_path / "sam.pth", tensors)
    meta = convert(tmp_path / "sam.pth", tmp_path / "converted")
    assert meta.config.prompt.num_mask_tokens == 6


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector.", "base.model.mm_projector."])
def test_projector_file(tmp_path, prefix):
    weight = np.random.default_rng(0).standard_normal((24, 16), np.float32)
    bias = np.arange(24, dtype=np.float32)
    folders.write_torch(tmp_path / "mm_projector.bin", {f"{prefix}weight": weight, f"{prefix}bias": bias})
    meta = convert(tmp_path / "mm_projector.bin", tmp_path / "converted", dtype="bfloat16")
    assert meta.parts == ("projector",) and meta.dtypes["projector"] == {"bfloat16": 24 * 17}
    assert (meta.config.clip.hidden_size, meta.config.llama.hidden_size) == (16, 24)
    got = store.load(tmp_path / "converted", dtype=np.float32).params["projector"]
    np.testing.assert_allclose(got["kernel"], weight.T, rtol=1e-2)
    np.testing.assert_allclose(got["bias"], bias, rtol=1e-2)


def test_projector_without_its_bias(tmp_path):
    folders.write_torch(tmp_path / "p.bin", {"mm_projector.weight": np.zeros((24, 16), np.float32)})
    with pytest.raises(ValueError, match=r"missing: 'model.mm_projector.bias', expected shape \[24\]"):
        convert(tmp_path / "p.bin", tmp_path / "converted")


@pytest.mark.parametrize("without", [(INTER,), (SEG, INTER)])
def test_checkpoints_of_earlier_stages_lack_vision_models(tmp_path, without):
    tensors = {key: value for key, value in folders.state().items() if not key.startswith(without)}
    meta = convert(folders.checkpoint(tmp_path / "source", tensors), tmp_path / "converted")
    assert meta.config.prompt is None and (meta.config.grounding is None) == (len(without) == 2)
    assert set(meta.parts) == {"llama", "clip", "projector", *(() if len(without) == 2 else ("grounding",))}


def test_sizes_that_shapes_show_are_found_without_our_entry(tmp_path):
    """A config.json as the original writes it, with the vision config that the tower's name stands for."""
    source = folders.checkpoint(tmp_path / "source", folders.state())
    folders.beside(source, lgjax=None, vision_config={"num_attention_heads": 2, "hidden_act": "quick_gelu"})
    raw = synthetic.json.loads((source / "config.json").read_text())
    del raw["lgjax"]
    (source / "config.json").write_text(synthetic.json.dumps(raw))
    config, want = convert(source, tmp_path / "converted").config, configs.debug()
    assert config.llama == want.llama and config.clip == want.clip
    for got, known in ((config.grounding, want.grounding), (config.prompt, want.prompt)):
        assert got.swin == known.swin
        assert dataclasses.replace(got.transformer, norm_groups=8) == known.transformer
    del raw["vision_config"]
    (source / "config.json").write_text(synthetic.json.dumps(raw))
    with pytest.raises(ValueError, match="width 32 does not tell the number of heads"):
        convert(source, tmp_path / "again")
