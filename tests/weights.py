"""Parameters for tests: random ones without compiling an init, and those of a PyTorch state dict."""

import zlib

import flax.linen as nn
import jax
import numpy as np

from lgjax.convert import keys


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


def parameter_tree(state: dict[str, np.ndarray]) -> dict:
    """Turn a whole state dict into a nested parameter dict; aliases, buffers and dead keys are dropped."""
    tree: dict = {}
    for key, tensor in state.items():
        if keys.canonical(key) != key or keys.is_buffer(key) or keys.is_dead(key):
            continue
        found = keys.parameter(key)
        assert found is not None, f"no rule knows '{key}'"
        *parents, leaf = found[0].split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = keys.to_parameter(tensor, found[1])
    return tree


def parameter_at(tree: dict, path: str):
    """The leaf at a path such as "llama/norm/scale"."""
    for name in path.split("/"):
        tree = tree[name]
    return tree
