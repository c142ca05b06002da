"""A step: padding changes nothing, the state is used up, one program serves all, bad steps leave no trace."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from lgjax.config import IGNORE_LABEL
from lgjax.data.batch import Batch, SampleMaker, concatenate
from lgjax.train.checkpoint import Checkpoints, kept_steps
from lgjax.train.config import TrainConfig
from lgjax.train.loop import train
from lgjax.train.start import abstract_state, load_tokenizer, placed
from lgjax.train.step import TrainState, compile_step, on_mesh
from tests.train import steps
from tests.train.micro import micro
from tests.train.words import words

ONE, EIGHT = (1, 1, 1), (2, 2, 2)
MICRO = micro(data={"groups": 8})  # also compiled by tests/distributed
WORDS = words(data={"groups": 8})


def first_step(config: TrainConfig, batch: Batch) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and gradients."""
    state, metrics = steps.take_step(config, ONE, steps.start(config, ONE), steps.rows_of(batch, ONE))
    assert not metrics["skipped"]
    return metrics, steps.gradients(state, config)


def assert_same_step(config: TrainConfig, batch: Batch, other_config: TrainConfig, other: Batch) -> None:
    metrics, grads = first_step(other_config, other)
    want, want_grads = first_step(config, batch)
    for name, value in want.items():
        if name.startswith(("loss", "last")):
            assert abs(metrics[name] - value) <= 1e-5 * abs(value), f"{name} is {metrics[name]}, not {value}"
    assert grads.keys() == want_grads.keys() and len(grads) > 20
    largest = max(float(np.abs(grad).max()) for grad in want_grads.values())
    for path, grad in want_grads.items():
        error = np.linalg.norm(grads[path] - grad)
        assert error <= 1e-5 * np.linalg.norm(grad) + 1e-9 * largest, f"gradient of {path}: {error}"


def test_what_stands_in_padding_changes_nothing():
    """Tokens behind a row, phrases and objects behind the real ones, and rows that are not learnt."""
    (batch,) = steps.host_batches(MICRO, 1)
    rng = np.random.default_rng(0)
    plan, language, ground = batch.language.plan, batch.language, batch.grounding
    filler = np.zeros(len(language.lm_weight), bool)
    filler[-2:] = True  # a whole group
    nothing = dataclasses.replace(MICRO.data.batch(MICRO.model))
    maker = {
        kind: SampleMaker(nothing, load_tokenizer(MICRO), kind).filler("").language for kind in (True, False)
    }

    def with_fillers(array: Any, empty: Any) -> Any:
        return np.concatenate([array[:-2], empty, empty])

    # the last group holds nothing, once as the pipeline leaves such rows and once with anything in them
    language = jax.tree.map(with_fillers, language, maker[True])._replace(sample_id=language.sample_id)
    last = np.arange(len(ground.weight)) == len(ground.weight) - 1
    ground = ground._replace(
        weight=np.where(last, 0, ground.weight).astype(np.float32),
        seg_mask=ground.seg_mask & ~last[:, None],
        object_mask=ground.object_mask & ~last[:, None],
        has_mask=ground.has_mask & ~last[:, None],
        object_phrases=ground.object_phrases & ~last[:, None, None],
    )
    plan = language.plan
    unused, phrases, objects = ~plan.mask, ~ground.seg_mask, ~ground.object_mask
    assert unused.any() and phrases.any() and objects.any()

    def noise(where: np.ndarray, array: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        where = where.reshape(where.shape + (1,) * (array.ndim - where.ndim))
        return np.where(where, drawn, array).astype(array.dtype)

    def anywhere(array: np.ndarray, least: int, most: int) -> np.ndarray:
        return rng.integers(least, most, array.shape)

    dirty_plan = plan._replace(
        tokens=noise(unused, plan.tokens, anywhere(plan.tokens, 0, 800)),
        patches=noise(unused, plan.patches, anywhere(plan.patches, -1, 4)),
    )
    garbage = Batch(
        language._replace(
            plan=dirty_plan,
            clip_images=noise(filler, language.clip_images, anywhere(language.clip_images, 0, 256)),
        ),
        ground._replace(
            images=noise(last, ground.images, anywhere(ground.images, 0, 256)),
            seg_positions=noise(phrases, ground.seg_positions, anywhere(ground.seg_positions, 0, 128)),
            boxes=noise(objects, ground.boxes, rng.uniform(0.2, 0.5, ground.boxes.shape)),
            masks=noise(objects, ground.masks, anywhere(ground.masks, 0, 256)),
            prompts=noise(objects, ground.prompts, rng.uniform(0.2, 0.8, ground.prompts.shape)),
            is_box=noise(objects, ground.is_box, anywhere(ground.is_box, 0, 2)),
        ),
        batch.notes,
    )
    clean = Batch(language, ground, batch.notes)
    assert (plan.labels[unused] == IGNORE_LABEL).all()
    assert_same_step(MICRO, clean, MICRO, garbage)


def grown(make: Any, **data: Any) -> tuple[TrainConfig, Batch, TrainConfig, Batch]:
    """A batch, and the same samples in larger arrays with two groups of fillers behind them."""
    config, wide = make(data={"groups": 8}), make(data={"groups": 8, **data})
    (batch,), (padded,) = steps.host_batches(config, 1), steps.host_batches(wide, 1)
    assert not batch.notes.cuts.any() and not padded.notes.cuts.any()
    sizes, tokenizer = wide.data.batch(wide.model), load_tokenizer(wide)
    lanes = [True] * wide.data.grounded_rows + [False] * wide.data.text_rows
    fillers = [SampleMaker(sizes, tokenizer, grounded).filler("") for grounded in lanes * 2]
    return config, batch, make(data={"groups": 10, **data}), concatenate([padded, *fillers])


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (words, {"length": 160}),
        pytest.param(micro, {"length": 160, "phrases": 7, "objects": 9}, marks=pytest.mark.slow),
        pytest.param(micro, {}, marks=pytest.mark.slow),
    ],
    ids=["words", "micro", "micro, fillers alone"],
)
def test_larger_arrays_and_filler_rows_change_nothing(make, data):
    assert_same_step(*grown(make, **data))


def buffers(state: TrainState) -> dict[str, int]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): leaf.unsafe_buffer_pointer() for path, leaf in leaves}


def test_the_state_is_used_up():
    """The new state lies where the old one was; a flag that no step reads is all that is held twice."""
    state = steps.start(MICRO, ONE)
    old, places = jax.tree.leaves(state), buffers(state)
    size = sum(leaf.nbytes for leaf in old)
    (batch,) = steps.host_batches(MICRO, 1)
    state, _ = steps.take_step(MICRO, ONE, state, steps.rows_of(batch, ONE))
    assert len(old) > 1000 and sum(not leaf.is_deleted() for leaf in old) == 1
    moved = {name for name, place in buffers(state).items() if place != places[name]}
    assert moved == {".optimizer.last_finite"}
    memory = steps.compiled(MICRO, ONE).memory_analysis()
    assert memory.alias_size_in_bytes == size - 1
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 10_000  # the metrics


@pytest.mark.parametrize("shape", [ONE, EIGHT])
def test_one_program_serves_all_steps(shape, tmp_path):
    """Also those of a run that goes on from a checkpoint, and those that are left out."""
    mesh = steps.mesh_of(shape)
    state = steps.start(WORDS, shape)
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    step: Any = compile_step(WORDS, mesh, state)
    checkpoints = Checkpoints(tmp_path, WORDS)
    for number, batch in enumerate(steps.host_batches(WORDS, 4)):
        if number == 2:
            checkpoints.save(state, 0)
            checkpoints.wait()
            wanted = placed(abstract_state(WORDS), WORDS, mesh)
            state = checkpoints.restore(wanted, state.frozen, 0, print)
        if number == 3:
            state = poisoned(state)
        with on_mesh(mesh):
            state, metrics = step(state, steps.rows_of(batch, shape), jax.random.key(0))
        assert bool(metrics["skipped"]) == (number == 3)
        same = jax.tree.map(lambda leaf, was: leaf.sharding.is_equivalent_to(was, leaf.ndim), state, where)
        assert all(jax.tree.leaves(same))
    checkpoints.close()
    assert step._cache_size() == 1


POISONED = "llama/norm/scale"


def poisoned(state: TrainState) -> TrainState:
    return state._replace(trained={**state.trained, POISONED: state.trained[POISONED] * np.nan})


def everything(state: TrainState) -> dict[str, np.ndarray]:
    """What learns and the optimiser's state, by place, apart from counts of bad steps."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.trained, state.optimizer.inner_state)):
        found[jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def test_a_step_without_finite_numbers_leaves_no_trace():
    """Good, bad, good gives the bits of good, good; the rate goes on as if the bad step had not been."""
    first, second = steps.host_batches(WORDS, 2)
    state, _ = steps.take_step(WORDS, ONE, steps.start(WORDS, ONE), steps.rows_of(first, ONE))
    kept = np.asarray(state.trained[POISONED])
    before = everything(state)
    state, metrics = steps.take_step(WORDS, ONE, poisoned(state), steps.rows_of(second, ONE))
    assert np.isnan(metrics["loss"]) and metrics["skipped"] == metrics["bad_steps"] == 1
    after = everything(state)
    name = f"[0]['{POISONED}']"
    assert np.isnan(after.pop(name)).all() and before.pop(name).any()
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf, err_msg=path)
    state = state._replace(trained={**state.trained, POISONED: jax.numpy.asarray(kept)})
    state, metrics = steps.take_step(WORDS, ONE, state, steps.rows_of(second, ONE))
    assert metrics["bad_steps"] == 0 and metrics["skipped_steps"] == 1
    straight, (_, straight_metrics) = steps.run(WORDS, ONE, 2)
    for (path, leaf), other in zip(everything(state).items(), everything(straight).values(), strict=True):
        np.testing.assert_array_equal(leaf, other, err_msg=path)
    assert metrics["rate"] == straight_metrics["rate"] > 0
    assert int(state.step) == 3


@pytest.mark.parametrize("where", ["boxes", "prompts"])
def test_numbers_of_the_data_that_are_not_finite_are_not_learnt(where):
    (batch,) = steps.host_batches(MICRO, 1)
    numbers = getattr(batch.grounding, where).copy()
    row = int(np.flatnonzero(batch.grounding.object_mask.any(1) & (batch.grounding.weight > 0))[0])
    numbers[row, 0] = np.nan
    rows = steps.rows_of(batch._replace(grounding=batch.grounding._replace(**{where: numbers})), ONE)
    state = steps.start(MICRO, ONE)
    before = everything(state)
    state, metrics = steps.take_step(MICRO, ONE, state, rows)
    assert metrics["skipped"] == metrics["bad_steps"] == 1
    for (path, leaf), other in zip(before.items(), everything(state).values(), strict=True):
        np.testing.assert_array_equal(other, leaf, err_msg=path)
    state, metrics = steps.take_step(MICRO, ONE, state, rows)
    assert metrics["bad_steps"] == 2
    state, metrics = steps.take_step(MICRO, ONE, state, steps.rows_of(batch, ONE))
    assert metrics["bad_steps"] == 0 and metrics["skipped_steps"] == 2 and np.isfinite(metrics["loss"])


def test_a_run_of_bad_steps_ends_and_leaves_good_checkpoints(tmp_path: Path):
    """With an enormous rate the numbers overflow from the third step on; then nothing is learnt or saved."""
    config = words(optim={"lr": 1e30}, steps=20, bad_steps=4, save_every=1, keep=2)
    with pytest.raises(RuntimeError, match=r"^4 steps in a row up to step 6 .*norm/llama.* Lower --optim.lr"):
        train(config, tmp_path, console=Console(quiet=True))
    assert kept_steps(tmp_path) == [1, 2] and not (tmp_path / "model").exists()
    checkpoints = Checkpoints(tmp_path, config)
    wanted = placed(abstract_state(config), config, steps.mesh_of(ONE))
    notes = json.loads((tmp_path / "checkpoints" / "1" / "notes" / "metadata").read_text())
    for step in (1, 2):
        state = checkpoints.read(step, wanted, {}, notes["frozen"])
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))
    checkpoints.close()
