"""Masks against pycocotools and PIL; dropping objects that cannot be used."""

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgjax.data import masks
from lgjax.data.images import place_on_canvas
from lgjax.data.schema import Expression, Object, Phrase, Record, Region, Turn, check

SIZE = (40, 30)
TRIANGLE = [[4.0, 4.0, 30.0, 6.0, 12.0, 26.0]]


FULL = masks.encode(np.ones((30, 40), bool))
BAD = (
    *({"size": [30, 40]}, {"size": [30, 40], "counts": None}, {"size": [30, 40], "counts": [5, -3, 1198]}),
    *({"size": [30, 40], "counts": [5, 100000]}, {"size": [30, 40], "counts": [5, 10]}),
    *({**FULL, "counts": FULL["counts"][:-1]}, {**FULL, "counts": FULL["counts"] + "2"}),
    *([[1, 1, None, 1, 20, 20]], [[1, 1, float("nan"), 1, 20, 20]], [[1, 1, float("inf"), 1, 20, 20]]),
    *([[1, 1, 1e12, 1, 20, 20]], [["a", "b"]], [[[1, 1], [2, 2], [3, 4]]]),
)


def bitmap(seed: int, size=SIZE) -> np.ndarray:
    return np.random.default_rng(seed).random((size[1], size[0])) > 0.6


def test_run_length_codes_there_and_back():
    mask = bitmap(0)
    assert np.array_equal(masks.decode(masks.encode(mask), SIZE), mask)
    counts = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.T.ravel(), 2]))).tolist()
    counts = ([0] if mask[0, 0] else []) + counts
    assert np.array_equal(masks.decode({"size": [30, 40], "counts": counts}, SIZE), mask)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.floats(0, 1))
def test_runs_of_a_code_are_read_as_pycocotools_writes_them(width, height, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    runs = masks._runs(masks.encode(mask)["counts"].encode())
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.r_[False, flat]))
    assert runs == np.diff(np.r_[0, edges, flat.size]).tolist()


def test_polygons_fill_as_pycocotools_fills_them():
    want = pycocotools.mask.decode(pycocotools.mask.frPyObjects(TRIANGLE, 30, 40))[..., 0]
    assert np.array_equal(masks.decode(TRIANGLE, SIZE), want)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([32, 64]), st.integers(0, 9))
def test_run_length_codes_on_the_canvas_as_pil_takes_the_nearest_pixel(width, height, canvas, seed):
    mask = bitmap(seed, (width, height))
    placement = place_on_canvas((width, height), canvas)
    want = np.zeros((canvas, canvas), bool)
    scaled = PIL.Image.fromarray(mask).resize(placement.scaled, PIL.Image.Resampling.NEAREST)
    want[: placement.scaled[1], : placement.scaled[0]] = np.asarray(scaled)
    assert np.array_equal(masks.on_canvas(masks.encode(mask), placement), want)


def test_polygons_on_the_canvas_are_scaled_before_they_are_filled():
    placement = place_on_canvas(SIZE, 128)
    scaled = [[v * 128 / 40 for v in TRIANGLE[0]]]
    assert np.array_equal(masks.on_canvas(TRIANGLE, placement), masks.decode(scaled, (128, 128)))
    half = masks.on_canvas(TRIANGLE, placement, 64)
    assert np.array_equal(half, masks.decode([[v * 64 / 40 for v in TRIANGLE[0]]], (64, 64)))


def test_padding_of_the_canvas_is_never_part_of_a_mask():
    whole = masks.on_canvas(masks.encode(np.ones((30, 40), bool)), place_on_canvas(SIZE, 64))
    assert whole[:48].all() and not whole[48:].any()


def test_box_and_bits():
    mask = bitmap(3, (16, 24))
    rows, columns = np.nonzero(mask)
    assert masks.box_of(mask).tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert masks.box_of(np.zeros((3, 3), bool)).tolist() == [0, 0, 0, 0]
    assert np.array_equal(np.unpackbits(masks.pack(mask[None]), axis=-1)[0].astype(bool), mask)


@pytest.mark.parametrize(
    ("thing", "fault"),
    [
        (Object(box=(1, 1, 9, 9), mask=TRIANGLE), None),
        (Object(box=(1, 1, 9, 9)), None),
        (Object(box=(1, 1, 1, 9)), "box without area"),
        (Object(box=(50, 1, 60, 9)), "box outside the picture"),
        (Object(box=(1, 1, 9, 9), mask=[]), "empty polygon"),
        (Object(box=(1, 1, 9, 9), mask=[[1, 1, 2, 2]]), "empty polygon"),
        (Object(box=(1, 1, 9, 9), mask=[[100, 100, 120, 100, 120, 120]]), "empty polygon"),
        (
            Object(box=(1, 1, 9, 9), mask=masks.encode(bitmap(0, (8, 8)))),
            "mask of another size than the picture",
        ),
        (Object(box=(1, 1, 9, 9), mask=masks.encode(np.zeros((30, 40), bool))), "empty mask"),
        *((Object(box=(1, 1, 9, 9), mask=bad), "mask that is no COCO segmentation") for bad in BAD),
    ],
)
def test_faults_of_objects(thing, fault):
    assert masks.fault_of(thing, SIZE) == fault


def test_clean_drops_an_object_with_everything_that_names_it():
    bad, good = Object(box=(1, 1, 1, 1), id=1), Object(box=(1, 1, 9, 9), id=2)
    record = Record(
        id="a",
        kind="chat",
        image="a.jpg",
        size=SIZE,
        objects=(bad, good),
        turns=tuple(
            Turn(*turn)
            for turn in [
                ("human", "What is <obj> ?"),
                ("gpt", "A cat."),
                ("human", "And <obj> ?"),
                ("gpt", "A dog."),
            ]
        ),
        phrases=(Phrase(turn=1, span=(0, 5), objects=(0,)), Phrase(turn=3, span=(0, 5), objects=(0, 1))),
        regions=(Region(0, 0), Region(2, 1)),
        expressions=(Expression(texts=("it",), objects=(0,)), Expression(texts=("both",), objects=(0, 1))),
        marks=(0, 1),
    )
    check(record)
    clean = masks.clean(record)
    check(clean)
    assert clean.objects == (good,) and clean.marks == (0,)
    assert [turn.text for turn in clean.turns] == ["And <obj> ?", "A dog."]
    assert clean.phrases == (Phrase(turn=1, span=(0, 5), objects=(0,)),)
    assert clean.regions == (Region(0, 0),)
    assert [e.objects for e in clean.expressions] == [(0,)]
    assert clean.dropped == ("box without area",)
    assert masks.clean(clean) == clean


@given(width=st.integers(8, 40), height=st.integers(8, 40), side=st.integers(1, 8), seed=st.integers(0, 99))
def test_shares_count_the_pixels_of_each_cell_of_the_middle_square(width, height, side, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    square = min(width, height)
    middle = mask[(height - square) // 2 :, (width - square) // 2 :][:square, :square]
    found = masks.shares(mask, side)
    for row in range(side):
        for column in range(side):
            spans = [slice(i * square // side, (i + 1) * square // side) for i in (row, column)]
            assert found[row, column] == pytest.approx(middle[spans[0], spans[1]].mean())


def test_shares_of_a_picture_with_too_few_pixels():
    with pytest.raises(ValueError, match="4 pixels has no 8 x 8 cells"):
        masks.shares(np.ones((4, 9), bool), 8)
