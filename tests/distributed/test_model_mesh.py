"""The joined model on a mesh of eight devices gives the numbers of one device."""

import functools

import jax
import pytest

from lgjax.config import debug
from lgjax.models.llava_grounding import abstract_params, logical_axes
from lgjax.parallel.mesh import make_mesh
from lgjax.parallel.rules import shardings
from tests.models.batch import assert_close, forward, inputs, parameters, rows


@functools.cache
def batch():
    return inputs(*rows(3), length=16, phrases=2, regions=2)


@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_sharded_parameters_give_the_same_numbers(shape):
    mesh = make_mesh(**shape)
    where = shardings(abstract_params(debug()), logical_axes(debug()), mesh)
    got = forward(jax.tree.map(jax.device_put, parameters(), where), batch())
    want = forward(parameters(), batch())
    for name in ("logits", "boxes", "mask_embedding"):
        one, other = (getattr(out.predictions["final"], name) for out in (got, want))
        assert_close(one, other)
    real = batch().plan.mask
    assert_close(got.hidden[real], want.hidden[real])
    assert_close(got.prompts[-1].states[:, :1], want.prompts[-1].states[:, :1])
