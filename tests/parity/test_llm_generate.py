"""Greedy generation against the original, on every case of every `llm_forward*.json` of the folder."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.infer.generate import DecodeSizes, bucket, decode, prefill
from lgjax.models.llama import Llama, init_cache
from lgjax.models.splice import plan_batch, plan_row, splice
from tests.parity import cases
from tests.parity.llm import EOS_ID, PERCENT_ID, SEG_ID, llama_config, manifest

ATOL = 1e-4
STORED = {path: json.loads(path.read_text()) for path in cases.files("llm_forward*.json")}
CASES = [
    (path, name) for path, info in STORED.items() for name in [case["name"] for case in info["generate"]]
]


@pytest.mark.parametrize("path,name", CASES, ids=[f"{path.stem}-{name}" for path, name in CASES])
@pytest.mark.parametrize("seg_state", ["before", "at"])
def test_greedy(path, name, seg_state):
    info, stored = STORED[path], np.load(path.with_suffix(".npz"))
    case = next(case for case in info["generate"] if case["name"] == name)
    params = cases.parameters(manifest(info), info["seed"])["llama"]
    head = params["lm_head"]["kernel"].copy()
    for row, terms in case["lm_head_overrides"].items():
        head[:, int(row)] = sum(np.float32(f) * params["lm_head"]["kernel"][:, source] for source, f in terms)
    params = jax.tree.map(jnp.asarray, {**params, "lm_head": {"kernel": head}})
    model = Llama(llama_config(info))

    prompted = "obj_feats" in case
    projected = stored["clip.projected"][case["image"] : case["image"] + 1]
    row = plan_row(case["prompt_ids"], projected.shape[1], PERCENT_ID if prompted else None)
    assert len(row.tokens) == case["prompt_length"]
    plan = plan_batch([row], length=bucket(len(row.tokens)))
    objects = jnp.asarray(stored["visual_prompt.obj_feats"][:1, :1]) if prompted else None
    embeds = splice(
        lambda ids: model.apply({"params": params}, ids, method="embed"),
        plan,
        jnp.asarray(projected),
        objects,
    )

    limit = bucket(case["limit"], 16)
    sizes = DecodeSizes(
        max_new_tokens=limit, max_segs=limit, seg_id=SEG_ID, stop_ids=(EOS_ID,), seg_state=seg_state
    )
    cache = init_cache(model.config, 1, embeds.shape[1] + limit)
    hidden, cache = prefill(model, params, embeds, plan.lengths, cache)
    want = stored[f"gen.{name}.hidden"]
    np.testing.assert_allclose(hidden[0], want[0], rtol=0, atol=ATOL)
    out = decode(
        model,
        params,
        sizes,
        hidden,
        cache,
        plan.lengths,
        np.asarray([case["limit"]]),
    )
    ids = np.asarray(out.ids[0, : out.counts[0]])
    np.testing.assert_array_equal(ids, stored[f"gen.{name}.ids"])
    assert bool(out.stopped[0]) == case["stopped"]

    # the states that predict the ids, from one forward over prompt and answer
    answer = model.apply({"params": params}, jnp.asarray(ids[None]), method="embed")
    whole = jnp.concatenate([embeds[:, : case["prompt_length"]], answer], 1)
    positions = jnp.arange(whole.shape[1])[None]
    states = np.asarray(model.apply({"params": params}, whole, positions)[0][0, case["prompt_length"] - 1 :])
    np.testing.assert_allclose(states[:-1], want, rtol=0, atol=ATOL)
    segs = np.flatnonzero(ids == SEG_ID)
    assert out.seg_counts[0] == len(segs) == len(stored[f"gen.{name}.seg_hidden"])
    got = np.asarray(out.seg_states[0, : len(segs)])
    if seg_state == "before":
        np.testing.assert_allclose(got, stored[f"gen.{name}.seg_hidden"], rtol=0, atol=ATOL)
    else:
        np.testing.assert_allclose(got, states[segs + 1], rtol=0, atol=ATOL)
