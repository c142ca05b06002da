"""Parameters sharded over eight host devices give the answers of one device."""

import dataclasses

import jax
import numpy as np
import pytest

from lgjax.infer.chat import GroundedChat
from lgjax.models.llava_grounding import abstract_params, logical_axes
from lgjax.parallel.mesh import make_mesh
from lgjax.parallel.rules import shardings
from tests.infer.model import GROUNDED, chat, model, picture


@pytest.mark.parametrize(
    "shape", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]
)
def test_answers_do_not_depend_on_the_mesh(shape):
    assert jax.device_count() == 8
    mesh = make_mesh(**shape)
    where = shardings(abstract_params(model().config), logical_axes(model().config), mesh)
    params = jax.tree.map(jax.device_put, model().params, where)
    split = [leaf for leaf in jax.tree.leaves(params) if not leaf.sharding.is_fully_replicated]
    assert len(split) > 100
    sharded = GroundedChat(dataclasses.replace(model(), params=params))
    pictures, texts = [picture(0), picture(1)], ["What is it?", "Describe the scene in detail."]
    for options in ({"max_tokens": 12}, {"answer": GROUNDED, "threshold": 0.02}):
        want = chat().ask_batch(pictures, texts, **options)
        for got, one in zip(sharded.ask_batch(pictures, texts, **options), want, strict=True):
            assert got.tagged_text == one.tagged_text
            for a, b in zip(got.phrases, one.phrases, strict=True):
                np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-5, atol=2e-3)
                assert (a.masks != b.masks).mean() < 1e-3
