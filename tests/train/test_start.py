"""Where a run starts: parameters out of several folders, fresh ones, new rows of tables, the tokenizer."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lgjax.config import ModelConfig, debug
from lgjax.convert import store
from lgjax.convert.convert import convert
from lgjax.convert.manifest import manifest
from lgjax.convert.store import flattened, nested
from lgjax.models.llava_grounding import abstract_params
from lgjax.parallel.mesh import make_mesh
from lgjax.text.tokenizer import GROUNDING_TOKENS, MODEL_FILE, Tokenizer
from lgjax.train.config import Rates, TrainConfig
from lgjax.train.groups import EMBED, HEAD
from lgjax.train.start import load_tokenizer, start_frozen, start_state
from tests import synthetic
from tests.convert import folders
from tests.train.micro import micro, micro_model, whole
from tests.weights import fill

LANGUAGE = dataclasses.replace(micro_model(), grounding=None, prompt=None)
PIECES = 800  # of the small tokenizer


def config(*start: Path, model: ModelConfig = LANGUAGE, **changes: Any) -> TrainConfig:
    rates = changes.pop("rates", Rates(projector=1))
    loss = {"parts": ("language",)}
    return micro(model=model, start=tuple(map(str, start)), optim={"rates": rates}, loss=loss, **changes)


@functools.cache
def values(seed: int, model: ModelConfig = LANGUAGE) -> dict[str, np.ndarray]:
    """Parameters by path."""
    return {path: np.asarray(leaf) for path, leaf in flattened(fill(abstract_params(model), seed)).items()}


def write(folder: Path, seed: int, *parts: str, model: ModelConfig = LANGUAGE, **options: Any) -> Path:
    """A checkpoint of some parts of the model with these sizes."""
    chosen = {path: leaf for path, leaf in values(seed, model).items() if path.split("/")[0] in parts}
    store.save(folder, model, nested(chosen), **options)
    return folder


def all_params(config: TrainConfig) -> dict[str, np.ndarray]:
    state = start_state(config, make_mesh())
    found = whole(state.trained, state.frozen, config.model)
    return {path: np.asarray(leaf) for path, leaf in flattened(found).items()}


def test_parts_come_from_their_folders_and_the_last_wins(tmp_path):
    first = write(tmp_path / "first", 1, "llama", "projector")
    second = write(tmp_path / "second", 2, "clip")
    third = write(tmp_path / "third", 3, "projector")
    seeds = {"llama": 1, "clip": 2, "projector": 3}
    for scan_layers in (False, True):
        found = all_params(config(first, second, third, scan_layers=scan_layers))
        assert found.keys() == values(1).keys()
        for path, leaf in found.items():
            assert np.array_equal(leaf, values(seeds[path.split("/")[0]])[path]), path
    seeds["projector"] = 1
    found = all_params(config(third, first, second))
    assert all(np.array_equal(leaf, values(seeds[path.split("/")[0]])[path]) for path, leaf in found.items())


def test_what_no_folder_holds_is_fresh_and_depends_on_the_seed_alone(tmp_path):
    start = write(tmp_path / "start", 1, "llama", "clip")
    one, again, other = (all_params(config(start, seed=seed)) for seed in (4, 4, 5))
    fresh = {path for path in one if path.startswith("projector")}
    assert len(fresh) == 2
    for path, leaf in one.items():
        assert np.array_equal(leaf, again[path]), path
        if path not in fresh:
            assert np.array_equal(leaf, values(1)[path]) and np.array_equal(leaf, other[path]), path
    kernel = one["projector/kernel"]
    assert not np.array_equal(kernel, other["projector/kernel"]) and kernel.std() > 0
    # the same number whatever else is fresh
    assert np.array_equal(kernel, all_params(config(seed=4))["projector/kernel"])


def test_folders_may_hold_more_than_the_model_has(tmp_path):
    start = write(
        tmp_path / "all", 1, "llama", "clip", "projector", "grounding", "prompt", model=micro_model()
    )
    found = all_params(config(start))
    assert {path.split("/")[0] for path in found} == {"llama", "clip", "projector"}
    assert all(np.array_equal(leaf, values(1, micro_model())[path]) for path, leaf in found.items())


def test_frozen_part_alone_is_that_of_the_state(tmp_path):
    start = write(tmp_path / "start", 1, "llama", "clip", "projector")
    chosen = config(start, rates=Rates(projector=1, new_tokens=1), frozen="int8", scan_layers=True)
    frozen, state = start_frozen(chosen, make_mesh()), start_state(chosen, make_mesh())
    assert jax.tree.structure(frozen) == jax.tree.structure(state.frozen)
    for one, other in zip(jax.tree.leaves(frozen), jax.tree.leaves(state.frozen), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_new_rows_are_the_mean_of_the_old_ones(tmp_path, dtype):
    """Spec 2.1, for a language model that has never seen the grounding tokens."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    before = dataclasses.replace(LANGUAGE, llama=dataclasses.replace(LANGUAGE.llama, vocab_size=PIECES))
    params = {path: leaf.astype(kind) for path, leaf in values(1, before).items()}
    store.save(tmp_path / "start", before, nested(params))
    found = all_params(config(tmp_path / "start"))
    assert found[EMBED].shape == (PIECES + 3, 64) and found[HEAD].shape == (64, PIECES + 3)
    for path, axis in ((EMBED, 0), (HEAD, 1)):
        old, new = np.split(found[path], [PIECES], axis)
        assert np.array_equal(old, params[path].astype(np.float32))
        mean = params[path].astype(np.float64).mean(axis, keepdims=True)
        step = np.abs(mean) * float(ml_dtypes.finfo(kind).eps) + 1e-7
        assert (np.abs(new - mean) <= step).all()


def test_whole_checkpoint_of_the_original(tmp_path):
    """The bits of every tensor, under the original's names."""
    state = folders.state("float16", seed=6)
    convert(folders.checkpoint(tmp_path / "torch", state), tmp_path / "model", seg_state="at")
    found = all_params(config(tmp_path / "model", model=dataclasses.replace(debug(), seg_state="at")))
    entries = {e.path: (key, e.layout) for key, e in manifest(debug()).items() if e.path}
    assert found.keys() == entries.keys()
    for path, leaf in found.items():
        key, layout = entries[path]
        axes = {"as_is": None, "linear": (1, 0), "conv": (2, 3, 1, 0)}[layout]
        want = state[key] if axes is None else state[key].transpose(axes)
        assert np.array_equal(leaf, want.astype(np.float32)), path


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "llama",
            {"mlp_size": 96},
            r"start has model.llama.mlp_size = 96, the configuration 128; give --model.llama.mlp_size",
        ),
        ("llama", {"num_kv_heads": 4}, r"start has model.llama.num_kv_heads = 4, the configuration 2"),
        (
            "llama",
            {"vocab_size": 900},
            r"start holds 'llama/embed_tokens' of shape \[900, 64\], .*\[803, 64\]",
        ),
        ("clip", {"image_size": 42}, r"start has model.clip.image_size = 42, the configuration 28"),
    ],
)
def test_other_sizes_are_named(tmp_path, part, changes, message):
    other = dataclasses.replace(LANGUAGE, **{part: dataclasses.replace(getattr(LANGUAGE, part), **changes)})
    start = write(tmp_path / "start", 1, part, model=other)
    with pytest.raises(ValueError, match=message) as found:
        start_state(config(start), make_mesh())
    assert "\n" not in str(found.value)


def test_sizes_inside_a_vision_model_are_named(tmp_path):
    other = micro_model()
    swin = dataclasses.replace(other.prompt.swin, window=8)
    other = dataclasses.replace(other, prompt=dataclasses.replace(other.prompt, swin=swin))
    start = write(tmp_path / "start", 1, "prompt", model=other)
    with pytest.raises(ValueError, match=r"model.prompt.swin.window = 8, the configuration 4; give --model"):
        start_state(config(start, model=micro_model()), make_mesh())


def test_which_state_stands_for_a_phrase_matters_where_both_models_are_there(tmp_path):
    """A language model that was trained with one state of <seg> does not take the other; a bare part does."""
    before = dataclasses.replace(micro_model(), seg_state="before")
    start = write(tmp_path / "both", 1, "llama", "grounding", model=before)
    with pytest.raises(ValueError, match=r"both takes the state before .* at; --model.seg-state before"):
        start_state(config(start, model=micro_model()), make_mesh())
    parts = "llama", "clip", "projector", "prompt"
    start = [
        write(tmp_path / "others", 1, *parts, model=micro_model()),
        write(tmp_path / "part", 2, "grounding", model=before),
    ]
    found = all_params(config(*start, model=micro_model()))
    seeds = {**dict.fromkeys(parts, 1), "grounding": 2}
    for path, leaf in found.items():
        assert np.array_equal(leaf, values(seeds[path.split("/")[0]], micro_model())[path]), path


def test_a_projector_of_another_width_is_named(tmp_path):
    small = dataclasses.replace(LANGUAGE, clip=dataclasses.replace(LANGUAGE.clip, hidden_size=16))
    start = write(tmp_path / "start", 1, "projector", model=small)
    with pytest.raises(ValueError, match=r"'projector/kernel' of shape \[16, 64\], .* asks for \[32, 64\]"):
        start_state(config(start), make_mesh())


def test_folders_that_hold_no_checkpoint_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not an lgjax checkpoint.*no such folder"):
        start_state(config(tmp_path / "nowhere"), make_mesh())
    folders.beside(tmp_path / "torch")
    with pytest.raises(FileNotFoundError, match=r"torch is not an lgjax checkpoint.*run `lgjax convert`"):
        start_state(config(tmp_path / "torch"), make_mesh())
    start = write(tmp_path / "start", 1, "projector")
    (start / "lgjax.json").write_text("{")
    with pytest.raises(ValueError, match=r"lgjax.json is damaged"):
        start_state(config(start), make_mesh())


def with_tokenizer(folder: Path, files: dict[str, bytes], seed: int = 1) -> Path:
    return write(folder, seed, "llama", tokenizer=files)


@functools.cache
def grounded_tokenizer() -> Tokenizer:
    return Tokenizer.from_model_file(synthetic.TINY_MODEL)


def test_a_plain_tokenizer_gets_the_grounding_tokens(tmp_path):
    """That of a converted LLaMA: no added tokens beside it, or a configuration that knows none of ours."""
    plain = {MODEL_FILE: synthetic.TINY_MODEL.read_bytes()}
    config_file = {
        "tokenizer_config.json": b'{"tokenizer_class": "LlamaTokenizer", "model_max_length": 2048}'
    }
    empty = {"added_tokens.json": b"{}"}
    for number, files in enumerate((plain, plain | config_file, plain | config_file | empty)):
        found = load_tokenizer(config(with_tokenizer(tmp_path / f"{number}", files)))
        assert [found.added[token] for token in GROUNDING_TOKENS] == [PIECES, PIECES + 1, PIECES + 2]
        assert found.encode("a dog <seg>")[-1] == PIECES + 2


def test_a_tokenizer_with_grounding_tokens_keeps_their_ids(tmp_path):
    """Also where only tokenizer_config.json names them, in another order than ours."""
    model = synthetic.TINY_MODEL.read_bytes()
    order = {PIECES: "<seg>", PIECES + 1: "<g_s>", PIECES + 2: "<g_e>"}
    added = ", ".join(f'"{text}": {i}' for i, text in order.items())
    decoder = ", ".join(f'"{i}": {{"content": "{text}"}}' for i, text in order.items())
    files = (
        {MODEL_FILE: model, "added_tokens.json": f"{{{added}}}".encode()},
        {MODEL_FILE: model, "tokenizer_config.json": f'{{"added_tokens_decoder": {{{decoder}}}}}'.encode()},
    )
    for number, some in enumerate(files):
        found = load_tokenizer(config(with_tokenizer(tmp_path / f"{number}", some)))
        assert {i: token for token, i in found.added.items()} == order


def test_which_tokenizer(tmp_path):
    """The one that is given, else that of the last folder that has one, else the small one of the package."""
    files = grounded_tokenizer().files
    marked = [{**files, "special_tokens_map.json": f'{{"mark": {i}}}'.encode()} for i in range(2)]
    first, second = (with_tokenizer(tmp_path / f"{i}", marked[i]) for i in range(2))
    last = write(tmp_path / "last", 1, "clip")
    assert load_tokenizer(config(first, second, last)).files == marked[1]
    assert load_tokenizer(config(second, first, last)).files == marked[0]
    assert load_tokenizer(config(first, tokenizer=str(second / "tokenizer"))).files == marked[1]
    file = str(second / "tokenizer" / MODEL_FILE)
    assert load_tokenizer(config(first, tokenizer=file)).files == marked[1]
    assert load_tokenizer(config()).vocab_size == 803


def test_a_tokenizer_that_is_not_there_is_an_error_even_if_a_start_has_one(tmp_path):
    start = with_tokenizer(tmp_path / "start", grounded_tokenizer().files)
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        load_tokenizer(config(start, tokenizer=str(tmp_path / "nowhere")))


def test_a_tokenizer_of_another_model_is_named(tmp_path):
    start = with_tokenizer(tmp_path / "start", grounded_tokenizer().files)
    model = dataclasses.replace(LANGUAGE, llama=dataclasses.replace(LANGUAGE.llama, vocab_size=900))
    with pytest.raises(ValueError, match=r"start/tokenizer.* has 803 ids .* model 900 rows .*--tokenizer"):
        load_tokenizer(config(start, model=model))
    with pytest.raises(ValueError, match=r"the package's small tokenizer has 803 ids"):
        load_tokenizer(config(model=model))


def test_start_on_a_mesh_holds_the_same_numbers(tmp_path):
    start = write(tmp_path / "start", 1, "llama", "clip")
    chosen = config(start, rates=Rates(llama=1, embed=1), scan_layers=True)
    one, other = (start_state(chosen, make_mesh(*sizes)) for sizes in ((1, 1, 1), (1, 2, 2)))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert any(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(other.trained))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.array_equal(jnp.asarray(a), np.asarray(b))
