"""Every shipped configuration is a run: it is read, written, laid out on a mesh and counted."""

from pathlib import Path

import pytest

from lgjax.parallel.mesh import make_mesh
from lgjax.train.config import from_text, load_config, to_json
from lgjax.train.start import abstract_state
from lgjax.train.step import check_mesh, state_shardings, step_operations

FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_configurations(path: Path):
    config = load_config(path, "paper")
    assert config.name == path.stem and from_text(to_json(config)) == config
    state = abstract_state(config)
    assert state.trained and step_operations(config, state.trained) > 0
    mesh = make_mesh(fsdp=4 if config.data.groups % (4 * config.accumulate) == 0 else 1)
    check_mesh(config, mesh)
    state_shardings(state, config, mesh)
