"""Parameters of a model for tests of training: their shapes, and the whole of them out of a state."""

from __future__ import annotations

import functools

from lgjax.config import ModelConfig
from lgjax.convert.store import flattened, nested
from lgjax.models.llama import stack_layers
from lgjax.models.llava_grounding import abstract_params
from lgjax.train.groups import leaf_of


@functools.cache
def abstract(model: ModelConfig, scan_layers: bool = False) -> dict:
    """Shapes by path."""
    return flattened(abstract_params(model, scan_layers))


def whole(trained: dict, frozen: dict, model: ModelConfig) -> dict:
    """Every parameter of a checkpoint, as a nested dict."""
    return nested({path: leaf_of(trained, frozen, path) for path in abstract(model)})


def stacked(params: dict) -> dict:
    """Parameters of a checkpoint by path, with the layers of the language model in one array each."""
    return flattened({**params, "llama": stack_layers(params["llama"])})
