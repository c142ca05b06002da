"""Sharding rules and meshes on eight host devices."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lgjax.models
from lgjax import config as configs
from lgjax.models.llava_grounding import abstract_params, logical_axes
from lgjax.parallel import rules
from lgjax.parallel.mesh import make_mesh

NAMES = tuple(name for name, _ in rules.RULES)


def test_mesh_shapes_and_types():
    mesh = make_mesh(2, 2, 2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert make_mesh().devices.size == 1
    chosen = jax.devices()[4:]
    assert list(make_mesh(tensor=2, devices=chosen).devices.flat) == chosen[:2]


def test_mesh_refuses():
    with pytest.raises(ValueError, match=r"needs 16 devices, found 8"):
        make_mesh(4, 2, 2)
    with pytest.raises(ValueError, match=r"at least 1, found data=0"):
        make_mesh(data=0)


def test_every_parameter_of_the_full_model_has_a_sharding_that_divides_it():
    config = configs.llava_g_7b()
    abstract, axes = abstract_params(config), logical_axes(config)
    mesh = make_mesh(1, 4, 2)
    found = rules.shardings(abstract, axes, mesh)
    total = local = 0
    for leaf, sharding in zip(jax.tree.leaves(abstract), jax.tree.leaves(found), strict=True):
        shard = sharding.shard_shape(leaf.shape)  # raises where a mesh axis does not divide
        total += np.prod(leaf.shape, dtype=np.int64)
        local += np.prod(shard, dtype=np.int64)
    assert local < total / 8 * 1.05
    llama = found["llama"]
    assert llama["layers_3"]["mlp"]["up_proj"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert llama["layers_3"]["mlp"]["down_proj"]["kernel"].spec == PartitionSpec("tensor", "fsdp")
    assert llama["embed_tokens"].spec == PartitionSpec(None, "fsdp")  # 32003 rows are odd
    assert llama["norm"]["scale"].spec == PartitionSpec()


def test_every_name_that_a_network_uses_has_a_rule():
    axes = logical_axes(configs.debug())
    leaves = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert {name for leaf in leaves for name in leaf} - {None} <= set(NAMES)
    source = "".join(path.read_text() for path in Path(lgjax.models.__path__[0]).glob("*.py"))
    constrained = re.findall(r"with_logical_constraint\([^,]+, \(([^)]*)\)", source)
    assert set(re.findall(r'"(\w+)"', " ".join(constrained))) <= set(NAMES)


@given(st.data())
def test_specs_are_valid_and_as_fine_as_they_may_be(data):
    sizes = data.draw(st.sampled_from([(2, 2, 2), (1, 4, 2), (8, 1, 1), (1, 2, 3)]))
    mesh = make_mesh(*sizes)
    axes = data.draw(st.lists(st.sampled_from([*NAMES, None]), max_size=4).map(tuple))
    shape = tuple(data.draw(st.sampled_from([1, 3, 4, 8, 24])) for _ in axes)
    spec = rules.partition_spec(shape, axes, mesh)
    sharding = NamedSharding(mesh, spec)  # refuses an axis used twice
    shard = sharding.shard_shape(shape)
    used: list[str] = []
    table = dict(rules.RULES)
    for size, name, local in zip(shape, axes, shard, strict=True):
        wanted = table.get(name) or ()
        wanted = (wanted,) if isinstance(wanted, str) else wanted
        free = [axis for axis in wanted if axis not in used]
        pieces = int(np.prod([mesh.shape[axis] for axis in free]))
        if size % pieces == 0:
            used += [axis for axis in free if mesh.shape[axis] > 1]
            assert local == size // pieces
        else:
            assert local == size


def test_faults_of_the_names():
    mesh = make_mesh(2, 2, 2)
    with pytest.raises(ValueError, match="logical axis 'colour' has no rule"):
        rules.partition_spec((4,), ("colour",), mesh)
    with pytest.raises(ValueError, match="2 logical axes"):
        rules.partition_spec((4,), ("embed", "mlp"), mesh)


def test_sharded_matmul_is_the_plain_one():
    mesh = make_mesh(1, 4, 2)
    x = np.random.default_rng(0).standard_normal((8, 16), np.float32)
    kernel = np.random.default_rng(1).standard_normal((16, 32), np.float32)
    where = rules.shardings(kernel, ("embed", "mlp"), mesh)
    spread = jax.device_put(kernel, where)
    assert len({str(shard.index) for shard in spread.addressable_shards}) == 8
    np.testing.assert_allclose(jnp.asarray(x) @ spread, x @ kernel, atol=1e-5)
