"""The lists that the language model of the small model learns before it sees anything."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lgjax.config import tiny
from lgjax.convert import meta, store
from lgjax.data.batch import NOTHING
from lgjax.infer.load import TINY, folder_of
from lgjax.models.llava_grounding import init_params

LAUNCH = Path(__file__).parents[2] / "launch"


def script(name: str):
    """A script of `launch/` as a module of its own, whose constants a test may change."""
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lists():
    return script("tiny_lists")


@pytest.fixture
def words(lists):
    return lists.Words(np.arange(100, 150, dtype=np.int32), 10, 11, 12, 13, 14, 15)


@pytest.mark.parametrize("chats", [False, True])
def test_rows_are_true(lists, words, chats):
    rows = lists.imagined(words, np.random.default_rng(0), chats=chats)
    kinds = set()
    for cells, tokens, learnt in zip(rows.cells, rows.tokens, rows.learnt, strict=True):
        area = {name: int((cells == name).sum()) for name in set(cells.tolist()) - {NOTHING}}
        assert area and set(area) <= set(words.names.tolist())
        kinds.add(tokens[0])
        if tokens[0] == words.article:
            said = tokens[learnt].reshape(-1, 3)
            assert sorted(said[:, 1]) == sorted(area)  # all of them, each once
            assert [area[name] for name in said[:, 1]] == sorted(area.values(), reverse=True)
            assert set(said[:, 0]) == {words.article} and set(said[:-1, 2]) <= {words.comma}
            assert said[-1, 2] == words.stop
        else:
            asks, names, answers = tokens[: 3 * lists.QUESTIONS].reshape(-1, 3).T
            assert set(asks) == {words.asks}
            assert [words.yes if name in area else words.no for name in names] == answers.tolist()
            assert learnt.nonzero()[0].tolist() == list(range(2, 3 * lists.QUESTIONS, 3))
    assert kinds == ({words.article, words.asks} if chats else {words.article})


def test_positions_grow_and_are_wider_in_chats(lists, words):
    plain, chats = (
        lists.imagined(words, np.random.default_rng(0), chats=chats).positions for chats in (False, True)
    )
    assert (np.diff(plain) == 1).all() and (np.diff(chats) >= 1).all()
    text = chats[:, lists.SIDE**2 :]
    assert (text[:, 0] >= lists.SIDE**2 + lists.GAP[0]).all()
    assert set(np.diff(text).ravel()) == set(lists.STRIDES)


def test_only_the_language_model_changes(lists, tmp_path, capsys):
    lists.STEPS, lists.LISTS, lists.ROWS, lists.LOG_EVERY = 2, 1, 4, 2
    source, target = folder_of(TINY), tmp_path / "lists"
    lists.main(source, target)
    before, after = (store.read_arrays(f, list(store.stored_leaves(f))) for f in (source, target))
    assert before.keys() == after.keys() and meta.read(target).tokens == meta.read(source).tokens
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if path.startswith("llama/") and path != "llama/embed_tokens"}
    assert "step 2/2" in capsys.readouterr().out


@pytest.mark.slow  # seven minutes of a core
def test_it_learns_what_was_not_named_yet(lists, tmp_path, capsys):
    config, start = tiny(), script("tiny_text_start")
    about, params = meta.read(folder_of(TINY)), init_params(config, 0)
    files = {f.name: f.read_bytes() for f in (folder_of(TINY) / store.TOKENIZER).iterdir()}
    tower = {part: params[part] for part in ("clip", "projector", "llama")}
    store.save(tmp_path / "tower", config, tower, tokenizer=files, tokens=about.tokens)
    start.main(tmp_path / "tower", tmp_path / "text_start")
    lists.STEPS, lists.LISTS = 301, 300
    lists.main(tmp_path / "text_start", tmp_path / "lists")
    lines = capsys.readouterr().out.strip().split("\n")[-5:]
    second = [float(line.split("names ")[1].split()[1]) for line in lines]
    # "the largest once more" is right in none of them
    assert np.mean(second) >= 0.4, lines
