"""Overlays, coloured text, marks."""

import html
import re

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from lgjax.draw import (
    SHEET_COLOUR,
    coloured_html,
    coloured_text,
    deepest_point,
    draw_marks,
    draw_phrases,
    draw_prompts,
    ink_on,
    phrase_colour,
    place_marks,
    split_by_phrase,
    write_below,
)
from lgjax.infer.answer import Answer, Phrase


def phrase(text: str, start: int, boxes=((2, 3, 20, 30),), size=(60, 80)) -> Phrase:
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    scores = np.full(len(boxes), 0.5, np.float32)
    return Phrase(text, (start, start + len(text)), np.float32(boxes).reshape(-1, 4), scores, masks)


def answer(text: str, *phrases: Phrase, region=None) -> Answer:
    image = PIL.Image.fromarray(np.full((60, 80, 3), 100, np.uint8))
    return Answer(text, phrases, image, region, text, (), True, 5)


def test_masks_take_the_colour_of_their_phrase_and_the_rest_stays():
    drawn = np.asarray(answer("A cat sleeps.", phrase("A cat", 0, ((10, 40, 30, 58),))).draw(), np.int32)
    scale = drawn.shape[1] // 80
    inside, outside = drawn[50 * scale, 20 * scale], drawn[20 * scale, 60 * scale]
    np.testing.assert_allclose(inside, 0.55 * 100 + 0.45 * np.asarray(phrase_colour(0)), atol=1)
    np.testing.assert_array_equal(outside, 100)
    assert (drawn[60 * scale + 2, 2] == SHEET_COLOUR).all()


def test_long_text_wraps_and_nothing_found_is_plain():
    text = "A cat " + "and another cat " * 30
    short = answer("A cat sleeps.").draw()
    long = answer(text, phrase("A cat", 0, boxes=())).draw()
    assert long.width == short.width and long.height > short.height
    assert coloured_text(text, [phrase("A cat", 0, boxes=())]).spans == []


def test_coloured_text_marks_the_phrases():
    text = coloured_text("A cat and a dog.", [phrase("A cat", 0), phrase("a dog", 10)])
    assert text.plain == "A cat and a dog."
    assert [(span.start, span.end) for span in text.spans] == [(0, 5), (10, 15)]
    assert str(phrase_colour(1)).replace(" ", "") in str(text.spans[1].style)


def test_region_is_shown():
    region = np.zeros((1, 60, 80), bool)
    region[0, 30:50, 40:70] = True
    drawn = np.asarray(answer("Yes.", region=region).draw(), np.int32)
    scale = drawn.shape[1] // 80
    assert drawn[40 * scale, 50 * scale].tolist() != [100] * 3 == drawn[10 * scale, 10 * scale].tolist()


@given(st.text(max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4))
def test_pieces_join_to_the_text_and_every_letter_has_an_owner(text: str, spans):
    cut = [(min(a, b, len(text)), min(max(a, b), len(text))) for a, b in spans]
    phrases = [phrase(text[start:end], start) for start, end in cut]
    pieces = split_by_phrase(text, phrases)
    assert "".join(piece for piece, _ in pieces) == text
    at = 0
    for piece, index in pieces:
        for i in range(at, at + len(piece)):
            covering = {k for k, (start, end) in enumerate(cut) if start <= i < end}
            assert (index in covering) if covering else index is None
        at += len(piece)


def test_colours_start_again_after_twenty():
    assert phrase_colour(20) == phrase_colour(0) != phrase_colour(1)


def test_labels_of_one_place_do_not_lie_on_each_other():
    image = PIL.Image.fromarray(np.full((480, 640, 3), 100, np.uint8))
    box = ((100, 100, 500, 400),)
    drawn = np.asarray(
        draw_phrases(image, [phrase(text, 0, box, (480, 640)) for text in ("one", "two", "six")])
    )
    for index in range(3):
        # a label is a filled rectangle of its phrase's colour, apart from the letters
        assert ((drawn == phrase_colour(index)).all(-1).sum(1) > 10).sum() > 12
    assert ink_on((255, 255, 0)) == (0, 0, 0) and ink_on((50, 0, 255)) == (255, 255, 255)


def test_text_below_breaks_lines_where_it_should_and_cuts_nothing_off():
    image = PIL.Image.fromarray(np.zeros((10, 480, 3), np.uint8))
    red = (255, 0, 0)

    def height(text: str) -> int:
        return write_below(image, [(text, red)]).height

    assert (
        height("a b")
        < height("a\nb")
        < height("a\n\nb")
        == height("a") + 2 * (height("a\nb") - height("a b"))
    )
    word = write_below(image, [("W" * 200, red)])
    assert word.height > height("a\nb")
    # nothing touches the margins
    assert (np.asarray(word)[10:, :6] == SHEET_COLOUR).all() and (
        np.asarray(word)[10:, -6:] == SHEET_COLOUR
    ).all()


def depths(mask: np.ndarray) -> np.ndarray:
    return distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def random_mask(seed: int, height: int, width: int, kind: str) -> np.ndarray:
    """Dots, thin lines, discs in several parts, the whole picture with holes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    if kind == "dots":
        mask = rng.random((height, width)) < rng.random()
    elif kind == "lines":
        mask = (x == rng.integers(width)) | (abs(x - y) < rng.integers(1, 3))
    else:
        centres = rng.random((3, 3)) * (width, height, max(width, height) / 2)
        mask = np.any([(x - cx) ** 2 + (y - cy) ** 2 < r * r for cx, cy, r in centres], 0)
        mask = ~mask if kind == "holes" else mask
    mask[rng.integers(height), rng.integers(width)] = True
    return mask


MASKS = st.tuples(
    st.integers(0, 1000),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["dots", "lines", "discs", "holes"]),
)


@given(MASKS)
def test_the_deepest_point_is_that_of_scipy(arguments):
    mask = random_mask(*arguments)
    x, y = deepest_point(mask)
    depth = depths(mask)
    assert mask[y, x] and depth[y, x] == depth.max()
    assert (y, x) == np.unravel_index(depth.argmax(), depth.shape)


@pytest.mark.parametrize("chunk", [1, 1000])
def test_the_deepest_point_of_a_large_mask_in_small_chunks(monkeypatch, chunk):
    monkeypatch.setattr("lgjax.draw._CHUNK", chunk)
    mask = random_mask(3, 90, 130, "holes")
    x, y = deepest_point(mask)
    assert depths(mask)[y, x] == depths(mask).max()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["dots", "lines", "discs", "holes"]), min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_every_number_lies_on_its_mask_and_in_the_picture(kinds, seed):
    masks = np.stack([random_mask(seed + i, 60, 80, kind) for i, kind in enumerate(kinds)])
    sizes = [(7 + 2 * (i % 2), 9) for i in range(len(kinds))]
    boxes = place_marks(masks, sizes)
    for (x0, y0, x1, y1), size, mask in zip(boxes, sizes, masks, strict=True):
        assert (x1 - x0, y1 - y0) == size and x0 >= 0 and y0 >= 0 and x1 <= 80 and y1 <= 60
        assert mask[y0:y1, x0:x1].any()
        # only at the edge of the picture the centre may have moved off the mask
        if x0 > 0 and y0 > 0 and x1 < 80 and y1 < 60:
            assert mask[y0 + size[1] // 2, x0 + size[0] // 2]


def test_marks_of_apart_masks_are_at_the_deepest_points_of_scipy():
    masks = np.zeros((2, 100, 200), bool)
    y, x = np.mgrid[:100, :200]
    masks[0] = (x - 50) ** 2 + 2 * (y - 40) ** 2 < 900
    masks[1] = (abs(x - 150) + abs(y - 55)) < 40
    for (x0, y0, x1, y1), mask in zip(place_marks(masks, [(9, 9)] * 2), masks, strict=True):
        depth = depths(mask)
        assert depth[(y0 + y1) // 2, (x0 + x1) // 2] == depth.max()


@given(st.integers(2, 6))
def test_numbers_of_one_place_stand_next_to_each_other(count):
    """The same square several times: the boxes must not overlap."""
    masks = np.zeros((count, 60, 60), bool)
    masks[:, 10:50, 10:50] = True
    cells = np.zeros((60, 60), int)
    for x0, y0, x1, y1 in place_marks(masks, [(8, 6)] * count):
        cells[y0:y1, x0:x1] += 1
    assert cells.max() == 1 and cells.sum() == count * 48


def test_the_number_of_a_large_object_keeps_off_a_small_one_in_it():
    masks = np.zeros((2, 60, 100), bool)
    masks[0, 10:50, 10:90] = True
    masks[1, 20:40, 30:70] = True
    (x0, y0, x1, y1), small = place_marks(masks, [(6, 6)] * 2)
    # first of the deepest pixels of the small one: (39, 29)
    assert small == (36, 26, 42, 32)
    assert not masks[1][(y0 + y1) // 2, (x0 + x1) // 2] and masks[0][y0:y1, x0:x1].all()


def test_marks_blend_as_worked_out_by_hand():
    image = PIL.Image.fromarray(np.full((60, 80, 3), 100, np.uint8))
    masks = np.zeros((2, 60, 80), bool)
    masks[0, :, :60] = True
    masks[1, 10:, 40:] = True
    drawn = np.asarray(draw_marks(image, masks, mask_alpha=0.25, mark_alpha=0.5, size=20), float)
    first, second = np.asarray(phrase_colour(0)), np.asarray(phrase_colour(1))
    once = 0.75 * 100 + 0.25 * first
    np.testing.assert_allclose(drawn[0, 0], once, atol=0.5)
    np.testing.assert_allclose(drawn[59, 45], 0.75 * once + 0.25 * second, atol=0.5)
    np.testing.assert_array_equal(drawn[0, 70], 100)
    # the black box of number 1 around the middle of what is not also mask 2, its digit opaque white
    box = drawn[:, :40]
    assert (abs(box - 0.5 * once) <= 0.5).all(-1).any() and (box == 255).all(-1).any()
    unmarked = np.asarray(draw_marks(image, masks, mask_alpha=0, mark_alpha=0, size=20))
    assert set(unmarked[unmarked != 255].tolist()) <= set(range(100, 255))


def test_marks_refuse_other_sizes_and_empty_masks():
    image = PIL.Image.fromarray(np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"masks \[1, 8, 6\] do not fit a picture of 8 x 6"):
        draw_marks(image, np.ones((1, 8, 6), bool))
    with pytest.raises(ValueError, match="mask 1 has no pixels"):
        draw_marks(image, np.stack([np.ones((6, 8), bool), np.zeros((6, 8), bool)]))
    assert draw_marks(image, np.zeros((0, 6, 8), bool)).size == (8, 6)


@given(st.text(max_size=40))
def test_words_of_a_page_are_only_words(text):
    code = coloured_html(text, [phrase(text[:5], 0)] if text[:5] else [])
    assert set(re.findall(r"<[^>]*>", code)) <= {code[: code.find(">") + 1], "</span>", "<br>"}
    plain = re.sub(r"<(?!br)[^>]*>", "", code)
    assert not set(plain.replace("<br>", "")) & set("<>*_`[]|\\")
    # what a browser shows; it reads the code of a character as html does
    assert html.unescape(plain.replace("<br>", "\n")) == text


def test_phrases_of_a_page_stand_on_their_colour():
    code = coloured_html("A <cat> and none.", [phrase("A <cat>", 0), phrase("none", 12, boxes=())])
    assert code.startswith(f'<span style="background-color: rgb{phrase_colour(0)}; color: rgb(0, 0, 0);')
    assert code.endswith('">A &#60;cat&#62;</span> and none.')


def test_prompts_are_drawn_where_they_are():
    image = PIL.Image.fromarray(np.full((200, 300, 3), 100, np.uint8))
    box = [(150, 100), (250, 100), (250, 180), (150, 180), (150, 100)]
    drawn = np.asarray(draw_prompts(image, [[(60, 150)], box]))
    assert tuple(drawn[150, 60]) == phrase_colour(0)
    assert all(tuple(drawn[y, x]) == phrase_colour(1) for x, y in ((200, 180), (150, 150), (250, 150)))
    assert (drawn[120:170, 170:230] == 100).all() and (drawn[150:, :40] == 100).all()
    assert np.array_equal(draw_prompts(image, []), image)
