"""The CLIP tower against transformers' CLIPVisionModel."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.config import ClipConfig
from lgjax.models.clip import ClipTower
from tests.weights import parameter_tree

SMALL = ClipConfig(image_size=28, patch_size=7, hidden_size=24, mlp_size=40, num_layers=4, num_heads=3)


def parameters(theirs) -> dict:
    prefix = "model.vision_tower.vision_tower."
    state = {name: weight.detach().numpy() for name, weight in theirs.state_dict().items()}
    state = {
        name if name.startswith("vision_model.") else f"vision_model.{name}": w for name, w in state.items()
    }
    return jax.tree.map(jnp.asarray, parameter_tree({prefix + k: w for k, w in state.items()})["clip"])


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, select_layer=-1),
        dataclasses.replace(SMALL, image_size=30, patch_size=6),
    ],
)
def test_equals_transformers(config):
    torch = pytest.importorskip("torch")
    import transformers

    theirs = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.mlp_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act="quick_gelu",
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            scale = 0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5
            weight.add_(torch.randn(weight.shape, generator=generator) * scale)
    images = np.random.default_rng(0).normal(size=(2, config.image_size, config.image_size, 3))
    images = images.astype(np.float32)
    params = parameters(theirs)
    unused = range(config.used_layers, config.num_layers)
    params = {name: value for name, value in params.items() if name not in {f"layers_{i}" for i in unused}}
    got = ClipTower(config).apply({"params": params}, jnp.asarray(images))
    with torch.no_grad():
        want = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)), output_hidden_states=True)
    want = want.hidden_states[config.select_layer][:, 1:].numpy()
    assert got.shape == (2, config.num_patches, config.hidden_size)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_has_exactly_the_used_blocks():
    shapes = jax.eval_shape(lambda: ClipTower(SMALL).init(jax.random.key(0), jnp.zeros((1, 28, 28, 3))))
    names = {name for name in shapes["params"] if name.startswith("layers_")}
    assert names == {"layers_0", "layers_1", "layers_2"}
    assert "post_layernorm" not in shapes["params"]


def test_patch_order_is_row_major():
    """Painting one patch changes that token's embedding before the first block, and no other."""
    variables = ClipTower(SMALL).init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    blank = jnp.zeros((1, 28, 28, 3))
    painted = blank.at[0, 7:14, 21:28].set(1.0)  # row 1, column 3 of 4
    first = [
        ClipTower(SMALL).apply(variables, x, mutable=["intermediates"])[1]["intermediates"]["hidden_states"][
            0
        ]
        for x in (blank, painted)
    ]
    changed = np.abs(first[0] - first[1]).max(-1)[0] > 1e-6
    assert np.flatnonzero(changed).tolist() == [1 + 1 * 4 + 3]
