"""Where compiled programs are kept, and what the layout of matrices at loading leaves as it is."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from lgjax.infer import load
from lgjax.infer.chat import GroundedChat
from lgjax.infer.regions import Click
from lgjax.models import kernels
from tests.infer.model import GROUNDED, model, picture

CODE = (
    "import jax\n"
    "from lgjax.infer.load import use_compilation_cache\n"
    "use_compilation_cache()\n"
    "print(jax.jit(lambda x: 2 * x + 1)(20))\n"
)


def run(cache: Path, **settings: str) -> dict[str, int]:
    """Compile a small program in a new process; what lies in `cache` then, and when it was written."""
    taken = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {name: value for name, value in os.environ.items() if name not in taken}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment | settings, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "41"
    files = [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith("-atime")]
    return {path.name: path.stat().st_mtime_ns for path in files}


def test_even_small_programs_are_compiled_once(tmp_path):
    """An answer needs some twenty, most of them small: together they take longer than the large ones."""
    kept = run(tmp_path / "lgjax" / "jax", XDG_CACHE_HOME=str(tmp_path))
    assert kept and run(tmp_path / "lgjax" / "jax", XDG_CACHE_HOME=str(tmp_path)) == kept


def test_another_place_or_threshold_stays(tmp_path):
    home, other = str(tmp_path), str(tmp_path / "other")
    assert run(tmp_path / "other", XDG_CACHE_HOME=home, JAX_COMPILATION_CACHE_DIR=other)
    assert not run(tmp_path / "lgjax", XDG_CACHE_HOME=home, JAX_COMPILATION_CACHE_DIR=other)
    threshold = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "60"}
    assert not run(tmp_path / "lgjax", XDG_CACHE_HOME=home, **threshold)


def _copied(params: dict) -> dict:
    return {name: _copied(leaf) if isinstance(leaf, dict) else leaf for name, leaf in params.items()}


def test_answers_stay_when_all_kernels_are_stored_by_outputs(monkeypatch):
    """As large ones are on CPUs: words, phrases, and a clicked thing, by every network there is."""
    monkeypatch.setattr(kernels, "LARGE", 1)
    params = kernels.lay_out_for_cpu(_copied(model().params))
    for part, path in (("llama", "lm_head"), ("clip", "layers_0/mlp/fc1"), ("grounding", "pixel_encoder")):
        node = params[part]
        for name in path.split("/"):
            node = node[name]
        assert "Transposed" in str(node)
    texts, found = [], []
    for own in (model(), dataclasses.replace(model(), params=params)):
        talk = GroundedChat(own).start(picture(0))
        words = talk.ask("What is it?", max_tokens=8)
        answer = talk.ask("Is % here?", Click(60, 40), answer=GROUNDED, threshold=None)
        texts.append(words.text)
        found.append(answer.phrases)
    assert texts[0] == texts[1]
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.05)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
        assert (ours.masks != theirs.masks).mean() < 1e-3


def test_what_compiling_leaves_behind_is_given_back(monkeypatch):
    trimmed = []
    monkeypatch.setattr(load, "_trim_memory", lambda: trimmed.append(True))
    load.load_model("debug")  # which may take long to compile
    trimmed.clear()
    jax.jit(lambda x: 3 * x + 7)(20)
    assert not trimmed  # what is quickly compiled leaves little
    monkeypatch.setattr(load, "_LONG", 0.0)
    jax.jit(lambda x: 5 * x + 7)(20)
    assert trimmed
