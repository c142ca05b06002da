"""Every kind of region: what it is read as, its mark in the question, later turns, drawn marks."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lgjax.data.images import prompt_from_box
from lgjax.infer.regions import (
    Again,
    Box,
    Click,
    Mask,
    Scribble,
    as_trained,
    load_mask,
    parse_scribble,
    prompt_of,
)
from lgjax.infer.request import Options
from tests.infer.model import GROUNDED, chat, picture

SHORT = {"max_tokens": 6}
SIZE = (120, 90)


def disc(x: int, y: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:90, :120]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


masks = st.integers(0, 2**32 - 1).map(
    lambda seed: ndimage.uniform_filter(np.random.default_rng(seed).random((20, 30)), 5) > 0.5
)


@given(masks)
def test_a_mask_is_read_as_its_box_or_its_innermost_pixel(mask):
    if not mask.any():
        return
    ys, xs = np.nonzero(mask)
    assert as_trained(Mask(mask), (30, 20)) == Box(*map(int, (xs.min(), ys.min(), xs.max(), ys.max())))
    click = as_trained(Mask(mask, "click"), (30, 20))
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    assert depth[click.y, click.x] == depth.max()


@given(st.lists(st.tuples(st.integers(0, 119), st.integers(0, 89)), min_size=1, max_size=9))
def test_a_scribble_is_read_as_a_point_of_it_or_its_box(points):
    click = as_trained(Scribble(tuple(points)), SIZE)
    mean = np.mean(points, 0)
    away = [np.hypot(*(np.asarray(point) - mean)) for point in points]
    assert (click.x, click.y) in points
    assert np.hypot(click.x - mean[0], click.y - mean[1]) == pytest.approx(min(away))
    xs, ys = zip(*points, strict=True)
    box = as_trained(Scribble(tuple(points), "box"), SIZE)
    want = prompt_from_box(min(xs), min(ys), max(xs), max(ys), SIZE)
    np.testing.assert_array_equal(prompt_of(box, SIZE), want)


def test_a_scribble_around_a_hole_is_read_on_the_ring():
    angles = np.linspace(0, 2 * np.pi, 40)
    ring = tuple((60 + 20 * float(np.cos(a)), 45 + 20 * float(np.sin(a))) for a in angles)
    click = as_trained(Scribble(ring), SIZE)
    assert np.hypot(click.x - 60, click.y - 45) == pytest.approx(20)


def test_regions_of_all_kinds_in_one_question_have_a_mark_each():
    mask = disc(80, 40, 15)
    regions = [Click(10, 20), Scribble(((30, 30), (34, 30), (90, 80))), Mask(mask), Box(5, 6, 60, 70)]
    same = [Click(10, 20), Click(34, 30), Box(65, 25, 95, 55), Box(5, 6, 60, 70)]
    question = "Are % and % and % left of % ?"
    one, _ = chat().start(picture(0)).request(question, regions, Options())
    other, _ = chat().start(picture(0)).request(question, same, Options())
    np.testing.assert_array_equal(one.objects, other.objects)
    np.testing.assert_array_equal(one.plan.objects[one.plan.objects >= 0], [0, 1, 2, 3])
    assert one.region_masks.shape == (4, 128, 128)
    assert len(np.unique(one.objects.round(4), axis=0)) == 4


def test_a_region_can_be_referred_to_again():
    talk, other = chat().start(picture(0)), chat().start(picture(0))
    for conversation in (talk, other):
        conversation.ask("Is % left of % ?", [Click(10, 10), Mask(disc(80, 40, 15))], **SHORT)
        conversation.ask("And this % ?", Box(1, 2, 50, 60), **SHORT)
    again, _ = talk.request("What are % and % ?", [Again(2), Again(3)], Options())
    anew, _ = other.request("What are % and % ?", [Mask(disc(80, 40, 15)), Box(1, 2, 50, 60)], Options())
    np.testing.assert_array_equal(again.objects, anew.objects)
    np.testing.assert_array_equal(again.plan.objects, anew.plan.objects)
    for number in (0, 4):
        with pytest.raises(ValueError, match=f"no region {number}; 3 were shown"):
            talk.ask("What is % ?", Again(number), **SHORT)
    talk.undo()
    with pytest.raises(ValueError, match="no region 3; 2 were shown"):
        talk.check(Again(3))


def test_broadcast_writes_the_newest_region_to_every_mark():
    """The rule of the released demo: also marks of earlier questions, of answers, and real percentages."""
    talk = chat().start(picture(0), broadcast=True)
    talk.ask("Is 50 % of % red?", Click(10, 10), answer="It is 40 % red.")
    request, turn = talk.request("What is % ?", Box(1, 2, 50, 60), Options())
    spots = request.plan.objects >= 0
    assert spots.sum() == 4 and len(np.unique(request.plan.objects[spots])) == 1
    np.testing.assert_array_equal(request.objects[request.plan.objects[spots][0]], turn.objects[0])
    without, _ = talk.request("What is it?", None, Options())
    assert not (without.plan.objects >= 0).any()
    unmarked, _ = talk.request("What is it?", Click(1, 1), Options())  # no error: the demo shows its mask
    assert (unmarked.plan.objects >= 0).sum() == 3
    with pytest.raises(ValueError, match="one region stands for every %"):
        talk.request("What are % and % ?", [Click(1, 1), Click(2, 2)], Options())
    own = chat().start(picture(0))
    own.ask("Is % red?", Click(10, 10), answer="It is 40 % red.")
    request, _ = own.request("What is % ?", Box(1, 2, 50, 60), Options())
    assert request.plan.objects[request.plan.objects >= 0].tolist() == [0, 1]


def test_a_broadcast_conversation_equals_its_prompt_computed_anew():
    talk, fresh = (chat().start(picture(0), broadcast=True) for _ in range(2))
    talk.ask("What is % ?", Click(10, 10), **SHORT)
    last = talk.ask("Is % left of it?", Box(1, 2, 50, 60), answer=GROUNDED, threshold=0.02)
    fresh._turns = [dataclasses.replace(talk._turns[0])]
    anew = fresh.ask("Is % left of it?", Box(1, 2, 50, 60), answer=GROUNDED, threshold=0.02)
    np.testing.assert_allclose(last.phrases[1].boxes, anew.phrases[1].boxes, atol=2e-3)


def test_marks_are_drawn_where_the_masks_are():
    masks = [disc(30, 30, 12), Mask(disc(90, 60, 12))]
    before = picture(0)
    drawn = np.asarray(chat().mark(before, masks, mask_alpha=0.5))
    changed = (drawn != before).any(-1)
    assert changed[disc(30, 30, 12) | disc(90, 60, 12)].mean() > 0.9
    assert not changed[~(disc(30, 30, 14) | disc(90, 60, 14))].any()
    assert chat().ask(drawn, "What is <1> beside <2> ?", ground=False, **SHORT).num_tokens == 6
    np.testing.assert_array_equal(np.asarray(chat().mark(before, [])), before)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Scribble(()), "a scribble without points"),
        (Scribble(((5, 5), (500, 5))), r"point \(500, 5\) lies outside"),
        (Scribble(((float("nan"), 5),)), "outside"),
        (Mask(np.zeros((90, 120), bool)), "no pixels"),
        (Mask(np.ones((80, 120), bool)), "the mask is 120 x 80 pixels, but the picture 120 x 90"),
    ],
)
def test_regions_that_show_nothing_are_refused(region, message):
    talk = chat().start(picture(0))
    with pytest.raises(ValueError, match=message):
        talk.ask("What is % ?", [region], **SHORT)
    with pytest.raises(ValueError, match=message):
        talk.check(region)


def test_marks_of_another_size_are_refused():
    with pytest.raises(ValueError, match="a mask to mark is 120 x 80 pixels, but the picture 120 x 90"):
        chat().mark(picture(0), [np.ones((80, 120), bool)])


def test_masks_and_scribbles_are_read_from_files_and_text(tmp_path):
    mask = disc(30, 30, 12)
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.png").pixels, mask)
    assert parse_scribble("1,2 3.5,4") == Scribble(((1, 2), (3.5, 4)))
    for text in ("", "1,2 3", "a,b"):
        with pytest.raises(ValueError, match="write X,Y X,Y"):
            parse_scribble(text)
