"""The pipeline: the same batches for any number of hosts and workers, exact resume, mixtures, fillers."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from lgjax.config import IGNORE_LABEL
from lgjax.data.batch import Batch, concatenate
from lgjax.data.pipeline import Counted, Mixture, Stream, batches, to_device
from lgjax.data.schema import KINDS
from lgjax.parallel.mesh import make_mesh
from lgjax.train.objective import Shape
from tests.data.records import CONFIG, TOKENIZER, caption, chat, referring, words

MIXTURE = Mixture(
    grounded=(Stream([caption(i) for i in range(5)], 1), Stream([referring(i) for i in range(7)], 3)),
    text=(Stream([words(i) for i in range(11)]),),
    grounded_rows=2,
    text_rows=1,
    groups=4,
)
SHAPE = Shape(MIXTURE.grounded_rows, MIXTURE.text_rows)


def run(mixture: Mixture = MIXTURE, **options):
    return Counted(batches(mixture, CONFIG, TOKENIZER, **{"seed": 3, **options}))


def take(count: int, **options) -> list[Batch]:
    data = run(**options)
    found = list(itertools.islice(data, count))
    data.close()
    return found


def assert_equal(a: Batch, b: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def expected() -> list[Batch]:
    return take(8)


def test_batches_have_one_shape(expected):
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), batch) for batch in expected]
    assert all(shape == shapes[0] for shape in shapes)
    assert expected[0].language.plan.tokens.shape == (12, CONFIG.length)
    assert expected[0].grounding.boxes.shape == (8, CONFIG.objects, 4)


@pytest.mark.parametrize("hosts", [2, 4])
def test_parts_of_hosts_join_to_the_batch_of_one(expected, hosts):
    parts = [take(4, hosts=hosts, host=host) for host in range(hosts)]
    for step in range(4):
        assert_equal(concatenate([part[step] for part in parts]), expected[step])


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(expected, workers):
    for found, want in zip(take(5, workers=workers), expected, strict=False):
        assert_equal(found, want)


@pytest.mark.parametrize(
    ("workers", "hosts", "host", "stop"), [(0, 1, 0, 3), (1, 1, 0, 1), (2, 2, 1, 4), (2, 4, 3, 3)]
)
def test_stopped_and_resumed_goes_on_exactly(workers, hosts, host, stop):
    share = {"hosts": hosts, "host": host}
    want = take(stop + 3, **share)
    data = run(workers=workers, **share)
    for _ in range(stop):
        next(data)
    state = data.get_state()
    next(data)  # what comes after the state was taken does not count
    data.close()
    again = run(workers=workers, **share)
    again.set_state(state)
    for found, step in zip(again, range(stop, stop + 3), strict=False):
        assert_equal(found, want[step])
    again.close()


@pytest.mark.parametrize("stop", range(0, 6))
def test_any_step_can_be_the_first(expected, stop):
    """Also on another number of hosts, where an iterator state would not fit."""
    parts = [take(2, start=stop, hosts=2, host=host) for host in range(2)]
    for step in range(2):
        assert_equal(concatenate([part[step] for part in parts]), expected[stop + step])


def test_weights_hold_in_every_four_rows(expected):
    kinds = np.concatenate([SHAPE.cut(batch.language).kind for batch in expected])
    is_caption = kinds.reshape(-1, 4) == KINDS.index("caption")
    assert (is_caption.sum(1) == 1).all()


def test_an_epoch_holds_every_record_once():
    mixture = Mixture(text=(Stream([words(i) for i in range(12)]),), text_rows=3, groups=1)
    found = take(8, mixture=mixture)
    rows = [tuple(row) for batch in found for row in batch.language.plan.tokens]
    first, second = rows[:12], rows[12:]
    assert len(set(first)) == 12 and set(first) == set(second) and first != second


def test_seeds_differ_and_epochs_draw_anew(expected):
    assert not np.array_equal(take(1, seed=4)[0].language.plan.tokens, expected[0].language.plan.tokens)
    mixture = Mixture(grounded=(Stream([referring(0)]),), grounded_rows=1)
    texts = {batch.language.plan.tokens.tobytes() for batch in take(12, mixture=mixture)}
    assert len(texts) > 6  # one record, other expressions each time
    ids = [int(batch.language.sample_id[0]) for batch in take(12, mixture=mixture)]
    assert len(set(ids)) == 12


def test_grounded_rows_are_found_in_the_language_rows(expected):
    """A grounded row's phrases stand at <seg> tokens of the row that `Shape.cut` gives it."""
    for batch in expected:
        language = SHAPE.cut(batch.language)
        ground = batch.grounding
        at = np.take_along_axis(language.plan.tokens, ground.seg_positions, 1)
        assert (at[ground.seg_mask] == TOKENIZER.seg_id).all() and ground.seg_mask.any(1).all()
        assert (language.kind != KINDS.index("chat")).all()
        text = np.delete(batch.language.kind.reshape(4, 3), [0, 1], 1)
        assert (text == KINDS.index("chat")).all()


def broken(number: int):
    return dataclasses.replace(chat(number), image="gone.jpg")


def test_a_record_that_cannot_be_used_gives_a_filler_and_is_counted():
    mixture = Mixture(grounded=(Stream([chat(0), chat(1), chat(2), broken(3)]),), grounded_rows=4)
    data = run(mixture=mixture)
    batch = next(data)
    assert sorted(batch.language.lm_weight.tolist()) == [0, 1, 1, 1]
    assert np.array_equal(batch.language.lm_weight, batch.grounding.weight)
    row = int(batch.language.lm_weight.argmin())
    assert (batch.language.plan.labels[row] == IGNORE_LABEL).all() and not batch.grounding.object_mask[
        row
    ].any()
    assert data.rows == 4 and data.faults == {"image file '…' is not there": 1}
    (example,) = data.examples.values()
    assert example == "grounded stream 0: record 3 (id chat 3): image file 'gone.jpg' is not there"


BAD_MASKS = [5, {"size": [36, 48]}, {"size": [36, 48], "counts": [5, -3, 9]}, [[1, 1, None, 2, 3, 3]]]


@pytest.mark.parametrize("mask", BAD_MASKS, ids=str)
def test_whatever_a_record_holds_does_not_end_the_run(mask):
    bad = chat(1)
    object.__setattr__(bad.objects[1], "mask", mask)
    data = run(mixture=Mixture(grounded=(Stream([bad]),), grounded_rows=1))
    assert next(data).language.lm_weight[0] == 0 and data.faults.total() == 1


def test_streams_share_no_random_numbers():
    """The same records in several streams, under several seeds, give other samples."""
    same = tuple(Stream([referring(i) for i in range(6)]) for _ in range(3))
    mixture = Mixture(grounded=same, text=same, grounded_rows=3, text_rows=3)
    found = [take(4, mixture=mixture, seed=seed) for seed in range(3)]
    ids = [number for batches_ in found for batch in batches_ for number in batch.language.sample_id.tolist()]
    assert len(set(ids)) == len(ids) == 72


def test_neighbours_of_a_broken_record_stay_the_same():
    good = Mixture(grounded=(Stream([chat(i) for i in range(4)]),), grounded_rows=4)
    bad = Mixture(grounded=(Stream([chat(0), chat(1), chat(2), broken(3)]),), grounded_rows=4)
    (a,), (b,) = take(1, mixture=good), take(1, mixture=bad)
    kept = b.language.lm_weight == 1
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[kept], y[kept]), a, b)


def test_too_many_fillers_stop_the_run():
    mixture = Mixture(grounded=(Stream([chat(0), broken(1), chat(2), broken(3)]),), grounded_rows=4)
    data = run(mixture=mixture)
    with pytest.raises(
        RuntimeError, match=r"22 of 44 samples .* more than 5%.*22 times.*stream 0: record [13] .*gone.jpg"
    ):
        for _ in range(50):
            next(data)


def test_cuts_are_counted():
    mixture = Mixture(grounded=(Stream([referring(0, count=6)]),), grounded_rows=3)
    config = dataclasses.replace(CONFIG, objects=1, phrases=1)
    data = Counted(batches(mixture, config, TOKENIZER, seed=0))
    batch = next(data)
    assert (
        data.cuts == dict(zip(data.cuts, batch.notes.cuts.sum(0), strict=True)) and data.cuts["phrases"] > 0
    )


def test_on_devices_each_has_its_group():
    mesh = make_mesh(data=4)
    sharding = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    placed = Counted(to_device(batches(MIXTURE, CONFIG, TOKENIZER, seed=3), sharding))
    want = take(2)
    state = None
    for step in range(2):
        batch = next(placed)
        state = placed.get_state() if step == 0 else state
        assert_equal(batch, want[step])
        for array in jax.tree.leaves((batch.language, batch.grounding)):
            assert len(array.sharding.device_set) == 4
    placed.close()
    again = Counted(to_device(batches(MIXTURE, CONFIG, TOKENIZER, seed=3), sharding))
    again.set_state(state)
    assert_equal(next(again), want[1])
    again.close()


def test_cutting_out_grounded_rows_moves_nothing_between_devices(expected):
    sharding = jax.NamedSharding(make_mesh(data=4), jax.P(("data", "fsdp")))
    language = jax.device_put(expected[0].language, sharding)
    compiled = jax.jit(lambda rows: SHAPE.cut(rows), out_shardings=sharding).lower(language).compile()
    text = compiled.as_text()
    assert not [name for name in ("all-gather", "collective-permute", "all-to-all") if name in text]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mixture(text_rows=1), "0 text streams for 1 text rows"),
        (lambda: Mixture(text=MIXTURE.text), "1 text streams for 0 text rows"),
        (lambda: Mixture(text=(Stream([]),), text_rows=1), "has no records"),
        (lambda: Mixture(text=(Stream([words()], 0.0),), text_rows=1), "weight 0.0; it must be above 0"),
        (lambda: Mixture(), "at least one group"),
        (lambda: run(hosts=3), "4 groups cannot be shared by 3 hosts"),
        (lambda: run(start=-1), "must not be negative"),
        (lambda: run(seed=-1), "seed -1"),
    ],
)
def test_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
