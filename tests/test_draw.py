"""Overlays and coloured text."""

import numpy as np
import PIL.Image
from hypothesis import given
from hypothesis import strategies as st

from lgjax.draw import SHEET_COLOUR, coloured_text, phrase_colour, split_by_phrase
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
