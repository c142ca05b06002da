"""Marked chat: texts worked out by hand, marks drawn into pictures."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from lgjax.data.marks import MarkedSource, marked, picture_of
from lgjax.data.masks import clean, encode
from lgjax.data.schema import Expression, Object, Phrase, Record, RecordError, Region, Turn, check
from lgjax.draw import draw_marks, phrase_colour
from lgjax.text.markup import parse_text

SIZE = (60, 50)


def square(x: int, y: int, side: int = 10, **fields) -> Object:
    mask = np.zeros(SIZE[::-1], bool)
    mask[y : y + side, x : x + side] = True
    return Object(box=(x, y, x + side, y + side), mask=encode(mask), **fields)


def chat(*texts: str, objects_of=(), regions=(), objects=(), **fields) -> Record:
    """A chat whose answers are written with grounding tokens; `objects_of` each phrase in turn."""
    turns, phrases, numbers = [], [], iter(objects_of)
    for i, text in enumerate(texts):
        parsed = parse_text(text) if i % 2 else None
        turns.append(Turn("gpt" if i % 2 else "human", parsed.text if parsed else text))
        for phrase in parsed.phrases if parsed else ():
            phrases.append(Phrase(turn=i, span=(phrase.start, phrase.end), objects=next(numbers)))
    picture = PIL.Image.fromarray(np.full((*SIZE[::-1], 3), 200, np.uint8))
    record = Record(
        id="7",
        kind="chat",
        image=picture,
        size=SIZE,
        turns=tuple(turns),
        phrases=tuple(phrases),
        regions=regions,
        objects=objects,
        **fields,
    )
    check(record)
    return record


BOX_ONLY = Object(box=(40, 5, 50, 15))
CROWD = square(30, 30, crowd=True)
OBJECTS = (BOX_ONLY, square(0, 0), CROWD, square(20, 20), square(40, 30))
GROUNDED = chat(
    "What is here? (with grounding)",
    "<g_s> Two dogs <g_e> <seg>, <g_s> a cat <g_e> <seg> and <g_s> the sky <g_e> <seg>. Also <seg>.",
    "What is the object <obj> next to the object <obj> ?\n(with grounding)",
    "<g_s> A cat <g_e> <seg>",
    objects_of=[(4, 3), (1,), (), (4,), (1,)],
    regions=(Region(2, 4), Region(2, 1)),
    objects=OBJECTS,
)


def test_phrases_regions_and_requests_become_plain_text_with_numbers():
    record = marked(GROUNDED)
    check(record)
    # object 0 has no mask and no name in the text, object 2 is a crowd
    assert record.marks == (1, 3, 4) and record.objects == OBJECTS
    assert record.phrases == record.regions == ()
    assert [turn.text for turn in record.turns] == [
        "What is here?",
        "Two dogs <2> <3>, a cat <1> and the sky. Also <3>.",
        "What is the object <3> next to the object <1> ?",
        "A cat <1>",
    ]


def test_objects_that_cannot_be_used_are_dropped_before_they_are_numbered():
    broken = dataclasses.replace(OBJECTS[1], mask=[[1, 1]])
    record = marked(dataclasses.replace(GROUNDED, objects=(BOX_ONLY, broken, *OBJECTS[2:])))
    assert record.marks == (2, 3) and record.dropped == ("empty polygon",) and clean(record) == record
    assert [t.text for t in record.turns] == [
        "What is here?",
        "Two dogs <1> <2>, a cat and the sky. Also <2>.",
    ]


def test_captions_and_box_only_objects_that_are_named():
    caption = dataclasses.replace(
        GROUNDED,
        kind="caption",
        turns=(Turn("gpt", "A dog runs"),),
        phrases=(Phrase(turn=0, span=(0, 5), objects=(0, 2)),),
        regions=(),
    )
    record = marked(caption)
    check(record)
    question = "Present a compact description of the photo's key features."
    assert record.turns == (Turn("human", question), Turn("gpt", "A dog <1> <3> runs"))
    assert record.kind == "chat"
    assert record.marks == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("question", "want"),
    [
        ("Where? (with grounding)", "Where?"),
        ("Where (with grounding) is it?", "Where is it?"),
        ("What is\nhere? Link every mentioned object to its region.", "What is\nhere?"),
        ("Countries with regions or not?", "Countries with regions or not?"),
    ],
)
def test_requests_for_grounding_are_taken_out(question, want):
    record = chat(question, "<g_s> A cat <g_e> <seg>", objects_of=[(0,)], objects=(square(0, 0),))
    assert marked(record).turns[0].text == want


def test_of_too_many_objects_those_named_first_stay():
    record = marked(GROUNDED, limit=1)
    check(record)
    assert record.marks == (4,)
    assert [t.text for t in record.turns] == ["What is here?", "Two dogs <1>, a cat and the sky. Also <1>."]
    assert marked(GROUNDED, limit=2).marks == (3, 4)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            dataclasses.replace(GROUNDED, image=None, size=None),
            "7: marks need a chat or a caption with a picture",
        ),
        (
            dataclasses.replace(
                GROUNDED, kind="region", expressions=(Expression(texts=("a",), objects=(1,)),)
            ),
            "need a chat",
        ),
        (
            dataclasses.replace(GROUNDED, phrases=(), turns=GROUNDED.turns[:2], regions=()),
            "no phrase and no <obj>",
        ),
        (dataclasses.replace(GROUNDED, phrases=(), regions=(), objects=()), "names an object to mark"),
    ],
)
def test_records_without_anything_to_mark_are_refused(record, message):
    with pytest.raises(RecordError, match=message):
        marked(record)


def test_a_whole_source_as_marked_chat():
    source = MarkedSource([GROUNDED, dataclasses.replace(GROUNDED, phrases=(), regions=())], limit=2)
    assert len(source) == 2 and source[0] == marked(GROUNDED, limit=2) and len(source[:1]) == 1
    assert source[:1][0] == source[0] and isinstance(source[1:], MarkedSource)
    with pytest.raises(RecordError):
        source[1]


def test_drawn_marks_are_those_of_the_masks_and_boxes():
    record = dataclasses.replace(GROUNDED, marks=(3, 0))
    masks = np.zeros((2, *SIZE[::-1]), bool)
    masks[0, 20:30, 20:30] = masks[1, 5:15, 40:50] = True
    want = draw_marks(record.image, masks, mask_alpha=0.2, mark_alpha=0.1, size=8)
    drawn = picture_of(record, mask_alpha=0.2, mark_alpha=0.1, size=8)
    assert np.array_equal(drawn, want)
    assert np.array_equal(picture_of(GROUNDED), np.full((*SIZE[::-1], 3), 200, np.uint8))


def test_thin_boxes_and_boxes_outside_have_a_pixel():
    for box in [(10.2, 5.4, 10.3, 5.5), (70, 60, 80, 90), (-9, -9, -1, -1), (59.9, 49.9, 60, 50)]:
        record = dataclasses.replace(GROUNDED, objects=(Object(box=box),), marks=(0,))
        drawn = np.asarray(picture_of(record, mask_alpha=1, mark_alpha=0, size=1), int)
        assert (drawn != 200).any(-1).sum() >= 1
    assert drawn[49, 59].tolist() == list(phrase_colour(0)) or (drawn[49, 59] == 255).all()


def test_a_picture_of_another_size_and_none_at_all():
    with pytest.raises(
        ValueError, match=r"record 7: the picture is \(60, 50\), but the record says \(50, 60\)"
    ):
        picture_of(dataclasses.replace(GROUNDED, size=(50, 60)))
    with pytest.raises(ValueError, match="record 7 has no picture"):
        picture_of(dataclasses.replace(GROUNDED, image=None, size=None))
