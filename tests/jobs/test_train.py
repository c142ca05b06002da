"""Batches shared out over other devices, candidates of a search, and the rooflines of a plan."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType

from lgjax.jobs.search import candidates, described, search
from lgjax.jobs.show import show_search
from lgjax.jobs.train import eval_job, shared_out, train_job
from lgjax.parallel.chips import Chip, chip_of
from lgjax.parallel.mesh import AXES, make_mesh
from lgjax.parallel.plan import GIB, OTHERS, Job, make_plan
from lgjax.parallel.topology import Target
from lgjax.train.config import TrainConfig
from lgjax.train.step import check_mesh
from tests.train.words import words


def config(groups: int, grounded: int, text: int, accumulate: int = 1) -> TrainConfig:
    plain = words(data={"groups": groups, "text_rows": max(text, 1)}, accumulate=1)
    data = dataclasses.replace(plain.data, grounded_rows=grounded, text_rows=text)
    return dataclasses.replace(plain, data=data, accumulate=accumulate)


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 4).map(lambda n: 2 * n),
    st.integers(1, 8),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2, 4, 8, 16, 32]),
)
def test_a_batch_is_shared_out_without_loss(groups, grounded, text, accumulate, shares):
    groups *= accumulate
    before = config(groups, grounded, text, accumulate)
    try:
        after = shared_out(before, shares)
    except ValueError as error:
        assert "cannot be shared by" in str(error)
        # no whole number of rows would be left in each group
        wanted = shares * accumulate
        times = wanted // math.gcd(groups, wanted)
        assert wanted % groups or grounded % times or text % times
        return
    data = after.data
    assert data.groups * data.grounded_rows == groups * grounded
    assert data.groups * data.text_rows == groups * text
    check_mesh(after, AbstractMesh((1, shares, 1), AXES, axis_types=(AxisType.Auto,) * 3))


CHIP = Chip(flops=1e12, memory=GIB, bandwidth=1e11, links=1e10, network=1e9)


def eight(chip: Chip = CHIP, slices: int = 1) -> Target:
    """The eight devices of this machine as if they were others."""
    return Target("eight", tuple(jax.devices()), slices, chip)


def job_of(function: Any, *arrays: Any, flops: float = 1e9) -> Job:
    return Job(
        name="sum",
        lower=lambda: jax.jit(function).lower(*arrays),
        arguments={"rows": arrays},
        flops=flops,
        handled={"tokens": 80.0},
        remedies={"rows": "fewer rows", "temporaries": "fewer of them"},
    )


def test_the_bounds_of_a_plan_are_what_its_parts_take():
    """A sum over devices: one megabyte lies on each, one number travels."""
    mesh = make_mesh(2, 4)
    rows = jax.ShapeDtypeStruct(
        (8, 2**18), np.float32, sharding=jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    )
    plan = make_plan(job_of(lambda x: (x * 2).sum(), rows), eight(slices=2), mesh)
    assert plan.fits and plan.arguments_gib == 2**20 / GIB and plan.parts_gib == {"rows": 2**20 / GIB}
    (one,) = plan.collectives
    assert one.kind == "all-reduce" and one.across == one.sent == 2 * 4 * 7 / 8
    seconds = plan.seconds
    assert seconds is not None
    assert seconds.compute == pytest.approx(1e9 / 8e12)
    assert seconds.memory == pytest.approx((2**20 + 4) / 1e11)
    assert seconds.links == 0 and seconds.network == pytest.approx(7 / 1e9)
    assert seconds.best == seconds.compute and seconds.worst == pytest.approx(
        seconds.compute + seconds.memory + seconds.network
    )
    said = plan.as_json()
    assert {"fits", "peak_gib", "arguments_gib", "collectives", "flops"} <= said.keys()
    assert said["collectives"]["all-reduce"]["count"] == 1
    assert said["per_second"]["tokens"] == pytest.approx(80 / seconds.best)


def test_what_does_not_fit_comes_with_advice():
    mesh = make_mesh(1, 8)
    where = jax.NamedSharding(mesh, jax.P("fsdp"))
    rows = jax.ShapeDtypeStruct((8, 2**18), np.float32, sharding=where)
    small = dataclasses.replace(CHIP, memory=2.0**19)
    plan = make_plan(job_of(lambda x: x * 2, rows), eight(small), mesh)
    assert not plan.fits and plan.seconds is None and plan.dominates == "rows"
    assert plan.suggestion == "fewer rows" and "not compiled" in plan.refusal


def test_a_compiler_that_refuses_is_quoted(monkeypatch):
    words = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(300.50G) exceeds available HBM (15.75G)."
    )

    class Lowered:
        def compile(self) -> None:
            raise jax.errors.JaxRuntimeError(words)

    mesh = make_mesh(1, 8)
    rows = jax.ShapeDtypeStruct((8, 8), np.float32, sharding=jax.NamedSharding(mesh, jax.P("fsdp")))
    job = dataclasses.replace(job_of(lambda x: x, rows), lower=Lowered)
    plan = make_plan(job, eight(), mesh)
    assert not plan.fits and plan.peak_gib == 300.5 and plan.refusal.startswith("Ran out of memory on HBM")
    assert plan.dominates == "temporaries" and plan.suggestion == "fewer of them"
    assert plan.as_json()["seconds"] is None


def test_a_step_of_training_on_a_mesh():
    """Its parts are those of the state, its operations those that the run itself reports."""
    mesh = make_mesh(1, 8)
    made = words(data={"groups": 8})
    plan = make_plan(train_job(made, mesh), eight(), mesh)
    assert plan.fits and plan.involuntary == 0
    assert plan.parts_gib["state of the optimiser"] == pytest.approx(
        2 * plan.parts_gib["parameters that learn"], rel=1e-3
    )
    assert plan.parts_gib[OTHERS] > 0  # the batch
    assert plan.arguments_gib == pytest.approx(sum(plan.parts_gib.values()))
    assert plan.handled == {"tokens": 16.0 * made.data.length, "images": 16.0}
    kinds = {one.kind for one in plan.collectives}
    assert "all-gather" in kinds and kinds & {"all-reduce", "reduce-scatter"}


def test_a_search_tries_every_mesh_with_the_batch_and_larger_ones():
    found = list(candidates(words(data={"groups": 8}), eight()))
    meshes = [(one.mesh.data, one.mesh.fsdp, one.mesh.tensor) for one in found]
    assert meshes[:3] == [(1, 8, 1), (1, 4, 2), (1, 2, 4)]  # eight heads are four too many
    assert all(math.prod(mesh) == 8 for mesh in meshes)
    rows = [one.data.groups * one.data.text_rows for one in found]
    assert rows == sorted(rows) and rows[0] == 16 and rows[-1] == 64
    assert described(found[0]).startswith("--mesh.data 1 --mesh.fsdp 8 --mesh.tensor 1 --data.groups 8")


def test_a_search_compiles_what_may_fit_and_the_fastest_comes_first(capsys):
    said: list[str] = []
    found = search(words(data={"groups": 8}), eight(), 2, said.append)
    assert [line.partition(":")[0] for line in said] == ["1 of 2", "2 of 2"]
    assert {(one.config.mesh.fsdp, one.config.mesh.tensor) for one in found} == {(8, 1), (4, 2)}
    seconds = [one.plan.seconds for one in found]
    assert all(one.plan.fits for one in found)
    rows = [one.plan.handled["images"] for one in found]
    rates = [count / one.worst for count, one in zip(rows, seconds, strict=True) if one is not None]
    assert rates[0] > rates[1]
    show_search(found)
    shown = "".join(capsys.readouterr().out.split())
    places = [shown.find(f"--mesh.fsdp{one.config.mesh.fsdp}") for one in found]
    assert 0 < places[0] < places[1]


def test_a_search_says_where_nothing_fits():
    tiny = dataclasses.replace(CHIP, memory=1e4)
    with pytest.raises(ValueError, match="on eight the state of this run fits no mesh"):
        search(words(data={"groups": 8}), eight(tiny), 2)


def test_the_losses_of_held_out_rows():
    """A forward alone: a third of the operations of a step, no state of an optimiser, no gradients sent."""
    mesh = make_mesh(1, 8)
    made = words(data={"groups": 8})
    plan, step = make_plan(eval_job(made, mesh), eight(), mesh), train_job(made, mesh)
    assert plan.fits and plan.involuntary == 0 and "state of the optimiser" not in plan.parts_gib
    assert plan.handled == step.handled and 0.3 < plan.flops / step.flops < 0.5
    kinds = {one.kind: one.sent for one in plan.collectives}
    # what is reduced are a few numbers, not the gradients
    assert "all-gather" in kinds and kinds.get("all-reduce", 0) + kinds.get("reduce-scatter", 0) < 1e5


@pytest.mark.parametrize("kind", ["TPU v3", "TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"])
def test_chips_that_are_planned_for_have_every_rate(kind):
    chip = chip_of(kind)
    assert chip is not None and all(value for value in dataclasses.astuple(chip))
    # operations for each byte of memory, and bytes of memory for each byte of links, are of one order
    assert 100 < chip.flops / chip.bandwidth < 700 and 2 < chip.bandwidth / chip.links < 12
