"""The joined model: parameter counts of the full size, logical axes, and rows that do not see each other."""

import jax
import numpy as np
import pytest

from lgjax.config import debug, llava_g_7b
from lgjax.convert import keys
from lgjax.models import llava_grounding
from tests.models.batch import assert_close, forward, inputs, parameters, rows
from tests.parity import cases


def paths(tree: dict) -> dict:
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))[0]
    return {"/".join(entry.key for entry in path): leaf for path, leaf in flat}


def test_shapes_are_nobodys_to_change():
    """They are kept from call to call; what a caller does to its dict is no other's business."""
    config = debug()
    first = llava_grounding.abstract_params(config)
    first["llama"].clear()
    assert llava_grounding.abstract_params(config)["llama"]
    axes = llava_grounding.logical_axes(config)
    axes.clear()
    assert llava_grounding.logical_axes(config)
    assert llava_grounding.abstract_params(config) != llava_grounding.abstract_params(config, True)


def test_full_size_parameters_are_those_of_the_three_manifests():
    """Every learnt, living tensor of the original is a parameter of the same size, and nothing else is."""
    ours = {}
    for path, leaf in paths(llava_grounding.abstract_params(llava_g_7b())).items():
        key, layout = keys.checkpoint_key(path)
        order = {"linear": (1, 0), "conv": (3, 2, 0, 1)}.get(layout)
        ours[key] = [leaf.shape[i] for i in order] if order else list(leaf.shape)
    want, dead = {}, 0
    for name in ("llava7b_manifest.json", "openseed_manifest.json", "semsam_manifest.json"):
        for key, shape in cases.read_json(name).items():
            if keys.canonical(key) != key or keys.is_buffer(key):
                continue
            # the tower's last block is never read: hidden state -2 is its input
            if keys.is_dead(key) or ".encoder.layers.23." in key:
                dead += int(np.prod(shape))
            else:
                want[key] = shape
    assert ours == want
    total = sum(int(np.prod(shape)) for shape in ours.values())
    assert total + dead == 7_045_818_368 + 54_616_383 + 54_032_448


def test_every_parameter_carries_logical_axis_names():
    config = debug()
    shapes = paths(llava_grounding.abstract_params(config))
    axes = paths(llava_grounding.logical_axes(config))
    assert shapes.keys() == axes.keys()
    assert all(len(axes[path]) == leaf.ndim for path, leaf in shapes.items())
    matrices = [path for path, leaf in shapes.items() if leaf.ndim >= 2 and "kernel" in path]
    assert all(any(axes[path]) for path in matrices)


@pytest.mark.parametrize(("length", "phrases", "regions"), [(16, 2, 1), (24, 5, 3)])
def test_batch_and_padding_change_nothing(length: int, phrases: int, regions: int):
    plans, clip, pixels, prompts = rows(3)
    together = forward(
        parameters(), inputs(plans, clip, pixels, prompts, length=length, phrases=phrases, regions=regions)
    )
    for i in range(3):
        tokens = len(plans[i].tokens)
        count = int((plans[i].tokens == 802).sum())
        part = slice(i, i + 1)
        alone = forward(
            parameters(),
            inputs(
                plans[part], clip[part], pixels[part], prompts[part], length=tokens, phrases=count, regions=1
            ),
        )
        assert_close(together.hidden[i, :tokens], alone.hidden[0])
        one, other = together.predictions["final"], alone.predictions["final"]
        assert_close(one.boxes[i], other.boxes[0])
        assert_close(one.logits[i, :, :count], other.logits[0])
        assert_close(one.mask_embedding[i], other.mask_embedding[0])
