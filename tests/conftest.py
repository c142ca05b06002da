"""Shared by every test: eight host devices, one persistent compilation cache, shape checks switched on."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "lgjax-test-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import beartype
import hypothesis
import pytest
from jaxtyping import install_import_hook

# as in PEP 484, a whole number may stand where a float is asked for
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
hook = install_import_hook("lgjax", "tests.conftest.check")
hook.__enter__()

# how long an example takes says more of the machine than of the code
hypothesis.settings.register_profile("lgjax", deadline=None)
hypothesis.settings.load_profile("lgjax")


@pytest.fixture(autouse=True, scope="module")
def drop_compiled_programs():
    """Let go of compiled programs before the system's limit of memory maps ends the run with a crash."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
        import jax

        jax.clear_caches()
