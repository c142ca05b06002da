"""Where the parity data lies and how its synthetic checkpoints become parameters.

`LGJAX_PARITY_DIR` may name another folder of the same kinds of files. What it lacks of manifests, indexes and
`synth_weights.py` is taken from the repository's own data.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path

import numpy as np

from tests.weights import parameter_tree

OWN = Path(__file__).with_name("data")
DATA = Path(os.environ.get("LGJAX_PARITY_DIR") or OWN)
if not DATA.is_dir():
    raise FileNotFoundError(f"LGJAX_PARITY_DIR names '{DATA}', which is no folder")


def files(pattern: str) -> list[Path]:
    """Files of the parity folder that match a glob, sorted."""
    return sorted(DATA.glob(pattern))


def path_of(name: str) -> Path:
    """A file of the parity folder, or the repository's own where the folder has none of that name."""
    return DATA / name if (DATA / name).exists() else OWN / name


def read_json(name: str) -> dict:
    return json.loads(path_of(name).read_text())


def indexed(kind: str) -> dict[str, dict]:
    """Cases of one kind in all `*_cases.json`: file name -> description and the index's own entries."""
    found = {}
    for index in files("*_cases.json"):
        content = json.loads(index.read_text())
        shared = {key: value for key, value in content.items() if key not in ("files", "note")}
        for name, case in content.get("files", {}).items():
            if case["kind"] == kind and (DATA / name).exists():
                found[name] = {**shared, **case}
    return found


def metric_cases(metric: str) -> list[dict]:
    """Worked examples of one metric in all `*metrics*_cases.json`."""
    indexes = files("*metrics*_cases.json") or [OWN / "metrics_cases.json"]
    cases = [case for index in indexes for case in json.loads(index.read_text())["cases"]]
    return [case for case in cases if case["metric"] == metric]


def weights_seed(prefix: str) -> int:
    """Seed of the synthetic weights that the indexes of a part name."""
    seeds = {
        json.loads(index.read_text())["weights_seed"]
        for index in files(f"{prefix}*_cases.json") or [OWN / f"{prefix}_cases.json"]
    }
    assert len(seeds) == 1, f"{prefix}*_cases.json name several seeds: {seeds}"
    return seeds.pop()


def _synth():
    folder = path_of("synth_weights.py").parent
    sys.path.insert(0, str(folder))
    try:
        import synth_weights
    finally:
        sys.path.pop(0)
    return synth_weights


@functools.cache
def synth_state(manifest: str, seed: int) -> dict[str, np.ndarray]:
    """Synthetic checkpoint of a manifest file."""
    synth = _synth()
    return synth.synth_state_dict(synth.load_manifest(path_of(manifest)), seed)


@functools.cache
def parameters(manifest: str, seed: int) -> dict:
    """The same checkpoint as a nested parameter dict, e.g. ["grounding"] or ["prompt"]."""
    return parameter_tree(synth_state(manifest, seed))


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
