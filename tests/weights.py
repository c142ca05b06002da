"""Random parameters for tests: shapes from `eval_shape`, values from numpy, so that nothing is compiled."""

import zlib

import flax.linen as nn
import jax
import numpy as np


def random_parameters(module: nn.Module, *inputs, seed: int = 0, **arguments) -> dict:
    """Parameters of `module` for these inputs: scaled normals, norm scales near 1, tables of order 1."""
    abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **arguments))["params"]
    return fill(nn.unbox(abstract), seed)


def fill(abstract: dict, seed: int = 0) -> dict:
    """Fill a tree of ShapeDtypeStruct: every value is a function of its path, shape and seed."""

    def value(path, leaf):
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
        noise = rng.standard_normal(leaf.shape, dtype=np.float32)
        if leaf.ndim < 2:
            return np.float32(0.1) * noise + np.float32("scale" in name)
        fan_in = int(np.prod(leaf.shape[:-1])) if "kernel" in name else 4
        return noise / np.float32(np.sqrt(fan_in))

    return jax.tree_util.tree_map_with_path(value, abstract)
