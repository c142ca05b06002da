"""Every fault of a checkpoint is refused by its name, and nothing is written."""

import json
import os
import pickle

import numpy as np
import pytest

from lgjax.convert import manifest
from lgjax.convert.convert import convert
from tests.convert import folders

torch = pytest.importorskip("torch")

QUERY = "model.layers.1.self_attn.q_proj.weight"
BOXES = "seg_model.model.sem_seg_head.predictor.bbox_embed.1.layers.0.weight"


@pytest.fixture
def tensors():
    return folders.state("float16")


def refused(source, tmp_path, *words, **options):
    with pytest.raises(ValueError) as caught:
        convert(source, tmp_path / "target", **options)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert sorted(path.name for path in tmp_path.iterdir() if "target" in path.name) == []
    return message


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("part", ["llama", "clip", "projector", "grounding", "prompt"])
def test_missing_key(tmp_path, tensors, part, form):
    entries = manifest.manifest(folders.configs.debug(), (part,))
    key = [key for key, entry in entries.items() if entry.kind == "parameter" and "bbox" not in key][-1]
    if "norm" in key:
        key = "seg_model.model.sem_seg_head.predictor.enc_output.weight"
    del tensors[key]
    source = folders.checkpoint(tmp_path / "source", tensors, form=form)
    message = refused(source, tmp_path, f"missing: '{key}'", "expected shape")
    assert "1 fault found" in message


@pytest.mark.parametrize("kind", ["alias", "dead"])
def test_missing_keys_that_strict_loading_asks_for(tmp_path, tensors, kind):
    entries = manifest.manifest(folders.configs.debug())
    key = next(key for key, entry in entries.items() if entry.kind == kind)
    del tensors[key]
    refused(folders.checkpoint(tmp_path / "source", tensors), tmp_path, f"missing: '{key}'")


def test_unexpected_key(tmp_path, tensors):
    tensors["seg_model.model.lang_encoder.weight"] = np.zeros((3, 4), np.float32)
    source = folders.checkpoint(tmp_path / "source", tensors)
    refused(source, tmp_path, "unexpected: 'seg_model.model.lang_encoder.weight' of shape [3, 4]")


def test_key_in_two_shards(tmp_path, tensors):
    source = folders.checkpoint(tmp_path / "source", tensors, shards=2)
    folders.write_torch(source / "pytorch_model-00003.bin", {QUERY: tensors[QUERY]})
    refused(source, tmp_path, f"key twice: '{QUERY}' is in pytorch_model-00001-of-00002.bin and in")


@pytest.mark.parametrize("key", [QUERY, BOXES, "lm_head.weight", "model.norm.weight"])
def test_wrong_shape(tmp_path, tensors, key):
    shape = list(tensors[key].shape)
    tensors[key] = np.concatenate([tensors[key], tensors[key][:1]])
    source = folders.checkpoint(tmp_path / "source", tensors)
    refused(source, tmp_path, f"wrong shape: '{key}' is [{shape[0] + 1}", f"expected {shape}")


def test_wrong_dtype(tmp_path, tensors):
    tensors[QUERY] = tensors[QUERY].astype(np.int8)
    source = folders.checkpoint(tmp_path / "source", tensors)
    refused(source, tmp_path, f"wrong dtype: '{QUERY}' is int8")


@pytest.mark.parametrize("key", [BOXES, "interactive_model.model.sem_seg_head.predictor.decoder.norm.bias"])
def test_unequal_aliases(tmp_path, tensors, key):
    changed = tensors[key].copy()
    changed.flat[0] += 1
    tensors[key] = changed
    source = folders.checkpoint(tmp_path / "source", tensors)
    refused(source, tmp_path, f"unequal aliases: '{key}' differs from", "1 fault found")


def test_window_index_of_another_order(tmp_path, tensors):
    key = "seg_model.model.backbone.layers.0.blocks.0.attn.relative_position_index"
    tensors[key] = tensors[key].T.copy()
    refused(folders.checkpoint(tmp_path / "source", tensors), tmp_path, f"wrong buffer: '{key}'")


def test_rows_that_are_not_the_tokenizers(tmp_path, tensors):
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[key] = np.concatenate([tensors[key], tensors[key][:1]])
    source = folders.checkpoint(tmp_path / "source", tensors)
    folders.beside(source, vocab_size=804)
    refused(source, tmp_path, "row count: the embedding has 804 rows, the tokenizer 803 ids", "1 fault found")


def test_ids_in_another_order(tmp_path, tensors):
    source = folders.checkpoint(tmp_path / "source", tensors)
    (source / "added_tokens.json").write_text(json.dumps({"<g_s>": 801, "<g_e>": 800, "<seg>": 802}))
    refused(source, tmp_path, "token ids: <g_s> 801, <g_e> 800, <seg> 802; expected 800, 801, 802")


@pytest.mark.parametrize("token", ["<g_s>", "<g_e>", "<seg>"])
def test_tokens_missing(tmp_path, tensors, token):
    source = folders.checkpoint(tmp_path / "source", tensors)
    added = json.loads((source / "added_tokens.json").read_text())
    del added[token]
    (source / "added_tokens.json").write_text(json.dumps(added))
    refused(source, tmp_path, "tokenizer:", token)


def test_no_percent_piece(tmp_path, tensors):
    from sentencepiece import sentencepiece_model_pb2

    source = folders.checkpoint(tmp_path / "source", tensors)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((source / "tokenizer.model").read_bytes())
    next(piece for piece in model.pieces if piece.piece == "▁%").piece = "▁no-percent"
    (source / "tokenizer.model").write_bytes(model.SerializeToString())
    refused(source, tmp_path, "tokenizer:", "'▁%'")


def test_no_tokenizer(tmp_path, tensors):
    source = folders.checkpoint(tmp_path / "source", tensors)
    (source / "tokenizer.model").unlink()
    refused(source, tmp_path, "tokenizer:", "tokenizer.model")
    meta = convert(source, tmp_path / "target", tokenizer=folders.synthetic.TINY_MODEL)
    assert meta.tokens is not None and meta.tokens.seg == 802


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_truncated_file(tmp_path, tensors, form, kept):
    source = folders.checkpoint(tmp_path / "source", tensors, shards=2, form=form)
    path = sorted(source.glob(f"*.{form}"))[0]
    os.truncate(path, int(kept * path.stat().st_size) if kept < 1 else kept)
    refused(source, tmp_path, f"unreadable file: {path.name} (", "truncated")


def test_value_that_is_no_tensor(tmp_path, tensors):
    source = folders.checkpoint(tmp_path / "source", {**tensors, "note": "hello", "steps": [1, 2]})
    refused(source, tmp_path, "not a tensor: 'note'", "is a str", "not a tensor: 'steps'", "2 faults")


def test_pickle_with_code(tmp_path, tensors):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    source = folders.checkpoint(tmp_path / "source", tensors)
    torch.save({**{k: torch.zeros(1) for k in tensors}, "x": Harmful()}, source / "pytorch_model.bin")
    refused(source, tmp_path, "unsafe file: pytorch_model.bin holds code or objects", "mkdir")
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Harmful()}, protocol=2))
    refused(source, tmp_path, "unsafe file: pytorch_model.bin")
    assert not (tmp_path / "executed").exists()


def test_missing_shard(tmp_path, tensors):
    source = folders.checkpoint(tmp_path / "source", tensors, shards=3)
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    message = refused(source, tmp_path, "missing file: pytorch_model-00002-of-00003.bin (1 of 3 shards)")
    assert len(message.splitlines()) == 2  # not every key that it held


def test_index_that_names_other_files(tmp_path, tensors):
    source = folders.checkpoint(tmp_path / "source", tensors)
    index = {"weight_map": {QUERY: "pytorch_model-2.bin", "lm_head.bias": "pytorch_model.bin"}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    refused(
        source,
        tmp_path,
        "missing file: pytorch_model-2.bin, which pytorch_model.bin.index.json names",
        "puts 'lm_head.bias' into pytorch_model.bin, which lacks it",
    )
    (source / "pytorch_model.bin.index.json").write_text("{}")
    refused(source, tmp_path, "unreadable index")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"mm_projector_type": "mlp2x_gelu"}, "mm_projector_type is 'mlp2x_gelu'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'cls_patch'"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio is 'pad'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"mm_hidden_size": 48}, "mm_hidden_size is 48"),
        ({"num_hidden_layers": 3}, "missing: 'model.layers.2."),
        ({"num_hidden_layers": 1}, "unexpected: 'model.layers.1."),
        ({"num_key_value_heads": 4}, "wrong shape: 'model.layers.0.self_attn.k_proj.weight' is [32, 64]"),
    ],
)
def test_config_that_is_not_supported(tmp_path, tensors, change, words):
    source = folders.checkpoint(tmp_path / "source", tensors)
    folders.beside(source, **change)
    refused(source, tmp_path, words)


def test_config_missing_or_damaged(tmp_path, tensors):
    source = folders.checkpoint(tmp_path / "source", tensors)
    (source / "config.json").write_text("{")
    refused(source, tmp_path, "config.json: not valid JSON")
    (source / "config.json").unlink()
    refused(source, tmp_path, "config.json: not found beside the weights")


def test_all_findings_in_one_message(tmp_path, tensors):
    del tensors[QUERY]
    tensors["extra"] = np.zeros(2, np.float32)
    tensors["model.norm.weight"] = np.ones(3, np.float16)
    source = folders.checkpoint(tmp_path / "source", tensors)
    (source / "tokenizer.model").unlink()
    message = refused(source, tmp_path, "4 faults found")
    for word in ("missing:", "unexpected:", "wrong shape:", "tokenizer:"):
        assert sum(line.strip().startswith(word) for line in message.splitlines()) == 1


def test_long_lists_are_cut(tmp_path, tensors):
    kept = {key: value for key, value in tensors.items() if "grounding" not in key and "layers.0" not in key}
    message = refused(folders.checkpoint(tmp_path / "source", kept), tmp_path, "missing: ", " more")
    assert len(message.splitlines()) < 20


def test_unknown_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        convert(tmp_path / "nowhere", tmp_path / "target")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no weights in .*an empty folder"):
        convert(tmp_path / "empty", tmp_path / "target")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint that is known .1 keys: a"):
        convert(tmp_path / "other.pt", tmp_path / "target")
    for options, words in (
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"seg_state": "after"}, "seg_state 'after'"),
    ):
        with pytest.raises(Exception, match=words):
            convert(tmp_path / "other.pt", tmp_path / "target", **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_numbers_that_are_not_finite(tmp_path, dtype, wrong):
    tensors = folders.state(dtype)
    tensors[QUERY] = tensors[QUERY].copy()
    tensors[QUERY][1, 2] = wrong
    source = folders.checkpoint(tmp_path / "source", tensors)
    refused(source, tmp_path, "'llama/layers_1/self_attn/q_proj/kernel' holds 1 numbers that are not finite")


def test_git_lfs_pointer_is_no_malice(tmp_path, tensors):
    source = folders.checkpoint(tmp_path / "source", tensors)
    (source / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    message = refused(source, tmp_path, "unreadable file: pytorch_model.bin", "git lfs pull")
    assert "unsafe" not in message and "1 fault found" in message


def test_other_architectures(tmp_path, tensors):
    llama = {key: value for key, value in tensors.items() if key.startswith(("model.layers", "model.norm"))}
    llama |= {key: tensors[key] for key in ("model.embed_tokens.weight", "lm_head.weight")}
    source = folders.checkpoint(tmp_path / "source", llama)
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, "model_type": "mistral"}))
    refused(source, tmp_path, "model_type is 'mistral', only LLaMA models are read")


def test_starting_part_of_which_little_fits(tmp_path, tensors):
    prefix = "seg_model.model."
    part = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    renamed = {key if i % 2 else f"{key}_": value for i, (key, value) in enumerate(part.items())}
    folders.write_torch(tmp_path / "half.pt", renamed)
    refused(tmp_path / "half.pt", tmp_path, "too little fits")
