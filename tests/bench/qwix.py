"""Our products of packed weights beside those of qwix (`pip install qwix`): two MLPs of the 7B, in turn.

    python -m tests.bench.qwix [--rounds N]

Prints seconds of 8 passes of a row, one after the other inside a loop as in decoding, and of 384 rows at
once, and what these programs hold beside the weights. XLA takes qwix's copies out of the loop: they are paid
once for the 8 passes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lgjax.models.kernels import GROUP, Bits, quantize
from lgjax.models.layers import Linear

WIDTH, INNER, LAYERS, STEPS, ROWS = 4096, 11008, 2, 8, 384


class Mlps(nn.Module):
    """Layers of down(silu(gate(x)) * up(x)), each scaled back to a mean square of one."""

    ours: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def linear(name: str, features: int) -> Any:
            if self.ours:
                return Linear(features, ("embed", "mlp"), False, name=name)
            return nn.Dense(features, use_bias=False, name=name)

        for layer in range(LAYERS):
            inner = nn.silu(linear(f"gate{layer}", INNER)(x)) * linear(f"up{layer}", INNER)(x)
            x = linear(f"down{layer}", WIDTH)(inner)
            x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True))
        return x


def forms() -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Modules and their parameters: of plain floats, ours and qwix's of 8 and 4 bits."""
    import qwix  # type: ignore[import-not-found]

    rng = np.random.default_rng(0)
    shapes = {"gate": (WIDTH, INNER), "up": (WIDTH, INNER), "down": (INNER, WIDTH)}
    params = {
        f"{name}{layer}": {"kernel": jnp.asarray(rng.normal(size=shape, scale=0.02).astype(np.float32))}
        for layer in range(LAYERS)
        for name, shape in shapes.items()
    }
    found: dict[str, tuple[nn.Module, dict[str, Any]]] = {"float32": (Mlps(False), params)}
    choices: tuple[Bits, ...] = (8, 4)
    for bits in choices:
        packed = {name: {"kernel": quantize(leaf["kernel"], bits)} for name, leaf in params.items()}
        found[f"ours, int{bits}"] = Mlps(True), packed
        kind, tile = (jnp.int8, None) if bits == 8 else (jnp.int4, GROUP)
        rule = qwix.QuantizationRule(module_path=".*", weight_qtype=kind, tile_size=tile)
        model = qwix.quantize_model(Mlps(False), qwix.PtqProvider([rule]))
        wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 1, WIDTH)))["params"]
        found[f"qwix, int{bits}"] = model, qwix.quantize_params(params, wanted)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    given = forms()
    for what, rows, steps in ((f"{STEPS} passes of a row", 1, STEPS), (f"{ROWS} rows", ROWS, 1)):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(1, rows, WIDTH)), jnp.float32)
        programs = {}
        for name, (model, params) in given.items():

            def passes(params: Any, x: jax.Array, model: nn.Module = model, steps: int = steps) -> Any:
                return jax.lax.fori_loop(0, steps, lambda _, x: model.apply({"params": params}, x), x)

            programs[name] = jax.jit(passes).lower(params, x).compile()
        seconds: dict[str, list[float]] = {name: [] for name in given}
        for _ in range(rounds + 1):
            for name, program in programs.items():
                start = time.perf_counter()
                jax.block_until_ready(program(given[name][1], x))
                seconds[name].append(time.perf_counter() - start)
        print(what)
        for name, program in programs.items():
            held = program.memory_analysis().temp_size_in_bytes / 1e6
            print(f"  {name:12} {statistics.median(seconds[name][1:]):.3f} s, holds {held:.0f} MB more")


if __name__ == "__main__":
    main()
