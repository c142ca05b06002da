"""The arithmetic of measurements, and the facts of work."""

import dataclasses
import functools
import math
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgjax.bench import language, machine, talk, timing, training, vision
from lgjax.bench.cases import sizes_of
from lgjax.bench.machine import Ceilings
from lgjax.bench.weights import parameters
from lgjax.infer import engine
from lgjax.infer.chat import GroundedChat
from lgjax.infer.stream import Done, Found, Words
from lgjax.models.kernels import dense
from lgjax.models.llama import Llama
from lgjax.models.llava_grounding import abstract_params
from tests.train.counting import traced_flops

SECONDS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9)


@given(SECONDS)
def test_spread_is_the_middle_and_the_ends(values):
    spread = timing.Spread.of(values)
    low, high = np.quantile(values, 0.5, method="lower"), np.quantile(values, 0.5, method="higher")
    assert spread.median == pytest.approx((low + high) / 2)
    assert (spread.least, spread.most) == (sorted(values)[0], sorted(values)[-1])


def test_ratios_are_of_pairs_not_of_medians():
    # the machine is ten times slower for one pair: medians of each side would say 5, every pair says 0.5
    ours, theirs = [1.0, 10.0, 10.0], [2.0, 20.0, 20.0]
    assert dataclasses.astuple(timing.ratios(ours, theirs)) == (0.5, 0.5, 0.5)
    skewed = timing.ratios([10.0, 10.0, 1.0], [20.0, 2.0, 2.0])
    assert dataclasses.astuple(skewed) == (0.5, 0.5, 5.0)
    with pytest.raises(ValueError):
        timing.ratios([1.0], [1.0, 2.0])


@given(SECONDS, st.floats(0.1, 10))
def test_ratios_of_a_constant_slowdown(values, factor):
    found = timing.ratios([factor * value for value in values], values)
    assert dataclasses.astuple(found) == pytest.approx((factor,) * 3)


def test_the_slower_limit_is_the_best_time():
    assert timing.best_seconds(100.0, 10.0, 50.0, 10.0) == (2.0, "products")
    assert timing.best_seconds(100.0, 90.0, 50.0, 10.0) == (9.0, "memory")
    assert timing.best_seconds(None, 90.0, 50.0, 10.0) == (9.0, "memory")
    assert timing.best_seconds(None, None, 50.0, 10.0) is None


def test_disagreement_of_numbers_ids_and_texts():
    assert timing.disagreement([1.0, -4.0], [1.0, -4.0]) == 0
    assert timing.disagreement([1.0, -4.0], [1.0, -5.0]) == pytest.approx(0.2)
    assert timing.disagreement([1.0, math.nan], [1.0, 2.0]) == 1
    assert timing.disagreement([3, 4, 5, 6], [3, 4, 5, 7]) == 0.25
    assert timing.disagreement(["a", "b"], ["a", "c"]) == 0.5
    assert timing.disagreement([1, 2], [1]) == 1
    assert timing.disagreement([], []) == 0


def test_timed_counts_what_passes():
    assert 0.02 <= timing.timed(lambda: time.sleep(0.02))() < 10


def test_peak_memory_keeps_what_was_freed():
    code = (
        "import numpy as np\nfrom lgjax.bench.timing import peak_memory\n"
        "before = peak_memory()\nnp.ones(2**26, np.uint8)\nprint(peak_memory() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.9 * 2**26 < int(done.stdout) < 1.5 * 2**26


def test_ceilings_take_the_best_library():
    found = Ceilings(
        cores=1, platform="cpu", copy=3.0, read=2.0, float32={"a": 5.0, "b": 7.0}, bfloat16={"a": 1.0}
    )
    assert (found.rate("float32"), found.rate("bfloat16")) == (7.0, 1.0)


def test_best_is_the_fastest_trial(monkeypatch):
    ticks = iter([0.0, 5.0, 10.0, 11.0, 20.0, 27.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(ticks))
    assert machine.best(lambda: None, trials=3) == 1


@pytest.mark.parametrize(("pause", "sides"), [(0.0, {128, 1024}), (0.01, {128})])
def test_products_that_a_processor_lacks_are_measured_small(monkeypatch, pause, sides):
    torch, seen = pytest.importorskip("torch"), set()

    def product(a, b, out):
        seen.add(len(a))
        if pause:
            time.sleep(pause)

    monkeypatch.setattr(torch, "matmul", product)
    monkeypatch.setattr(torch, "set_num_threads", lambda cores: None)
    assert machine._torch_rate(1024, "bfloat16", 1) > 0 and seen == sides


def test_decoding_reads_every_weight_but_the_input_table_once_a_token():
    sizes = sizes_of("debug")
    llama = sizes.config.llama
    work = language.decode(sizes, "float32")
    assert work.seconds() > 0
    facts = work.facts()
    width, heads, kv = (
        llama.hidden_size,
        llama.num_heads * llama.head_dim,
        llama.num_kv_heads * llama.head_dim,
    )
    layer = 2 * width * heads + 2 * width * kv + 3 * width * llama.mlp_size + 2 * width
    weights = llama.num_layers * layer + width + width * llama.vocab_size
    context = sizes.prompt_tokens + sizes.new_tokens / 2
    cache = 2 * llama.num_layers * kv * context
    assert facts.num_bytes == 4 * (sizes.new_tokens - 1) * (weights + cache)
    assert facts.handled == {"tokens": sizes.new_tokens}
    assert facts.flops == pytest.approx(2 * (sizes.new_tokens - 1) * weights, rel=0.2)
    assert len(facts.output) == sizes.new_tokens
    assert all(isinstance(i, int) and 0 <= i < llama.vocab_size for i in facts.output)


@pytest.mark.parametrize(("dtype", "a_number"), [("bfloat16", 2.0), ("int8", 1.0), ("int4", 0.5)])
def test_smaller_weights_are_read_as_they_are_kept(dtype, a_number):
    sizes = sizes_of("debug")
    small, whole = (parameters(sizes.config, "llama", dtype=of)["llama"] for of in (dtype, "float32"))
    numbers = whole["layers_0"]["mlp"]["gate_proj"]["kernel"]
    kept = jax.tree.map(lambda part: part[0], small["layers"]["mlp"]["gate_proj"]["kernel"])
    assert kept.values.nbytes == a_number * numbers.size
    assert (
        0
        < np.abs(dense(kept) - numbers).max()
        < {2.0: 0.004, 1.0: 0.006, 0.5: 0.1}[a_number] * np.abs(numbers).max()
    )
    work = language.decode(sizes, dtype)
    work.seconds()
    facts = work.facts()
    assert len(facts.output) == sizes.new_tokens and f"{dtype} weights" in facts.what
    cache = language.cache_bytes(sizes.config.llama, sizes.prompt_tokens + sizes.new_tokens / 2, 4)
    assert facts.num_bytes == (sizes.new_tokens - 1) * (language.read_bytes(small) + cache)


@pytest.mark.parametrize("preset", ["debug", "7b-parts"])
def test_operations_are_the_products_of_the_programs_that_answer(preset):
    sizes = sizes_of(preset)
    config, params = sizes.config, abstract_params(sizes.config)
    assert config.grounding is not None
    width, side, queries = config.llama.hidden_size, config.grounding.image_size, config.grounding.num_queries
    canvas = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    view = jax.ShapeDtypeStruct((1, config.clip.image_size, config.clip.image_size, 3), np.float32)
    embeds = jax.ShapeDtypeStruct((1, 3, width), np.float32)
    regions = jax.ShapeDtypeStruct((1, 4, 4), np.float32)

    def ground(params, canvas, phrases):
        features = engine.encode_grounding(config, params, canvas)
        out = engine.ground(config, params, features, phrases, np.ones((1, 3), bool), queries)
        return *out[:2], engine.masks_of(out[2], features.mask_features, np.zeros((1, 3), np.int32))

    def prompt(params, canvas, regions):
        features = engine.encode_prompting(config, params, canvas)
        return engine.read_prompts(
            config, params, features, regions, np.ones((1, 4), int), np.ones((1, 4), bool)
        )

    def read(params, embeds):
        model = Llama(config.llama, np.float32)
        hidden = model.apply({"params": params["llama"]}, embeds, jnp.arange(3)[None])[0]
        return model.apply({"params": params["llama"]}, hidden[:, -1], method="logits")

    counted = vision.operations(sizes, length=3, phrases=3, prompts=4)
    assert counted["grounding"] == traced_flops(ground, params, canvas, embeds)
    assert counted["prompt"] == traced_flops(prompt, params, canvas, regions)
    assert counted["llama"] + counted["head"] == traced_flops(read, params, embeds)
    encode = functools.partial(engine.encode_clip, config)
    assert counted["clip"] + counted["projector"] == traced_flops(encode, params, view)


def test_kept_features_give_what_the_picture_gives():
    outputs = []
    for anew in (False, True):
        work = vision.grounding_again(sizes_of("debug"), anew=anew)
        work.seconds()
        work.seconds()
        outputs.append(work.facts().output)
    assert timing.disagreement(*outputs) < 1e-6
    assert len(set(outputs[0])) > 10


def test_matching_by_scipy_costs_the_same():
    totals = []
    for by_scipy in (False, True):
        work = training.matching(sizes_of("debug"), by_scipy=by_scipy)
        work.seconds()
        totals.append(work.facts().output)
    assert totals[0] == pytest.approx(totals[1]) and min(totals[0]) > 0


def test_a_batch_reads_weights_once_where_one_by_one_reads_them_for_each_row():
    sizes = dataclasses.replace(sizes_of("debug"), batch=3)
    alone, *both = (
        language.decode(sizes, "float32", rows=rows, together=together)
        for rows, together in ((1, True), (3, True), (3, False))
    )
    assert all(work.seconds() > 0 for work in (alone, *both))
    one, together, apart = (work.facts() for work in (alone, *both))
    assert together.output == apart.output and together.output[: sizes.new_tokens] == one.output
    assert together.handled == apart.handled == {"tokens": 3 * sizes.new_tokens}
    assert apart.flops == together.flops == 3 * one.flops
    assert apart.num_bytes == 3 * one.num_bytes > 2 * together.num_bytes


def test_a_stream_is_heard_up_to_the_event_that_is_waited_for():
    sizes = sizes_of("tiny")
    answer = GroundedChat.load(sizes.chat).ask(
        talk.pictures(1)[0], talk.FIRST, max_tokens=sizes.answer_tokens
    )
    works = [talk.stream(sizes, until) for until in (Words, Found, Done)]
    assert all(work.seconds() > 0 for work in works)
    (words,), (phrase,), (text,) = (work.facts().output for work in works)
    assert text == answer.text and text.startswith(words) and 0 < len(words) < len(text)
    assert phrase == answer.phrases[0].text


def test_a_second_question_sees_the_picture_no_more(monkeypatch):
    seen, facts = [], {}

    def counted(name: str):
        whole = getattr(engine, name)
        return lambda *inputs: seen.append(name) or whole(*inputs)

    for name in ("encode_clip", "encode_grounding"):
        monkeypatch.setattr(engine, name, counted(name))
    for first in (True, False):
        work = talk.second_question(sizes_of("debug"), "float32", first=first)
        # once, of two questions, too
        assert work.seconds() > 0 and sorted(seen) == ["encode_clip", "encode_grounding"]
        seen.clear()
        facts[first] = work.facts()
    assert facts[True].handled == facts[False].handled and facts[True].handled["tokens"] > 5
    assert "the second question" in facts[False].what
