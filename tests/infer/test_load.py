"""Where compiled programs are kept."""

import os
import subprocess
import sys
from pathlib import Path

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
