"""Where the parity data lies and how its synthetic checkpoints become parameters."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path

import numpy as np

from lgjax.convert import keys

DATA = Path(os.environ.get("LGJAX_PARITY_DIR") or Path(__file__).with_name("data"))


def files(pattern: str) -> list[Path]:
    """Files of the parity folder that match a glob, sorted; at least one, or the folder is wrong."""
    return sorted(DATA.glob(pattern))


def read_json(name: str) -> dict:
    return json.loads((DATA / name).read_text())


def _synth():
    folder = DATA if (DATA / "synth_weights.py").exists() else Path(__file__).with_name("data")
    sys.path.insert(0, str(folder))
    try:
        import synth_weights
    finally:
        sys.path.pop(0)
    return synth_weights


@functools.cache
def synth_state(manifest: str, seed: int) -> dict[str, np.ndarray]:
    """Synthetic checkpoint of a manifest file of the parity folder."""
    synth = _synth()
    return synth.synth_state_dict(synth.load_manifest(DATA / manifest), seed)


@functools.cache
def parameters(manifest: str, seed: int) -> dict:
    """The same checkpoint as a nested parameter dict, e.g. ["grounding"] or ["prompt"]."""
    return keys.parameter_tree(synth_state(manifest, seed))


def synth_tensor(key: str, shape, seed: int = 0) -> np.ndarray:
    return _synth().synth_tensor(key, shape, seed)


def assert_stored(stored: np.lib.npyio.NpzFile, name: str, value: np.ndarray, atol: float) -> None:
    """Compare a value with `name` of a file, stored whole or as a sample; shapes must agree."""
    value = np.asarray(value)
    if name in stored.files:
        want = stored[name]
        assert value.shape == want.shape, (name, value.shape, want.shape)
        np.testing.assert_allclose(value, want, rtol=0, atol=atol, err_msg=name)
        return
    assert tuple(stored[f"{name}__shape"]) == value.shape, (name, value.shape)
    got = value.reshape(-1)[stored[f"{name}__idx"]]
    np.testing.assert_allclose(got, stored[f"{name}__val"], rtol=0, atol=atol, err_msg=name)
