"""What computing layers again costs and saves: a gradient with and without `remat`, `scan_layers`, in turn.

    python -m tests.bench.remat [--rounds N]

The language model has 8 layers of width 512 and reads 4 x 256 positions, the grounding model its released
sizes and a picture of 512 x 512. "products kept" is jax's policy that computes again all but the results of
products. A line for each: seconds to compile, what the program holds beside parameters and gradients, and the
median seconds of a gradient.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgjax.bench.weights import parameters
from lgjax.config import llava_g_7b
from lgjax.models.grounding import Grounding
from lgjax.models.kernels import Transposed, dense
from lgjax.models.layers import stack_layers
from lgjax.models.llama import Llama

Loss = Callable[[Any], jax.Array]
WAYS: dict[str, dict[str, bool]] = {
    "as it is": {},
    "remat": {"remat": True},
    "scan_layers": {"scan_layers": True},
    "remat, scan_layers": {"remat": True, "scan_layers": True},
    "products kept": {},
}


def language(**way: bool) -> tuple[Any, Loss]:
    """Parameters and loss of the language model."""
    small = dataclasses.replace(
        llava_g_7b().llama,
        num_layers=8,
        hidden_size=512,
        mlp_size=1376,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
    )
    params = parameters(dataclasses.replace(llava_g_7b(), llama=small), "llama")["llama"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 256, 512), np.float32))
    positions = jnp.broadcast_to(jnp.arange(256), (4, 256))

    def loss(params: Any) -> jax.Array:
        return jnp.square(Llama(small, **way).apply({"params": params}, x, positions)[0]).mean()

    return stack_layers(params) if way.get("scan_layers") else params, loss


def grounding(**way: bool) -> tuple[Any, Loss]:
    """Parameters and loss of the grounding model."""
    config, rng = llava_g_7b(), np.random.default_rng(0)
    model, width = config.grounding, config.llama.hidden_size
    assert model is not None
    image, phrases = (rng.standard_normal(size, np.float32) for size in ((1, 512, 512, 3), (1, 8, width)))
    module, mask = Grounding(model, width, **way), np.ones((1, 8), bool)

    def loss(params: Any) -> jax.Array:
        out = module.apply({"params": params}, image, phrases, mask, model.num_queries)
        return sum((jnp.square(x).mean() for x in jax.tree.leaves(out)), jnp.zeros(()))

    # as training holds them, not as CPUs read them fastest
    params = jax.tree.map(
        lambda leaf: dense(leaf) if isinstance(leaf, Transposed) else leaf,
        parameters(config, "grounding")["grounding"],
        is_leaf=lambda leaf: isinstance(leaf, Transposed),
    )
    return params, loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    jax.config.update("jax_enable_compilation_cache", False)
    for name, made in (("language model", language), ("grounding model", grounding)):
        programs, seconds, given = {}, {}, {}
        for way, options in WAYS.items():
            given[way], value = made(**options)
            if way == "products kept":
                value = jax.checkpoint(value, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
            start = time.perf_counter()
            programs[way] = jax.jit(jax.grad(value)).lower(given[way]).compile()
            seconds[way] = [time.perf_counter() - start]
        for _ in range(rounds + 1):
            for way, program in programs.items():
                start = time.perf_counter()
                jax.block_until_ready(program(given[way]))
                seconds[way].append(time.perf_counter() - start)
        print(name)
        for way, program in programs.items():
            compiling, _, *taken = seconds[way]
            held = program.memory_analysis().temp_size_in_bytes / 1e6
            took = statistics.median(taken)
            print(f"  {way:20} compile {compiling:5.1f} s, holds {held:6.0f} MB, {took:.2f} s")


if __name__ == "__main__":
    main()
