"""Generation against Hugging Face, and the promises of batching, stopping, `<seg>` states and sampling."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.infer import generate
from lgjax.infer.generate import (
    DecodeSizes,
    Sampling,
    bucket,
    choose,
    coarse_bucket,
    decode,
    nucleus,
    prefill,
)
from lgjax.models.llama import Llama, init_cache
from tests.models.tiny_llama import BASE, CONFIGS, hugging_face, parameters, random_parameters

SEG = 41
SIZES = DecodeSizes(max_new_tokens=12, max_segs=4, seg_id=SEG, stop_ids=(2,), seg_state="before")
MODEL, PARAMS = Llama(BASE), random_parameters(BASE)
PROMPTS = [[5, 9, 33, 60], [7], [11, 12, 13, 14, 15, 16, 17, 18, 19], [80, 3]]


def embed(ids, length=None) -> jax.Array:
    """Embeddings of rows of ids, with large garbage where the padding is."""
    length = length or max(map(len, ids))
    out = np.random.default_rng(0).normal(0, 100, (len(ids), length, BASE.hidden_size)).astype(np.float32)
    for i, row in enumerate(ids):
        out[i, : len(row)] = np.asarray(PARAMS["embed_tokens"])[np.asarray(row)]
    return jnp.asarray(out)


def run(prompts, sizes=SIZES, limits=None, length=None, room=40, params=PARAMS, **options):
    lengths = np.array([len(row) for row in prompts])
    cache = init_cache(BASE, len(prompts), room)
    hidden, cache = prefill(MODEL, params, embed(prompts, length), lengths, cache)
    limits = np.full(len(prompts), sizes.max_new_tokens) if limits is None else np.asarray(limits)
    return decode(MODEL, params, sizes, hidden, cache, lengths, limits, **options)


def answers(out) -> list[list[int]]:
    return [np.asarray(ids[:n]).tolist() for ids, n in zip(out.ids, out.counts, strict=True)]


def states_of(ids) -> np.ndarray:
    """State at every position of one row of ids, by a plain forward."""
    x = jnp.asarray(PARAMS["embed_tokens"])[jnp.asarray(ids)][None]
    return np.asarray(MODEL.apply({"params": PARAMS}, x, jnp.arange(len(ids))[None])[0][0])


def forcing(*rows) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), -1)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_hugging_face(name):
    torch = pytest.importorskip("torch")
    config = CONFIGS[name]
    theirs = hugging_face(config)
    params, model = parameters(theirs, config), Llama(config)
    prompt = np.random.default_rng(1).integers(3, config.vocab_size, (1, 6))
    with torch.no_grad():
        want = theirs.generate(
            torch.from_numpy(prompt),
            attention_mask=torch.ones(1, 6, dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )[0, 6:].tolist()
    x = model.apply({"params": params}, jnp.asarray(prompt), method="embed")
    hidden, cache = prefill(model, params, x, np.array([6]), init_cache(config, 1, 20))
    out = decode(model, params, SIZES, hidden, cache, np.array([6]), np.array([12]))
    assert answers(out)[0] == want


def test_a_row_does_not_depend_on_batch_or_padding():
    together = run(PROMPTS, length=16, room=64)
    for i, prompt in enumerate(PROMPTS):
        assert answers(run([prompt], room=32))[0] == answers(together)[i]


def test_greedy_equals_full_forward():
    for prompt, answer in zip(PROMPTS, answers(run(PROMPTS)), strict=True):
        head = np.asarray(PARAMS["lm_head"]["kernel"])
        logits = states_of(prompt + answer)[len(prompt) - 1 : -1] @ head
        assert logits.argmax(-1).tolist() == answer


def test_limits_and_stops_are_per_row():
    free = answers(run(PROMPTS, dataclasses.replace(SIZES, stop_ids=())))
    stops = (free[0][3], 2)  # an id that row 0 gives
    out = run(PROMPTS, dataclasses.replace(SIZES, stop_ids=stops), limits=[12, 5, 12, 1])
    for i, (row, limit) in enumerate(zip(free, (12, 5, 12, 1), strict=True)):
        at = next((n + 1 for n, token in enumerate(row[:limit]) if token in stops), limit)
        assert answers(out)[i] == row[:at]
        assert bool(out.stopped[i]) == (row[at - 1] in stops)
        assert int(out.cached[i]) == len(PROMPTS[i]) + at - 1
        assert not np.asarray(out.ids[i, at:]).any()


def test_a_limit_below_the_bucket_changes_nothing():
    big = dataclasses.replace(SIZES, max_new_tokens=24)
    assert answers(run(PROMPTS, big, limits=[12] * 4)) == answers(run(PROMPTS))


@pytest.mark.parametrize("seg_state", ["before", "at"])
def test_seg_states(seg_state):
    """Forced `<seg>`s: in the middle, twice in a row, as the last allowed id, right before the stop id."""
    sizes = dataclasses.replace(SIZES, seg_state=seg_state)
    forced = forcing([-1, SEG, -1, SEG, SEG], [SEG], [-1, -1, SEG], [-1, SEG, 2])
    out = run(PROMPTS, sizes, limits=[8, 1, 3, 12], forced=forced)
    assert np.asarray(out.seg_counts).tolist() == [row.count(SEG) for row in answers(out)]
    for i, (prompt, answer) in enumerate(zip(PROMPTS, answers(out), strict=True)):
        whole = prompt + answer
        places = [n for n in range(len(prompt), len(whole)) if whole[n] == SEG]
        states = states_of(whole)[np.array(places) - (seg_state == "before")]
        np.testing.assert_allclose(out.seg_states[i, : len(places)], states, rtol=0, atol=2e-5)
        assert not np.asarray(out.seg_states[i, len(places) :]).any()
        assert len(places) >= 1 and answer[-1] == {1: SEG, 2: SEG, 3: 2}.get(i, answer[-1])


@pytest.mark.parametrize("seg_state", ["before", "at"])
def test_too_many_segs_are_counted(seg_state):
    sizes = dataclasses.replace(SIZES, seg_state=seg_state, max_segs=2)
    out = run(PROMPTS[:2], sizes, limits=[6, 6], forced=forcing([SEG] * 6, [-1, SEG]))
    assert np.asarray(out.seg_counts).tolist() == [6, 1]
    roomy = run(
        PROMPTS[:2], dataclasses.replace(sizes, max_segs=6), [6, 6], forced=forcing([SEG] * 6, [-1, SEG])
    )
    np.testing.assert_array_equal(out.seg_states[0], roomy.seg_states[0, :2])


def test_forced_ids_are_taken_and_fed():
    free = answers(run(PROMPTS[:1]))[0]
    forced = [*free[:2], (free[2] + 1) % 90 + 3]
    out = answers(run(PROMPTS[:1], forced=forcing(forced)))[0]
    assert out[:3] == forced
    assert out[3:] == answers(run([PROMPTS[0] + forced], limits=[9]))[0]


def test_a_second_turn_extends_the_cache():
    """Keep question and answer in the cache, prefill only what is new: as if all had been read at once."""
    first = run(PROMPTS, room=64)
    turns = [[21, 22, 23], [24], [25, 26, 27, 28], [29, 30]]
    wholes = [p + a + t for p, a, t in zip(PROMPTS, answers(first), turns, strict=True)]
    starts = np.asarray(first.cached)
    new = [whole[start:] for whole, start in zip(wholes, starts, strict=True)]
    lengths = np.array([len(row) for row in new])
    hidden, cache = prefill(MODEL, PARAMS, embed(new, 8), lengths, first.cache, starts)
    ends = starts + lengths
    assert ends.tolist() == [len(whole) for whole in wholes]
    for i, whole in enumerate(wholes):
        np.testing.assert_allclose(hidden[i], states_of(whole)[-1], rtol=0, atol=2e-5)
    second = decode(MODEL, PARAMS, SIZES, hidden, cache, ends, np.full(4, 12))
    assert answers(second) == answers(run(wholes, room=64))


@pytest.mark.parametrize("chunk", [1, 4, 9])
def test_prompts_are_read_in_chunks_of_any_size(chunk, monkeypatch):
    """Rows that end in the first chunk, in its last place, in a later one; then a further turn, as well."""
    want = run(PROMPTS, room=64)
    monkeypatch.setattr(generate, "PREFILL_CHUNK", chunk)
    first = run(PROMPTS, length=16, room=64)
    assert answers(first) == answers(want)
    tight = run(PROMPTS, length=16, room=13, limits=[4] * 4)  # what is written for padding has no place
    assert answers(tight) == [row[:4] for row in answers(want)]
    new = [[21, 22, 23, 24, 25, 26, 27], [24], [25, 26, 27, 28], [29, 30]]
    wholes = [p + a[:-1] + t for p, a, t in zip(PROMPTS, answers(first), new, strict=True)]
    lengths, starts = np.array([len(row) for row in new]), np.asarray(first.cached)
    hidden, _ = prefill(MODEL, PARAMS, embed(new, 8), lengths, first.cache, starts)
    for row, whole in zip(hidden, wholes, strict=True):
        np.testing.assert_allclose(row, states_of(whole)[-1], rtol=0, atol=2e-5)


def test_chunks_share_a_program_and_leave_out_padding(monkeypatch):
    """Of 300 embeddings in 512 places 256 are read at once and then 128; 500 need no further program."""
    monkeypatch.setattr(generate, "PREFILL_CHUNK", 256)
    read = []
    program = generate._prefill
    monkeypatch.setattr(
        generate, "_prefill", lambda *given: read.append(given[2].shape[1]) or program(*given)
    )
    for length in (300, 500):
        ids = (np.arange(length) % 80 + 3).tolist()
        cache = init_cache(BASE, 1, 512)
        hidden, _ = prefill(MODEL, PARAMS, embed([ids], 512), np.array([length]), cache)
        np.testing.assert_allclose(hidden[0], states_of(ids)[-1], rtol=0, atol=5e-5)
    assert read == [256, 128, 256, 256]


def test_a_changed_turn_overwrites_what_followed():
    """Start again from a common prefix: entries of the old continuation must not be seen."""
    first = run([[5, 9, 33, 60, 61, 62, 63]], room=40)
    hidden, cache = prefill(MODEL, PARAMS, embed([[70, 71]], 2), np.array([2]), first.cache, np.array([3]))
    np.testing.assert_allclose(hidden[0], states_of([5, 9, 33, 70, 71])[-1], rtol=0, atol=2e-5)
    out = decode(MODEL, PARAMS, SIZES, hidden, cache, np.array([5]), np.array([12]))
    assert answers(out) == answers(run([[5, 9, 33, 70, 71]]))


def sampling(rows, temperature, top_p=1.0, key=0, seeds=None) -> Sampling:
    return Sampling(
        jax.random.key(key),
        np.arange(rows, dtype=np.uint32) if seeds is None else np.asarray(seeds, np.uint32),
        np.broadcast_to(np.float32(temperature), rows),
        np.broadcast_to(np.float32(top_p), rows),
    )


def test_draws_depend_on_the_rows_own_seed_only():
    together = answers(run(PROMPTS, length=16, room=64, sampling=sampling(4, 2.0, seeds=[9, 4, 7, 4])))
    for i, seed in enumerate([9, 4, 7, 4]):
        assert answers(run(PROMPTS[i : i + 1], sampling=sampling(1, 2.0, seeds=[seed])))[0] == together[i]
    greedy = answers(run(PROMPTS))
    assert together != greedy
    assert together != answers(run(PROMPTS, sampling=sampling(4, 2.0, seeds=[1, 2, 3, 5])))
    assert together != answers(run(PROMPTS, sampling=sampling(4, 2.0, key=1, seeds=[9, 4, 7, 4])))
    assert answers(run(PROMPTS, sampling=sampling(4, 5e-5))) == greedy
    mixed = sampling(4, [0.0, 2.0, 0.0, 2.0], seeds=[9, 4, 7, 4])
    assert answers(run(PROMPTS, sampling=mixed)) == [greedy[0], together[1], greedy[2], together[3]]


def nucleus_reference(logits: np.ndarray, top_p: float) -> np.ndarray:
    """Probabilities of the kept ids, renormalised, in float64."""
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    kept, mass = np.zeros(len(p), bool), 0.0
    for token in np.argsort(-p, kind="stable"):
        if mass >= top_p:
            break
        kept[token], mass = True, mass + p[token]
    return np.where(kept, p, 0) / p[kept].sum()


@pytest.mark.parametrize("top_p", [0.01, 0.35, 0.8, 0.999, 1.0])
def test_nucleus_probabilities(top_p):
    rng = np.random.default_rng(3)
    for _ in range(20):
        logits = rng.normal(0, 3, 50).astype(np.float32)
        got = jax.nn.softmax(nucleus(jnp.asarray(logits), jnp.float32(top_p)))
        np.testing.assert_allclose(got, nucleus_reference(logits, top_p), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.8), (2.5, 0.6)])
def test_draws_follow_the_distribution(temperature, top_p):
    stats = pytest.importorskip("scipy.stats")
    logits = np.random.default_rng(5).normal(0, 1.5, 12).astype(np.float32)
    rows = 6000
    ids = np.asarray(
        choose(
            jnp.broadcast_to(jnp.asarray(logits), (rows, 12)),
            jnp.zeros(rows, jnp.int32),
            sampling(rows, temperature, top_p),
        )
    )
    expected = nucleus_reference(logits / temperature, top_p) * rows
    counts = np.bincount(ids, minlength=12)
    assert not counts[expected == 0].any()
    big = expected > 0
    assert stats.chisquare(counts[big], expected[big]).pvalue > 1e-3


def test_greedy_takes_the_lowest_of_equals():
    logits = jnp.asarray([[0.0, 3.0, 1.0, 3.0]])
    assert choose(logits, jnp.zeros(1, jnp.int32), None).tolist() == [1]


def test_one_program_per_bucket():
    run(PROMPTS, length=16, room=64)
    before = generate._prefill._cache_size(), generate._advance._cache_size()
    run([row[::-1] for row in PROMPTS], length=16, room=64, limits=[3, 4, 5, 6])
    fresh, sizes = Llama(BASE), dataclasses.replace(SIZES)
    hidden, cache = prefill(fresh, PARAMS, embed([[4]] * 4, 16), np.ones(4, int), init_cache(BASE, 4, 64))
    decode(fresh, PARAMS, sizes, hidden, cache, np.ones(4, int), np.full(4, 2))
    assert (generate._prefill._cache_size(), generate._advance._cache_size()) == before


@pytest.mark.parametrize("least", [32, 64])
def test_coarse_buckets_are_few_and_close(least):
    found = [coarse_bucket(n, least) for n in range(1, 4097)]
    assert sorted(set(found))[:4] == [least, least * 3 // 2, 2 * least, 3 * least]
    assert all(n <= size and (size <= max(least, 1.5 * n)) for n, size in enumerate(found, 1))
    assert all(coarse_bucket(size, least) == size for size in set(found))


def test_the_cache_is_donated():
    cache = init_cache(BASE, 1, 20)
    hidden, filled = prefill(MODEL, PARAMS, embed([[4, 5]]), np.array([2]), cache)
    assert cache[0].keys.is_deleted()
    decode(MODEL, PARAMS, SIZES, hidden, filled, np.array([2]), np.array([3]))
    assert filled[0].keys.is_deleted()


def test_decoding_does_not_copy_the_cache():
    cache, i = init_cache(BASE, 2, 8192), np.full(2, 5, np.int32)
    hidden = jnp.zeros((2, BASE.hidden_size))
    state = generate.begin(MODEL, PARAMS, SIZES, hidden, cache, i, i)
    compiled = generate._advance.lower(MODEL, PARAMS, SIZES, state, i, i[0], None, None).compile()
    one_layer = 2 * cache[0].keys.nbytes
    assert compiled.memory_analysis().temp_size_in_bytes < one_layer / 4


@pytest.mark.parametrize("seg_state", ["before", "at"])
def test_chunks_of_any_size_give_the_same(seg_state):
    """Ids, states of <seg> and what is cached; a row whose limit is lowered on the way ends there."""
    sizes = dataclasses.replace(SIZES, seg_state=seg_state)
    forced = forcing([SEG, 5, SEG, 7, SEG, 2], [7, 8, 9, 10, 11, SEG], [6, 2], [SEG, SEG, 2])
    whole = run(PROMPTS, sizes, limits=[12, 6, 12, 12], forced=forced)
    lengths = np.array([len(row) for row in PROMPTS])
    before = generate._advance._cache_size()
    for chunk in (1, 2, 5):
        hidden, cache = prefill(MODEL, PARAMS, embed(PROMPTS), lengths, init_cache(BASE, 4, 40))
        limits = np.array([12, 6, 12, 12])
        state = generate.begin(MODEL, PARAMS, sizes, hidden, cache, lengths, limits, forced=forced)
        for _ in range(14):
            state = generate.advance(MODEL, PARAMS, sizes, state, limits, chunk, forced=forced)
        for name in ("ids", "counts", "stopped", "seg_counts", "owed", "cached", "seg_states"):
            np.testing.assert_array_equal(getattr(state, name), getattr(whole, name), err_msg=name)
        hidden, cache = prefill(MODEL, PARAMS, embed(PROMPTS), lengths, init_cache(BASE, 4, 40))
        state = generate.begin(MODEL, PARAMS, sizes, hidden, cache, lengths, limits, forced=forced)
        limits[0] = 1
        state = generate.advance(MODEL, PARAMS, sizes, state, limits, 99, forced=forced)
        assert state.counts[0] == 1 and answers(state)[1:] == answers(whole)[1:]
    assert generate._advance._cache_size() == before  # nor did the first call compile more than one


def test_scanned_layers_generate_the_same(monkeypatch):
    from lgjax.models.layers import stack_layers

    model, params = Llama(BASE, scan_layers=True), stack_layers(PARAMS)
    lengths = np.array([len(row) for row in PROMPTS])
    cache = init_cache(BASE, 4, 40, scan_layers=True)
    monkeypatch.setattr(generate, "PREFILL_CHUNK", 4)
    hidden, cache = prefill(model, params, embed(PROMPTS), lengths, cache)
    out = decode(model, params, SIZES, hidden, cache, lengths, np.full(4, 12))
    monkeypatch.undo()
    assert answers(out) == answers(run(PROMPTS))


def test_bucket():
    assert [bucket(n) for n in (0, 1, 64, 65, 300)] == [64, 64, 64, 128, 320]
    assert bucket(17, 16) == 32


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: run(PROMPTS, limits=[13, 1, 1, 1]), "must be 1 to max_new_tokens = 12"),
        (lambda: run(PROMPTS, limits=[0, 1, 1, 1]), "must be 1 to max_new_tokens"),
        (lambda: run(PROMPTS, room=15), "the cache holds 15 positions, this generation may need 21"),
        (lambda: run(PROMPTS, room=8), "the cache holds 8"),
        (lambda: run(PROMPTS[:1], forced=np.zeros((1, 13), int)), "13 forced ids"),
        (
            lambda: prefill(MODEL, PARAMS, embed([[1]]), np.array([2]), init_cache(BASE, 1, 8)),
            "must be 1 to 1",
        ),
    ],
)
def test_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
