"""Eight host devices give the answers of one, whether they split the parameters or the rows of a batch."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from lgjax.infer import engine, generate, run
from lgjax.infer.chat import GroundedChat
from lgjax.models.llava_grounding import abstract_params, logical_axes
from lgjax.parallel.mesh import make_mesh
from lgjax.parallel.rules import shardings
from tests.infer.model import GROUNDED, chat, model, picture


@pytest.mark.parametrize(
    "shape", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]
)
def test_answers_do_not_depend_on_the_mesh(shape):
    assert jax.device_count() == 8
    mesh = make_mesh(**shape)
    where = shardings(abstract_params(model().config), logical_axes(model().config), mesh)
    params = jax.tree.map(jax.device_put, model().params, where)
    split = [leaf for leaf in jax.tree.leaves(params) if not leaf.sharding.is_fully_replicated]
    assert len(split) > 100
    sharded = GroundedChat(dataclasses.replace(model(), params=params))
    runs: tuple[dict[str, Any], ...] = ({"max_tokens": 12}, {"answer": GROUNDED, "threshold": 0.02})
    for options in runs:
        same_answers(
            sharded.ask_batch(PICTURES, TEXTS, **options), chat().ask_batch(PICTURES, TEXTS, **options)
        )


PICTURES, TEXTS = [picture(0), picture(1)], ["What is it?", "Describe the scene in detail."]


def same_answers(found, wanted):
    for got, one in zip(found, wanted, strict=True):
        assert got.tagged_text == one.tagged_text
        for a, b in zip(got.phrases, one.phrases, strict=True):
            np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-5, atol=2e-3)
            assert (a.masks != b.masks).mean() < 1e-3


PROGRAMS = (
    (engine, "encode_clip", 1),  # one device encodes its pictures one by one
    (engine, "encode_grounding", 1),
    (run, "embed", 2),
    (generate, "_prefill", 2),
    (generate, "_begin", 2),
    (generate, "_advance", 2),
    (engine, "ground", 2),
    (engine, "masks_of", 2),
)


def operations(monkeypatch, ask) -> dict[str, float]:
    """Operations that one device does in the first call of each program, as XLA counts them."""
    counted: dict[str, float] = {}
    with monkeypatch.context() as patch:
        for module, name, _ in PROGRAMS:
            original = getattr(module, name)

            def counting(*arguments, original=original, name=name):
                if name not in counted:
                    counted[name] = original.lower(*arguments).compile().cost_analysis()["flops"]
                return original(*arguments)

            patch.setattr(module, name, counting)
        ask()
    return counted


def test_each_device_takes_its_part_of_the_rows(monkeypatch):
    """Two rows on eight devices: the same answers, and every device computes one row."""
    mesh = make_mesh(data=8)
    where = shardings(abstract_params(model().config), logical_axes(model().config), mesh)
    params = jax.device_put(model().params, where)
    shared = GroundedChat(dataclasses.replace(model(), params=params, mesh=mesh))
    options: dict[str, Any] = {"answer": GROUNDED, "threshold": 0.02}
    found, wanted = [], []
    many = operations(monkeypatch, lambda: found.extend(shared.ask_batch(PICTURES, TEXTS, **options)))
    one = operations(monkeypatch, lambda: wanted.extend(chat().ask_batch(PICTURES, TEXTS, **options)))
    same_answers(found, wanted)
    for _, name, rows in PROGRAMS:
        assert many[name] == pytest.approx(one[name] / rows, rel=0.2), name
    assert shared.ask(PICTURES[0], TEXTS[0], **options).tagged_text == wanted[0].tagged_text
