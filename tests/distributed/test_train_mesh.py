"""Training on eight devices gives the losses of one; what its program holds and what travels in it."""

from __future__ import annotations

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lgjax.train.config import TrainConfig
from lgjax.train.start import abstract_state
from lgjax.train.step import make_step
from tests.train import steps
from tests.train.micro import micro
from tests.train.quick import OPTIONS
from tests.train.words import words

ONE, EIGHT = (1, 1, 1), (2, 2, 2)
STEPS, ROWS = 10, 16  # rows of a step: 8 groups of 2
INVOLUNTARY = "Involuntary full rematerialization"


def eight_groups(make: Any, **changes: Any) -> TrainConfig:
    changes["data"] = {"groups": 8, **changes.get("data", {})}
    return make(**changes)


@functools.cache
def metrics_of(config: TrainConfig, shape: steps.Shape) -> list[dict[str, float]]:
    return steps.run(config, shape, STEPS)[1]


def assert_same_losses(got: list[dict[str, float]], want: list[dict[str, float]]) -> None:
    """All losses by kind, and norms of gradients as a check of the backward pass."""
    assert len(got) == len(want) == STEPS
    for step, (one, other) in enumerate(zip(got, want, strict=True)):
        names = [name for name in other if name.startswith(("loss", "last", "norm"))]
        assert names and one.keys() >= set(names)
        for name in names:
            tolerance = 1e-5 if "norm" not in name else 1e-4
            assert abs(one[name] - other[name]) <= tolerance * abs(other[name]), (
                f"step {step}: {name} is {one[name]}, not {other[name]}"
            )


def assert_learns(metrics: list[dict[str, float]], kinds: int) -> None:
    """A comparison of constants would show nothing."""
    assert len([name for name in metrics[0] if name.startswith("loss/")]) == kinds
    changed = [
        name for name in metrics[0] if name.startswith("loss") and metrics[0][name] != metrics[-1][name]
    ]
    assert len(changed) == kinds + 1 and not any(one["skipped"] for one in metrics)


def test_eight_devices_give_the_losses_of_one():
    """Every loss, with stochastic depth."""
    config = eight_groups(micro)
    assert config.loss.drop_path and config.model.grounding.swin.drop_path_rate > 0
    want = metrics_of(config, ONE)
    assert_learns(want, 11)
    assert_same_losses(metrics_of(config, EIGHT), want)


@pytest.mark.parametrize("shape", [ONE, EIGHT])
@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"scan_layers": True, "remat": True}], ids=str)
def test_micro_batches_and_scanned_layers_give_the_losses_without(shape, changes):
    want = metrics_of(eight_groups(words), ONE)
    assert_learns(want, 1)
    assert_same_losses(metrics_of(eight_groups(words, **changes), shape), want)


BY_GROUP = {"object_mean": "group", "phrase_mean": "sample", "language_mean": "stream"}


@pytest.mark.slow  # a minute to compile each
@pytest.mark.parametrize(
    ("shape", "changes", "common"),
    [
        (ONE, {"accumulate": 2}, {}),
        (EIGHT, {"accumulate": 2}, {}),
        (ONE, {"scan_layers": True, "remat": True}, {}),
        (EIGHT, {"scan_layers": True, "remat": True}, {}),
        ((1, 8, 1), {}, {}),
        ((1, 1, 8), {}, {}),
        ((2, 1, 4), {"accumulate": 4}, {}),
        # four rows cannot be shared by eight devices: neighbours along tensor compute the same
        (EIGHT, {}, {"data": {"groups": 4}}),
        (EIGHT, {"accumulate": 2}, {"loss": BY_GROUP}),
        (EIGHT, {"accumulate": 2}, {"data": {"grounded_rows": 2, "text_rows": 0}}),
        (EIGHT, {}, {"optim": {"clip_norm": 0.5}, "frozen": "int8"}),
    ],
    ids=str,
)
def test_any_mesh_gives_the_losses_of_one_device(shape, changes, common):
    want = metrics_of(eight_groups(micro, **common), ONE)
    assert_learns(want, 11)
    assert_same_losses(metrics_of(eight_groups(micro, **common, **changes), shape), want)


def traced(make: Any, shape: steps.Shape) -> str:
    return steps.lowered(eight_groups(make), shape).as_text()


def test_activations_are_constrained_on_a_mesh_alone():
    config = eight_groups(micro)
    length, width = config.data.length, config.model.llama.hidden_size
    activation = rf'sdy\.sharding_constraint .*"data", "fsdp".* : tensor<{ROWS}x{length}x{width}x'
    layers = config.model.llama.num_layers
    # the input and every layer's output, forward; as many again of their gradients
    assert len(re.findall(activation, traced(micro, EIGHT))) == 2 * (layers + 1)
    tower = config.model.clip
    pictures = rf"sdy\.sharding_constraint .* : tensor<{ROWS}x{tower.num_patches + 1}x{tower.hidden_size}x"
    assert len(re.findall(pictures, traced(micro, EIGHT))) == tower.used_layers + 1
    plain = eight_groups(words)
    inputs = steps.start(plain, ONE), steps.rows_of(steps.host_batches(plain, 1)[0], ONE), jax.random.key(0)
    without = jax.jit(make_step(plain, steps.mesh_of(ONE))).lower(*inputs).as_text()
    assert "sharding_constraint" not in without and "stablehlo.dot_general" in without


def test_nothing_calls_back_to_the_host():
    for text in (traced(micro, ONE), traced(micro, EIGHT)):
        assert "callback" not in text and "stablehlo.while" in text


COLLECTIVE = (
    r"= (\(.*?\)|\S+) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def collectives(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(kind, shape) of every array that a collective of a compiled program gives."""
    found = []
    for line in text.splitlines():
        if match := re.search(COLLECTIVE, line):
            for shape in re.findall(r"\w+\[([\d,]*)\]", match[1]):
                found.append((match[2], tuple(int(size) for size in shape.split(",") if size)))
    return found


def test_vision_sends_nothing_but_parameters_and_gradients():
    """What is gathered is a parameter, a piece of one, or a device's own rows of text; never images."""
    config = eight_groups(micro)
    state = abstract_state(config)
    own, length, width = ROWS // 4, config.data.length, config.model.llama.hidden_size
    rows = {(own, length, width), (own, config.data.phrases, width), (own, config.data.objects, width)}
    sizes = {tuple(sorted(leaf.shape)) for leaf in (*state.trained.values(), *state.frozen.values())}
    sizes.add((width, 804))  # 803 rows, on two devices
    patch, vision = config.model.clip.patch_size, config.model.clip.hidden_size
    sizes.add(tuple(sorted((3 * patch**2, vision))))  # the convolution that cuts patches is a product

    def is_piece(shape: tuple[int, ...]) -> bool:
        parts = [(1, 2, 4, 8)] * len(shape)
        return any(
            tuple(sorted(np.multiply(shape, factors).tolist())) in sizes
            for factors in itertools.product(*parts)
        )

    found = collectives(steps.compiled(config, EIGHT).as_text())
    gathered = {shape for kind, shape in found if kind == "all-gather"}
    assert len(gathered) > 20 and (own, length, width) in gathered
    assert not [shape for shape in gathered - rows if not is_piece(shape)]
    # the input table, whose rows are not those that the head is split by
    moved = {shape for kind, shape in found if kind in ("all-to-all", "collective-permute")}
    assert not [shape for shape in moved if not is_piece(tuple(size for size in shape if size > 1))]


def compile_anew(low: Any) -> None:
    """Compile even what is in the cache, so that the compiler says what it has to say."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        low.compile(OPTIONS)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def test_the_compiler_says_when_it_moves_everything(capfd):
    """The test below would see it: rows of a table taken without gathering its width first."""
    mesh = steps.mesh_of(EIGHT)
    batch = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    table = jax.ShapeDtypeStruct(
        (64, 64), np.float32, sharding=jax.NamedSharding(mesh, jax.P("tensor", "fsdp"))
    )
    ids = jax.ShapeDtypeStruct((16, 8), np.int32, sharding=batch)
    take = jax.jit(lambda table, ids: jax.lax.with_sharding_constraint(jnp.take(table, ids, axis=0), batch))
    compile_anew(take.lower(table, ids))
    assert INVOLUNTARY in capfd.readouterr().err


@pytest.mark.parametrize("make", [words, pytest.param(micro, marks=pytest.mark.slow)])
def test_the_compiler_moves_nothing_that_it_was_not_told_to(make, capfd):
    low = steps.lowered(eight_groups(make), EIGHT)
    capfd.readouterr()
    compile_anew(low)
    assert INVOLUNTARY not in capfd.readouterr().err
