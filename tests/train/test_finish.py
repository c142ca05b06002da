"""The model of a run: what learnt is in it, what did not is what the run started from, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from lgjax import GroundedChat
from lgjax.config import debug
from lgjax.convert import store
from lgjax.convert.convert import convert
from lgjax.convert.export import export
from lgjax.train import finish
from lgjax.train.config import Rates, TrainConfig
from lgjax.train.finish import model_of_run
from lgjax.train.groups import group_of
from lgjax.train.loop import train
from tests.synthetic import write_checkpoint
from tests.train.words import words

TRAINED = ("llama", "projector", "embed")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted checkpoint of the whole model, in float16 as released ones are."""
    folder = tmp_path_factory.mktemp("start")
    write_checkpoint(folder / "original", debug(), dtype="float16", form="safetensors")
    convert(folder / "original", folder / "model", seg_state="at")
    return folder / "model"


def config_of(start: Path, **changes) -> TrainConfig:
    """The language part of stage 2: everything else is frozen and not run."""
    base = words(optim={"rates": Rates(projector=1, embed=1, llama=1)})
    model = dataclasses.replace(debug(), seg_state="at")
    return dataclasses.replace(base, model=model, start=(str(start),), steps=3, save_every=1, **changes)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return store.flattened(store.read_arrays(folder, store.stored_leaves(folder)))


@pytest.fixture(scope="module")
def run(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config_of(start), folder, console=QUIET)
    return folder


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def test_frozen_parameters_keep_their_bits_and_type(start: Path, run: Path):
    before, after = arrays(start), arrays(run / "model")
    assert before.keys() == after.keys()
    for path, old in before.items():
        assert same_bits(old, after[path]) != (group_of(path) in TRAINED), path


def test_the_model_chats(run: Path):
    chat = GroundedChat.load(run / "model")
    answer = chat.ask(Image.new("RGB", (64, 64), "red"), "What is it?", max_tokens=4)
    assert answer.num_tokens <= 4 and chat.model.config.seg_state == "at"


def test_export_and_conversion_give_the_same_model(run: Path, tmp_path: Path):
    export(run / "model", tmp_path / "original", format="safetensors")
    convert(tmp_path / "original", tmp_path / "again", seg_state="at")
    one, other = arrays(run / "model"), arrays(tmp_path / "again")
    assert one.keys() == other.keys()
    assert all(same_bits(one[path], other[path]) for path in one)


def test_tensors_that_only_an_export_needs_go_along(start: Path, run: Path):
    assert (start / store.UNUSED).read_bytes() == (run / "model" / store.UNUSED).read_bytes()


def test_few_readings_copy_what_did_not_learn(run: Path, tmp_path: Path, monkeypatch):
    """One of a small folder, and of nothing that has learnt."""
    plain, asked = store.read_arrays, []

    def read(folder: Path, paths):
        asked.append(list(paths))
        return plain(folder, asked[-1])

    monkeypatch.setattr(store, "read_arrays", read)
    model_of_run(run, tmp_path / "model")
    assert len(asked) == 1
    assert {group_of(path) for path in asked[0]}.isdisjoint(TRAINED)


def test_the_model_of_a_checkpoint(run: Path, tmp_path: Path):
    assert model_of_run(run, tmp_path / "last") == 3
    one, other = arrays(run / "model"), arrays(tmp_path / "last")
    assert all(same_bits(one[path], other[path]) for path in one)
    assert model_of_run(run, tmp_path / "two", step="2") == 2
    assert not same_bits(arrays(tmp_path / "two")["llama/embed_tokens"], one["llama/embed_tokens"])
    for step, text in (
        ("7", "no checkpoint of step 7"),
        ("best", "measured nothing"),
        ("x", "no checkpoint of"),
    ):
        with pytest.raises(FileNotFoundError, match=text):
            model_of_run(run, tmp_path / "none", step=step)
    with pytest.raises(FileExistsError):
        model_of_run(run, tmp_path / "last")


@pytest.mark.parametrize(("together", "readings"), [(0, 40), (10_000, None), (2**40, 1)])
def test_parameters_are_read_together(start: Path, monkeypatch, together: int, readings: int | None):
    """In the order they are stored one reading serves many; in any other they are the same."""
    leaves = dict(list(store.stored_leaves(start).items())[:40])
    wanted, plain, calls = store.read_arrays(start, leaves), store.read_arrays, []
    monkeypatch.setattr(finish, "_TOGETHER", together)
    monkeypatch.setattr(store, "read_arrays", lambda *inputs: calls.append(1) or plain(*inputs))
    value = finish._reader(start, leaves)
    assert all(same_bits(value(path), array) for path, array in wanted.items())
    assert len(calls) == readings if readings else 1 < len(calls) < 40
    for path in reversed(list(leaves)[:5]):
        assert same_bits(value(path), wanted[path])


@pytest.mark.parametrize("frozen", ["float32", "int8"])
def test_low_rank_updates_are_merged_into_what_was_stored(start: Path, tmp_path: Path, frozen: str):
    """Matrices are changed by a rank of 2 however they were kept meanwhile; all else keeps its bits."""
    base = config_of(start, frozen=frozen)
    rates = Rates(projector=1, llama=1)
    train(
        dataclasses.replace(base, optim=dataclasses.replace(base.optim, rates=rates, lora=2)),
        tmp_path,
        console=QUIET,
    )
    before, after = arrays(start), arrays(tmp_path / "model")
    changed = {path for path in before if not same_bits(before[path], after[path])}
    wanted = {path for path in before if path.startswith("llama/layers") and path.endswith("/kernel")}
    assert changed == wanted | {path for path in before if path.startswith("projector/")}
    for path in wanted:
        change = after[path].astype(np.float64) - before[path].astype(np.float64)
        sizes = np.linalg.svd(change, compute_uv=False)
        assert sizes[0] > 0 and sizes[2] < 1e-3 * sizes[0], path
