"""Where pictures are looked for, and phrases that overlap."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lgjax.data.schema import Phrase
from lgjax.data.sources.common import Pictures, things_of, without_overlaps
from tests.data.sources import examples


def test_pictures_in_all_the_usual_places(tmp_path):
    plain, prefixed = "000000000042.jpg", "COCO_train2014_000000000042.jpg"
    for place in ("train2017", "images/train2017", "images", "."):
        for stored, asked in ((plain, prefixed), (prefixed, plain), ("a.png", "a.png")):
            folder = tmp_path / f"{place.replace('/', '_')}-{stored}-{asked}"
            examples.picture(folder / place / stored)
            found = Pictures.below(folder, "train2017").path(asked)
            assert found.is_file() and found.name == stored
    assert Pictures.below(tmp_path, "x").path("sub/b.jpg") == tmp_path / "sub/b.jpg"


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(0, 5)), max_size=8))
def test_without_overlaps_keeps_a_maximal_set_in_reading_order(spans):
    phrases = [Phrase(turn=turn, span=(start, start + length)) for turn, start, length in spans]
    kept, dropped = without_overlaps(phrases)
    assert len(kept) + len(dropped) == len(phrases)

    def overlap(a, b):
        cells = [
            {2 * i + 1 for i in range(*p.span)} | set(range(2 * p.span[0] + 1, 2 * p.span[1])) for p in (a, b)
        ]
        # a bare <seg> lies between characters
        ends = [{2 * p.span[0]} if p.span[0] == p.span[1] else c for p, c in zip((a, b), cells, strict=True)]
        both_bare = all(p.span[0] == p.span[1] for p in (a, b))
        return a.turn == b.turn and not both_bare and bool(ends[0] & ends[1])

    assert not any(overlap(a, b) for a, b in itertools.combinations(kept, 2))
    places = [(p.turn, p.span[0], p.span[1]) for p in kept]
    assert places == sorted(places)
    lost = list(phrases)
    for phrase in kept:
        lost.remove(phrase)
    for phrase in lost:
        length = phrase.span[1] - phrase.span[0]
        assert any(overlap(phrase, k) and k.span[1] - k.span[0] >= length for k in kept)


def test_boxes_that_are_no_boxes_are_dropped():
    boxes = [None, [], [1, 2, 3], [1, 2, 3, "x"], [1, 2, 3, float("nan")], 5, [1, 2, 3, 4]]
    things = things_of([{"id": i, "bbox": box} for i, box in enumerate(boxes)], {})
    assert [thing.box for thing in things.objects] == [(1, 2, 4, 6)] and len(things.dropped) == 6
