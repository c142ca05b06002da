"""Programs of answering as jobs, with a model that compiles in seconds, on one device and on several."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from lgjax.config import debug
from lgjax.convert.store import flattened
from lgjax.jobs.serve import NEW_TOKENS, Kind, serve_job
from lgjax.models.llava_grounding import abstract_params
from lgjax.parallel.chips import Chip
from lgjax.parallel.mesh import make_mesh
from lgjax.parallel.plan import GIB, make_plan
from lgjax.parallel.topology import Target
from tests.train.micro import micro_model

CHIP = Chip(flops=1e12, memory=GIB, bandwidth=1e11, links=1e10, network=1e9)
LENGTH = NEW_TOKENS + 64


def target(count: int) -> Target:
    return Target("host", tuple(jax.devices()[:count]), 1, CHIP)


def numbers(part: str) -> int:
    return sum(math.prod(leaf.shape) for leaf in flattened(abstract_params(micro_model())[part]).values())


@pytest.mark.parametrize(
    ("kind", "part", "width", "handled"),
    [
        ("prefill", "llama", 2, {"tokens": 2.0 * 64}),
        ("decode", "llama", 2, {"tokens": 2.0}),
        ("ground", "grounding", 4, {"images": 2.0}),
    ],
)
def test_a_program_on_one_device(kind: Kind, part: str, width: int, handled: dict[str, float]):
    """Parameters in the numbers that answering keeps them in; operations as the compiler counts them."""
    mesh = make_mesh()
    job = serve_job(kind, micro_model(), mesh, batch=2, length=LENGTH)
    plan = make_plan(job, target(1), mesh)
    assert plan.fits and not plan.collectives and plan.handled == handled
    # single numbers (norms, biases) may stay wide
    assert 0.9 * width * numbers(part) <= plan.parts_gib["parameters"] * GIB < 1.02 * width * numbers(part)
    # a program leaves out what it does not read: prefill is given the rows of its tokens, not their table
    llama = micro_model().llama
    unread = llama.vocab_size * llama.hidden_size if kind == "prefill" else 0
    assert plan.arguments_gib * GIB > 0.95 * width * (numbers(part) - unread)
    assert plan.compiler_flops is not None and 0.5 < plan.flops / plan.compiler_flops < 1.1
    assert plan.seconds is not None and plan.as_json()["per_second"].keys() == handled.keys()


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_heads_on_several_devices(kind: Kind):
    """Each knows its part of the matrices, and they speak after attention and after every MLP."""
    mesh = make_mesh(tensor=4)
    plan = make_plan(serve_job(kind, micro_model(), mesh, batch=2, length=LENGTH), target(4), mesh)
    assert plan.fits and plan.involuntary == 0
    assert plan.parts_gib["parameters"] * GIB < 0.75 * 2 * numbers("llama")  # tables lie on every device
    kinds = {one.kind: one.count for one in plan.collectives}
    assert kinds["all-reduce"] >= 2 * micro_model().llama.num_layers


def test_operations_grow_with_questions_and_with_what_is_read():
    def flops(kind: Kind, batch: int, length: int) -> float:
        return serve_job(kind, micro_model(), make_mesh(), batch=batch, length=length).flops

    config = micro_model()
    assert config.grounding is not None
    states, phrases = config.grounding.transformer.hidden_size, config.llama.hidden_size
    # a batch squares the table that lifts states once, whatever its rows
    once: dict[Kind, int] = {"prefill": 0, "decode": 0, "ground": 2 * states * phrases * states}
    for kind, table in once.items():
        assert 2 * flops(kind, 2, LENGTH) - flops(kind, 4, LENGTH) == pytest.approx(table)
    assert flops("prefill", 1, NEW_TOKENS + 128) > 2 * flops("prefill", 1, NEW_TOKENS + 64)
    long = serve_job("prefill", micro_model(), make_mesh(), batch=1, length=NEW_TOKENS + 1024)
    assert long.handled == {"tokens": 512.0} and "512 of 1024 positions" in long.name
    lengths = np.array([flops("prefill", 1, NEW_TOKENS + seen) for seen in (512, 1024, 1536)])
    assert np.ptp(np.diff(lengths)) == 0 and 0 < np.diff(lengths)[0] < lengths[0]  # as many, that see more
    assert flops("ground", 1, 512) == flops("ground", 1, LENGTH)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "decode", "batch": 0}, "batch 0 must be at least 1"),
        ({"kind": "prefill", "length": NEW_TOKENS}, f"length {NEW_TOKENS} above {NEW_TOKENS}"),
        ({"kind": "ground", "config": dataclasses.replace(debug(), grounding=None)}, "no grounding part"),
    ],
)
def test_faults(options, words):
    given = {"config": micro_model(), "mesh": make_mesh(), "batch": 1, "length": LENGTH, **options}
    with pytest.raises(ValueError, match=words):
        serve_job(**given)
