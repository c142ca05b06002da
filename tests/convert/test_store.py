"""The checkpoint folder: whole or absent, read in parts and onto meshes, checked by its fingerprint."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.convert import fingerprint, lazy, store, verify
from lgjax.convert import meta as metas
from lgjax.convert.convert import convert
from lgjax.parallel import mesh as meshes
from lgjax.parallel import rules
from lgjax.text.tokenizer import Tokenizer
from tests.convert import folders

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    source = folders.checkpoint(root / "source", folders.state("float32"), shards=2)
    convert(source, root / "converted")
    return root / "converted"


SLOW_CONVERSION = """
import sys, time
from lgjax.convert.convert import convert

def progress(path, done, total):
    print(path, flush=True)
    time.sleep(0.005)

convert(sys.argv[1], sys.argv[2], progress=progress, overwrite=True)
"""


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("after", [1, 200, 480])
def test_killed_conversion_leaves_nothing_that_loads(tmp_path, converted, after, existing):
    target = tmp_path / "target"
    if existing:
        shutil.copytree(converted, target)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW_CONVERSION, str(converted.parent / "source"), str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
        text=True,
    )
    assert run.stdout is not None
    for _ in range(after):
        assert run.stdout.readline()
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    left = [path for path in tmp_path.iterdir() if path != target]
    assert left, "the run was killed too late to show anything"
    for path in left:
        with pytest.raises(FileNotFoundError, match="not an lgjax checkpoint"):
            store.load(path)
    if existing:
        assert described(target) == described(converted)
    else:
        assert not target.exists()
    convert(converted.parent / "source", target, overwrite=existing)
    store.load(target)
    assert described(target) == described(converted)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def described(folder):
    """Everything about a checkpoint but the names that Orbax gives its files."""
    return dataclasses.replace(metas.read(folder), files={})


def test_existing_targets(tmp_path, converted):
    source, target = converted.parent / "source", tmp_path / "target"
    target.mkdir()
    convert(source, target)  # an empty folder is free to take
    with pytest.raises(FileExistsError, match="exists; choose another folder"):
        convert(source, target)
    convert(source, target, overwrite=True, seg_state="at")
    assert store.load(target).config.seg_state == "at"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="no lgjax checkpoint; it is not overwritten"):
        convert(source, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_full_disk_is_seen_before_anything_is_written(tmp_path, converted, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(OSError, match=r"0\.00 GB free, 0\.01 GB are needed"):
        convert(converted.parent / "source", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_at_all_bytes(tmp_path, converted):
    seen = []
    convert(converted.parent / "source", tmp_path / "target", progress=lambda *step: seen.append(step))
    paths, done, totals = zip(*seen, strict=True)
    params = store.load(converted).params
    assert set(paths) == set(store.flattened(params)) and len(paths) == len(set(paths))
    assert len(set(totals)) == 1 and done[-1] == totals[0]
    assert list(done) == sorted(done)
    assert totals[0] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("parts", [("llama",), ("clip", "projector"), ("prompt",)])
def test_parts(converted, parts):
    whole, some = store.load(converted).params, store.load(converted, parts=parts).params
    assert set(some) == set(parts)
    for part in parts:
        jax.tree.map(np.testing.assert_array_equal, some[part], whole[part])


def test_parts_that_are_not_there(tmp_path, converted):
    with pytest.raises(FileNotFoundError, match=r"holds llama, .* but not vision"):
        store.load(converted, parts=("llama", "vision"))


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(2, 2, 2), (1, 8, 1), (1, 1, 8), (8, 1, 1)])
def test_mesh(converted, data, fsdp, tensor):
    from lgjax.models.llava_grounding import abstract_params, logical_axes

    mesh = meshes.make_mesh(data, fsdp, tensor)
    plain, spread = store.load(converted), store.load(converted, mesh=mesh, dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, spread.params, plain.params)
    want = rules.shardings(abstract_params(plain.config), logical_axes(plain.config), mesh)
    jax.tree.map(lambda leaf, sharding: np.testing.assert_equal(leaf.sharding, sharding), spread.params, want)
    kernel = spread.params["llama"]["layers_0"]["mlp"]["up_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (64 // fsdp, 128 // tensor)
    fingerprint.verify_fingerprint(spread.params, spread.config, spread.meta.fingerprint, 1e-5)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float16])
def test_fingerprint_accepts_its_own_parameters_in_any_dtype(converted, dtype):
    loaded = store.load(converted, dtype=dtype)
    fingerprint.verify_fingerprint(loaded.params, loaded.config, loaded.meta.fingerprint)
    if dtype is None:
        fingerprint.verify_fingerprint(loaded.params, loaded.config, loaded.meta.fingerprint, 1e-6)


@pytest.mark.parametrize(
    "path",
    [
        "llama/embed_tokens",
        "llama/norm/scale",
        "llama/lm_head/kernel",
        "llama/layers_1/mlp/gate_proj/kernel",
        "llama/layers_0/mlp/down_proj/kernel",
        "clip/patch_embedding/kernel",
        "clip/layers_1/mlp/fc2/kernel",
        "projector/kernel",
        "projector/bias",
        "grounding/class_embed",
        "grounding/enc_output/kernel",
        "prompt/obj_projector/bias",
    ],
)
@pytest.mark.parametrize("how", ["reversed", "shifted", "infinite"])
def test_fingerprint_sees_changed_tensors(converted, path, how):
    flat = store.flattened(store.load(converted).params)
    changed = {
        "shifted": jnp.roll(flat[path], 1),
        "reversed": flat[path][::-1],
        "infinite": flat[path] * jnp.nan,
    }
    flat[path] = changed[how]
    meta = metas.read(converted)
    with pytest.raises(ValueError, match="do not give the outputs that were recorded"):
        fingerprint.verify_fingerprint(store.nested(flat), meta.config, meta.fingerprint)


def test_fingerprint_is_the_networks_output(converted):
    from lgjax.models.layers import Linear

    loaded = store.load(converted)
    x = jnp.cos(jnp.arange(32.0))
    projected = Linear(64, ("vision", "embed")).apply({"params": loaded.params["projector"]}, x)
    np.testing.assert_allclose(loaded.meta.fingerprint["projector"], projected[:8], rtol=1e-5)


def test_tokenizer_is_checked(converted):
    meta = metas.read(converted)
    tokenizer = Tokenizer.load(converted / store.TOKENIZER)
    verify.verify_tokens(tokenizer, meta.tokens)
    with pytest.raises(ValueError, match="percent is 535, recorded 1273"):
        verify.verify_tokens(tokenizer, dataclasses.replace(meta.tokens, percent=1273))


def test_damaged_checkpoints(tmp_path, converted):
    for name, damage, words in (
        ("json", lambda f: (f / "lgjax.json").write_text("{"), "lgjax.json is damaged"),
        ("version", lambda f: (f / "lgjax.json").write_text('{"version": 99}'), "version 99"),
        ("field", lambda f: (f / "lgjax.json").write_text('{"version": 1, "x": 1}'), "damaged"),
        ("params", lambda f: shutil.rmtree(f / "params"), "is missing"),
    ):
        folder = tmp_path / name
        shutil.copytree(converted, folder)
        damage(folder)
        with pytest.raises(ValueError, match=words):
            store.load(folder)


def test_meta_survives_json(tmp_path, converted):
    meta = metas.read(converted)
    metas.write(tmp_path, meta)
    assert metas.read(tmp_path) == meta


@pytest.mark.parametrize("shape", [(3, 5), (300, 130), (1, 7), (257, 1)])
def test_contiguous(shape):
    array = np.random.default_rng(0).standard_normal(shape)
    copied = lazy.contiguous(array.T)
    assert copied.flags.c_contiguous
    np.testing.assert_array_equal(copied, array.T)
    assert lazy.contiguous(np.float32(3)[None].reshape(())).shape == ()
