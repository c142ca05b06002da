"""Convert and export again: the same files, keys, order, dtypes and bits."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lgjax import config as configs
from lgjax.convert import describe, export, manifest, store
from lgjax.convert import meta as metas
from lgjax.convert.convert import convert
from tests import synthetic
from tests.convert import folders

pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("form", "shards", "index"),
    [("bin", 3, True), ("bin", 1, False), ("safetensors", 2, True), ("safetensors", 1, False)],
)
def test_round_trip_is_bit_equal(tmp_path, dtype, form, shards, index):
    source, target, back = tmp_path / "llava-source", tmp_path / "converted", tmp_path / "back"
    synthetic.write_checkpoint(source, configs.debug(), dtype=dtype, form=form, shards=shards, index=index)
    convert(source, target)
    export.export(target, back)
    assert {path.name for path in back.iterdir()} == {path.name for path in source.iterdir()}
    assert folders.read(back) == folders.read(source)
    for path in source.glob("*.json"):
        assert (back / path.name).read_bytes() == path.read_bytes(), path.name
    assert (back / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()


def test_keys_keep_their_order(tmp_path):
    import torch

    source = tmp_path / "source"
    synthetic.write_checkpoint(source, configs.debug(), shards=2)
    convert(source, tmp_path / "converted")
    export.export(tmp_path / "converted", tmp_path / "back")
    for path in source.glob("*.bin"):
        want, got = torch.load(path), torch.load(tmp_path / "back" / path.name)
        assert list(got) == list(want)
        assert all(tensor.is_contiguous() for tensor in got.values())


def test_mixed_dtypes_and_odd_buffers_come_back(tmp_path):
    tensors = folders.state("float16")
    for key, value in tensors.items():
        if key.startswith(("seg_model", "interactive_model")) and value.dtype == np.float16:
            tensors[key] = value.astype(np.float32)
    odd = "model.layers.1.self_attn.rotary_emb.inv_freq"
    tensors[odd] = tensors[odd] * np.float16(0.5)
    tensors["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = np.arange(5)[None]
    source = folders.checkpoint(tmp_path / "source", tensors, shards=2)
    meta = convert(source, tmp_path / "converted")
    assert meta.dtypes["llama"].keys() == {"float16"} and meta.dtypes["prompt"].keys() == {"float32"}
    export.export(tmp_path / "converted", tmp_path / "back")
    assert folders.read(tmp_path / "back") == folders.read(source)


def test_absent_buffers_and_dropped_names_of_safetensors(tmp_path):
    entries = manifest.manifest(configs.debug())
    tensors = {
        key: value for key, value in folders.state().items() if entries[key].kind not in ("alias", "buffer")
    }
    key = "seg_model.model.sem_seg_head.predictor._bbox_embed.layers.0.weight"
    kept = key.replace("_bbox_embed", "decoder.bbox_embed.1")
    tensors[kept] = tensors.pop(key)
    source = folders.checkpoint(tmp_path / "source", tensors, form="safetensors")
    convert(source, tmp_path / "converted")
    params = store.load(tmp_path / "converted").params
    np.testing.assert_array_equal(
        params["grounding"]["decoder"]["bbox_embed"]["layers_0"]["kernel"].T, tensors[kept]
    )
    export.export(tmp_path / "converted", tmp_path / "back")
    assert folders.read(tmp_path / "back") == folders.read(source)


def test_parameters_hold_the_tensors(tmp_path):
    tensors = folders.state("float32")
    convert(folders.checkpoint(tmp_path / "source", tensors), tmp_path / "converted", seg_state="at")
    loaded = store.load(tmp_path / "converted")
    params = loaded.params
    assert loaded.config.seg_state == "at"
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(
        params["llama"]["layers_1"]["mlp"]["gate_proj"]["kernel"],
        tensors["model.layers.1.mlp.gate_proj.weight"].T,
    )
    np.testing.assert_array_equal(params["llama"]["embed_tokens"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(
        params["clip"]["patch_embedding"]["kernel"],
        np.moveaxis(
            tensors["model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight"],
            (0, 1),
            (3, 2),
        ),
    )
    assert params["grounding"]["logit_scale"] == tensors["seg_model.model.sem_seg_head.predictor.logit_scale"]


def test_tree_is_the_models(tmp_path):
    from lgjax.models.llava_grounding import abstract_params

    convert(folders.checkpoint(tmp_path / "source", folders.state()), tmp_path / "converted")
    loaded = store.load(tmp_path / "converted")
    want = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_params(loaded.config))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), loaded.params) == want
    assert loaded.config == configs.debug()


@pytest.mark.parametrize(("at_conversion", "at_load"), [("bfloat16", None), (None, jnp.bfloat16)])
def test_casts_leave_the_vision_models_alone(tmp_path, at_conversion, at_load):
    tensors = folders.state("float32")
    source = folders.checkpoint(tmp_path / "source", tensors)
    convert(source, tmp_path / "converted", dtype=at_conversion)
    params = store.load(tmp_path / "converted", dtype=at_load).params
    for part, want in (("llama", jnp.bfloat16), ("clip", jnp.bfloat16), ("projector", jnp.bfloat16)):
        assert {leaf.dtype for leaf in jax.tree.leaves(params[part])} == {jnp.dtype(want)}
    for part in ("grounding", "prompt"):
        assert {leaf.dtype for leaf in jax.tree.leaves(params[part])} == {jnp.dtype(jnp.float32)}
    want = tensors["model.layers.0.self_attn.q_proj.weight"].astype(ml_dtypes.bfloat16).T
    got = np.asarray(params["llama"]["layers_0"]["self_attn"]["q_proj"]["kernel"])
    assert got.tobytes() == want.tobytes()


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path):
    tensors = folders.state("float32")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = 1e6
    source = folders.checkpoint(tmp_path / "source", tensors)
    with pytest.raises(ValueError, match=r"layers_0/mlp/up_proj/kernel.*float16 cannot hold"):
        convert(source, tmp_path / "converted", dtype="float16")
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_change_of_format_and_shards(tmp_path, form):
    source = tmp_path / "source"
    other = "bin" if form == "safetensors" else "safetensors"
    synthetic.write_checkpoint(source, configs.debug(), dtype="bfloat16", form=other, shards=1)
    convert(source, tmp_path / "converted")
    names = export.export(tmp_path / "converted", tmp_path / "back", format=form, shard_bytes=1_000_000)
    assert len(names) == 3
    assert folders.read(tmp_path / "back") == folders.read(source)
    index = json.loads((tmp_path / "back" / export.read.INDEX[form]).read_text())
    assert list(index["weight_map"]) == list(manifest.manifest(configs.debug()))
    again = convert(tmp_path / "back", tmp_path / "again")
    assert again.fingerprint == metas.read(tmp_path / "converted").fingerprint


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_trained_parameters_give_the_canonical_layout(tmp_path, form):
    from lgjax.text.tokenizer import Tokenizer

    tensors = folders.state("float32")
    convert(folders.checkpoint(tmp_path / "source", tensors), tmp_path / "converted")
    loaded = store.load(tmp_path / "converted")
    trained = jax.tree.map(lambda leaf: leaf * 2, loaded.params)
    tokenizer = Tokenizer.load(tmp_path / "converted" / "tokenizer")
    store.save(
        tmp_path / "trained", loaded.config, trained, tokenizer=tokenizer.files, tokens=loaded.meta.tokens
    )
    export.export(tmp_path / "trained", tmp_path / "back", format=form)
    got = folders.read(tmp_path / "back")
    entries = manifest.manifest(configs.debug())
    assert got.keys() == entries.keys()
    for key, entry in entries.items():
        want = {"dead": np.zeros_like(tensors[key]), "buffer": tensors[key]}.get(entry.kind, 2 * tensors[key])
        assert got[key][2] == np.ascontiguousarray(want).tobytes(), key
    convert(tmp_path / "back", tmp_path / "again")
    again = store.load(tmp_path / "again")
    assert again.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, again.params, trained)


def test_description_names_what_matters(tmp_path):
    convert(folders.checkpoint(tmp_path / "source", folders.state("float16")), tmp_path / "converted")
    text = describe.describe(tmp_path / "converted")
    for word in ("llama", "float16", "<seg> 802", "% 535", "803 rows", "before", "1 bin file", "projector"):
        assert word in text, word
    with pytest.raises(FileNotFoundError, match="run `lgjax convert` on it first"):
        describe.describe(tmp_path / "source")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        describe.describe(tmp_path / "nowhere")


def test_export_refuses_a_part_and_an_existing_target(tmp_path):
    convert(folders.checkpoint(tmp_path / "source", folders.state()), tmp_path / "converted")
    with pytest.raises(FileExistsError, match="exists"):
        export.export(tmp_path / "converted", tmp_path / "source")
    loaded = store.load(tmp_path / "converted", parts=("llama",))
    store.save(tmp_path / "part", loaded.config, loaded.params)
    with pytest.raises(ValueError, match="holds only llama"):
        export.export(tmp_path / "part", tmp_path / "back")
