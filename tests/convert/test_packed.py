"""Checkpoints of 8 and 4 bits: what is packed, every stored bit, the model's answers, faults in one line."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.convert import export, packed, store
from lgjax.convert import meta as metas
from lgjax.convert.convert import convert
from lgjax.convert.describe import describe
from lgjax.infer import engine
from lgjax.infer.chat import GroundedChat
from lgjax.infer.load import load_model
from lgjax.models.kernels import Packed, dense, shape_of
from lgjax.models.llama import Llama
from lgjax.parallel import mesh as meshes
from tests.convert import folders
from tests.infer.model import GROUNDED, picture
from tests.models.kernels import exact, normal
from tests.train.micro import micro

FORMS = ("int8", "int4")
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The same weights in the original's layout, converted, and packed."""
    root = tmp_path_factory.mktemp("packed")
    source = folders.checkpoint(root / "source", folders.state("float16"), form="safetensors")
    convert(source, root / "full")
    for form in FORMS:
        convert(source, root / form, quantize=form)
    return root


def arrays(folder) -> dict[str, np.ndarray]:
    return store.flattened(store.read_arrays(folder, store.stored_leaves(folder)))


def is_packed(leaf) -> bool:
    return isinstance(leaf, Packed)


@every_form
def test_which_matrices_are_packed(made, form):
    """Those of language model, tower and projector; 4 bits only in layers whose inputs are whole groups."""
    meta, full = metas.read(made / form), arrays(made / "full")
    matrices = {
        path
        for path, leaf in full.items()
        if path.split("/")[0] in ("llama", "clip", "projector")
        and leaf.ndim == 2
        and (path.endswith("/kernel") or path == "llama/embed_tokens")
    }
    assert meta.forms.keys() == matrices and len(matrices) > 20
    kinds = {path: ("/layers_" in path and full[path].shape[0] % 64 == 0) for path in matrices}
    assert any(kinds.values()) and not all(kinds.values())
    for path, fits in kinds.items():
        assert meta.forms[path] == ("int4" if form == "int4" and fits else "int8"), path
    stored = arrays(made / form)
    for path in full.keys() - matrices:
        assert stored[path].tobytes() == full[path].tobytes() and stored[path].dtype == full[path].dtype


@every_form
def test_every_stored_step_is_the_nearest(made, form):
    """By numpy in float64 from the numbers of the source: scales, steps and their order."""
    full, stored = arrays(made / "full"), arrays(made / form)
    for path, kept in metas.read(made / form).forms.items():
        want, table = full[path].astype(np.float64), path == "llama/embed_tokens"
        values, scale = stored[f"{path}/values"], stored[f"{path}/scale"]
        got = exact(Packed(values, scale))
        groups = 1 if kept == "int8" else len(want) // 64
        split = (len(want), 1, -1) if table else (groups, -1, want.shape[1])
        step = np.abs(want.reshape(split)).max(2 if table else 1) / (7 if kept == "int4" else 127)
        np.testing.assert_allclose(scale, step, rtol=1e-6)
        far = np.abs(got - want).reshape(split) / step[:, None]
        assert 0.3 < far.max() <= 0.5 + 1e-4, path  # to the nearest, and rounded at all


@every_form
def test_loaded_is_stored(made, form):
    stored = arrays(made / form)
    for dtype in (None, np.float32):
        params = store.flattened(store.load(made / form, dtype=dtype).params)
        for path in metas.read(made / form).forms:
            for name in Packed._fields:
                array = getattr(params[path], name)
                assert np.asarray(array).tobytes() == stored[f"{path}/{name}"].tobytes()
    clip = store.load(made / form, parts=("clip",))
    assert set(clip.params) == {"clip"}


@every_form
def test_an_lgjax_checkpoint_packs_as_its_source_does(made, tmp_path, form):
    again = convert(made / "full", tmp_path / "again", quantize=form)
    first = metas.read(made / form)
    assert (again.forms, again.fingerprint, again.tokens, again.dtypes) == (
        first.forms,
        first.fingerprint,
        first.tokens,
        first.dtypes,
    )
    a, b = arrays(tmp_path / "again"), arrays(made / form)
    assert a.keys() == b.keys() and all(a[path].tobytes() == b[path].tobytes() for path in a)


@every_form
def test_parts_and_other_dtypes(made, tmp_path, form):
    """`dtype` is that of what is not packed; steps come from the source's own numbers."""
    convert(made / "source", tmp_path / "half", quantize=form, dtype="bfloat16")
    a, b = arrays(tmp_path / "half"), arrays(made / form)
    assert all(
        a[path].tobytes() == b[path].tobytes() for path in a if path.endswith(("values", "/kernel/scale"))
    )
    assert a["llama/norm/scale"].dtype.name == "bfloat16"
    assert a["grounding/class_embed"].dtype == np.float32


@every_form
def test_packed_is_small(made, form):
    """Bytes of the packed matrices against their numbers: 1 and a half, and a little for the scales."""
    stored, full = arrays(made / form), arrays(made / "full")
    kept = {path for path, own in metas.read(made / form).forms.items() if own == form}
    count = sum(full[path].size for path in kept)
    values = sum(stored[f"{path}/values"].nbytes for path in kept)
    scales = sum(stored[f"{path}/scale"].nbytes for path in kept)
    assert values == count * (1 if form == "int8" else 0.5)
    assert scales <= count * (4 / 32 if form == "int8" else 4 / 64)


@every_form
def test_the_model_gives_the_outputs_of_the_numbers_that_are_kept(made, form):
    """Logits and picture tokens of packed kernels against those of plain kernels of the same numbers."""
    model = load_model(made / form, dtype="float32")
    plain = jax.tree.map(
        lambda leaf: dense(leaf) if is_packed(leaf) else leaf, model.params, is_leaf=is_packed
    )
    full = load_model(made / "full", dtype="float32").params
    ids = jnp.arange(40).reshape(2, 20) * 7 % model.config.llama.vocab_size
    side = model.config.clip.image_size
    images = normal(0, 2, side, side, 3)

    def run(module):
        return module.logits(module(module.embed(ids), jnp.arange(20)[None].repeat(2, 0))[0])

    @jax.jit
    def logits(params):
        stacked = "layers" in params
        return Llama(model.config.llama, scan_layers=stacked).apply({"params": params}, method=run)

    def outputs(params):
        return logits(params["llama"]), engine.encode_clip(model.config, params, images)

    for got, same, want in zip(outputs(model.params), outputs(plain), outputs(full), strict=True):
        size = float(np.abs(np.asarray(want)).max())
        np.testing.assert_allclose(got, same, rtol=0, atol=1e-4 * size)
        error = float(np.sqrt(np.mean((np.asarray(got) - np.asarray(want)) ** 2)) / np.std(np.asarray(want)))
        assert 1e-4 < error < (0.03 if form == "int8" else 0.4), error


@every_form
def test_it_chats(made, form):
    chat = GroundedChat.load(made / form)
    answer = chat.ask(picture(0), "What is it?", answer=GROUNDED, threshold=None)
    assert [len(phrase.boxes) for phrase in answer.phrases] == [1, 1]
    assert chat.ask(picture(0), "What is it?", max_tokens=5).num_tokens <= 5


@every_form
def test_on_a_mesh(made, form):
    """Arrays lie as their parameter does, outputs first, and give the numbers of one device."""
    mesh = meshes.make_mesh(2, 2, 2)
    plain, spread = store.load(made / form), store.load(made / form, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, spread.params, plain.params)
    up = spread.params["llama"]["layers_0"]["mlp"]["up_proj"]["kernel"]
    half = tuple(size // 2 for size in up.values.shape)
    assert up.values.addressable_shards[0].data.shape == half
    assert shape_of(up) == shape_of(plain.params["llama"]["layers_0"]["mlp"]["up_proj"]["kernel"])
    table = spread.params["llama"]["embed_tokens"].values
    assert table.addressable_shards[0].data.shape[1] == table.shape[1] // 2


@every_form
def test_inspect_says_what_is_kept(made, form):
    text = describe(made / form)
    assert "int8" in text and (form in text)
    assert f" {len(arrays(made / 'full'))} parameters" in text


@every_form
def test_what_needs_full_numbers_refuses(made, tmp_path, form):
    kept = "int8" if form == "int8" else "int4 and int8"
    for call, what in (
        (lambda: export.export(made / form, tmp_path / "out"), "an export"),
        (lambda: convert(made / form, tmp_path / "out", quantize="int8"), "a conversion"),
        (lambda: train_from(made / form), "training"),
    ):
        with pytest.raises(ValueError, match=f"{form} is kept in {kept}, {what} needs full numbers") as error:
            call()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def train_from(folder) -> None:
    from lgjax.parallel.mesh import make_mesh
    from lgjax.train.start import start_state

    start_state(micro(model=metas.read(folder).config, start=(str(folder),)), make_mesh())


def test_wrong_values(made, tmp_path):
    with pytest.raises(ValueError, match="quantize 'int3' is none of int8, int4"):
        convert(made / "source", tmp_path / "out", quantize="int3")
    with pytest.raises(ValueError, match="is an lgjax checkpoint already"):
        convert(made / "full", tmp_path / "out")
    for options in ({"tokenizer": made / "source"}, {"seg_state": "at"}):
        with pytest.raises(ValueError, match="is an lgjax checkpoint, which keeps its own tokenizer and seg"):
            convert(made / "full", tmp_path / "out", quantize="int8", **options)


def damage_form(folder, path, form):
    content = json.loads((folder / metas.FILE).read_text())
    content["forms"][path] = form
    if form is None:
        del content["forms"][path]
    (folder / metas.FILE).write_text(json.dumps(content))


UP = "llama/layers_0/mlp/up_proj/kernel"


@pytest.mark.parametrize(
    ("path", "form", "words"),
    [
        (UP, "int2", r"lgjax.json is damaged \(.*'int2' is none of"),
        (
            UP,
            "int8",
            r"records '.*up_proj/kernel' as int8, but keeps uint8 \[32, 128\] and float32 \[1, 128\]",
        ),
        (UP, None, "records '.*up_proj/kernel' as plain numbers, but keeps uint8"),
        (
            "llama/layers_9/mlp/up_proj/kernel",
            "int4",
            "records '.*layers_9.*' as int4, but keeps nothing of it",
        ),
    ],
)
def test_a_record_that_does_not_fit(made, tmp_path, path, form, words):
    shutil.copytree(made / "int4", tmp_path / "damaged")
    damage_form(tmp_path / "damaged", path, form)
    with pytest.raises(ValueError, match=words) as error:
        load_model(tmp_path / "damaged")
    assert "convert the checkpoint again" in str(error.value) and "\n" not in str(error.value)


@every_form
def test_numbers_that_changed_are_seen(made, tmp_path, form):
    """The fingerprint is of the numbers that are kept, so that it is tight for 4 bits too."""
    loaded = store.load(made / form)
    from lgjax.convert import fingerprint

    fingerprint.verify_fingerprint(loaded.params, loaded.config, loaded.meta.fingerprint, 1e-5)
    kernel = loaded.params["llama"]["layers_0"]["mlp"]["up_proj"]["kernel"]
    loaded.params["llama"]["layers_0"]["mlp"]["up_proj"]["kernel"] = kernel._replace(scale=kernel.scale * 1.2)
    with pytest.raises(ValueError, match="do not give the outputs that were recorded"):
        fingerprint.verify_fingerprint(loaded.params, loaded.config, loaded.meta.fingerprint)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, wrong):
    tensors = folders.state("float16")
    key = "model.layers.1.self_attn.q_proj.weight"
    tensors[key] = tensors[key].copy()
    tensors[key][1, 2] = wrong
    source = folders.checkpoint(tmp_path / "source", tensors, form="safetensors")
    with pytest.raises(ValueError, match=r"layers_1/self_attn/q_proj/kernel.* not finite"):
        convert(source, tmp_path / "target", quantize="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_one_matrix_at_a_time(made, monkeypatch):
    """While a checkpoint is packed, at most one matrix waits for its second array to be written."""
    leaves = {
        path: packed.LazyTensor(leaf.shape, leaf.dtype, lambda leaf=leaf: leaf)
        for path, leaf in arrays(made / "full").items()
    }
    count = 0

    def counted(matrix, bits):
        nonlocal count
        count += 1
        return quantize(matrix, bits)

    quantize = packed.quantize
    monkeypatch.setattr(packed, "quantize", counted)
    forms = packed.forms_of(leaves, "int4")
    stored = packed.pack(leaves, forms)
    count = 0  # shapes were worked out with it
    for path in sorted(stored):
        before = count
        stored[path].load()
        assert count - before <= 1
    assert count == len(forms) - 1  # the table has a function of its own
