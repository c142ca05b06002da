"""What happens on the page, without a browser: taps, answers as they come, pictures and files."""

import dataclasses
import itertools
import json
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lgjax import draw
from lgjax.infer.answer import Phrase
from lgjax.infer.regions import Box, Click, Scribble
from lgjax.infer.request import Options
from lgjax.serve.limits import Limits, TooLarge
from lgjax.serve.metrics import Metrics
from lgjax.serve.page import Answering, Asked, Page, Pointed, Session, forget, knows, messages_of, pieces_of
from lgjax.serve.queue import Desk, Stopping, Turn
from tests.infer.model import GROUNDED, chat, model, picture
from tests.serve.server import png


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    limits = Limits(turns=2, regions=2)
    desk = Desk(model(), limits, Metrics())
    desk.start()
    yield Page(desk, limits, tmp_path_factory.mktemp("page"))
    desk.close()


@pytest.fixture
def session(page, tmp_path):
    (tmp_path / "photo.png").write_bytes(png(0))
    session = page.take(str(tmp_path / "photo.png"))
    yield session
    forget(session)


def pointed(page, start: Pointed, *strokes: tuple) -> Pointed:
    for kind, *points in strokes:
        start = page.point(start, kind, points)
    return start


def test_strokes_become_regions(page, session):
    taps = pointed(
        page, Pointed(), ("click", (1, 2)), ("box", (60, 70)), ("box", (3, 4)), ("scribble", (5, 5))
    )
    taps = page.point(taps, "scribble", [(6, 7)])
    assert taps.regions == (Click(1, 2), Box(60, 70, 3, 4), Scribble(((5, 5), (6, 7))))
    half = pointed(page, taps, ("click", (8, 8)), ("box", (9, 9)))
    assert half.regions[-2:] == (Click(8, 8), Scribble(((9, 9),), "box")) and half.unfinished
    assert page.point(half, "scribble", [(7, 7)]).regions[-2:] == (half.regions[-1], Scribble(((7, 7),)))
    # a corner that was tapped is no part of a box that is dragged afterwards
    assert page.point(half, "box", [(1, 1), (2, 9), (30, 40)]).regions == (
        *half.regions[:-1],
        Box(1, 1, 30, 40),
    )
    dragged = pointed(page, Pointed(), ("scribble", (1, 1), (2, 2)), ("scribble", (9, 9), (8, 8)))
    assert dragged.regions == (Scribble(((1, 1), (2, 2), (9, 9), (8, 8))),) and dragged.unfinished
    assert page.point(Pointed(), "click", [(1, 1), (50, 50)]).regions == (Click(1, 1),)
    drawn = np.asarray(page.preview(session, taps))
    assert (drawn != picture(0)).any() and drawn.shape == (90, 120, 3)
    assert page.preview(Session(), taps) is None


def test_an_answer_is_shown_as_it_comes_and_kept(page, session):
    turn, options = Turn("Is % red?", (Click(30, 45),)), Options(answer=GROUNDED, threshold=None)
    steps = list(page.ask(session, turn, options))
    texts = [asked.answer["text"] for _, asked in steps]
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert len(set(texts)) > 3 and {len(asked.answer["phrases"]) for _, asked in steps} == {0, 1, 2}
    later, asked = steps[-1]
    want = chat().ask(picture(0), "Is % red?", Click(30, 45), answer=GROUNDED, threshold=None)
    assert asked.answer == want.to_json() and later.turns == (asked,)

    both, second = page.found(later, asked, None), page.found(later, asked, 1)
    alone = [Phrase("A man", (0, 5), *nothing()), want.phrases[1]]
    drawn = draw.draw_phrases(want.image, alone, want.region_mask)
    np.testing.assert_array_equal(np.asarray(second), np.asarray(drawn))
    np.testing.assert_array_equal(
        np.asarray(both), np.asarray(draw.draw_phrases(want.image, want.phrases, want.region_mask))
    )
    spoken = messages_of(later.turns)
    assert [message["role"] for message in spoken] == ["user", "assistant"]
    assert "two brown horses</span>, slowly." in spoken[1]["content"]
    assert pieces_of(asked)[2] == ("two brown horses", "2") and pieces_of(None) == []

    as_json, as_png = page.files(later)
    assert json.loads(Path(as_json).read_text()) == asked.answer
    with PIL.Image.open(as_png) as picture_file:
        np.testing.assert_array_equal(np.asarray(picture_file), np.asarray(want.draw()))
    forget(later)
    assert not Path(as_json).parent.exists()


def test_a_second_question_of_a_conversation_waits_for_the_first(page, session):
    """Ask, then at once Again or Ask once more: that is refused, and the first answer stays what it is."""
    options = Options(answer=GROUNDED, threshold=None)
    first = page.ask(session, Turn("What?"), options)
    assert page.last(session) is None
    next(first)
    assert page.last(session).answer == {"text": "", "phrases": []}
    for _ in range(2):  # a refusal lets nobody in
        with pytest.raises(Answering, match="an answer is on its way"):
            next(page.ask(session, Turn("Again?"), options))
    for later, asked in first:  # noqa: B007
        assert page.last(session) is asked
        with pytest.raises(Answering):
            next(page.ask(session, Turn("Again?"), options))
    assert [part.turn.text for part in later.turns] == ["What?"] and asked.answer["text"].startswith("A man")
    (*_, (after, _)) = page.ask(later, Turn("Again?"), Options(answer="A cat."))
    assert [part.answer["text"] for part in after.turns] == [asked.answer["text"], "A cat."]
    assert page.last(after) is after.turns[-1]

    # of many presses at the same moment one is let in
    start, entered, refused = threading.Barrier(8), [], []

    def press() -> None:
        answers = page.ask(session, Turn("What?"), Options(answer="A cat."))
        start.wait(30)
        try:
            next(answers)
            entered.append(answers)
        except Answering:
            refused.append(answers)

    threads = [threading.Thread(target=press) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(entered), len(refused)) == (1, 7)
    entered[0].close()
    assert page.last(session) is None


def nothing() -> tuple:
    return np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 90, 120), bool)


def test_faults_are_raised_before_anything_changes(page, session, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="no PNG, JPEG or WEBP"):
        page.take(str(tmp_path / "text.png"))
    assert page.take(None).picture == b""
    with pytest.raises(ValueError, match="leave <image> out"):
        list(page.ask(session, Turn("<image>?"), Options(max_tokens=2)))
    for _ in range(2):
        (*_, (session, _)) = page.ask(session, Turn("What?"), Options(max_tokens=2))
    with pytest.raises(TooLarge, match="has 3 questions, more than 2"):
        list(page.ask(session, Turn("What?"), Options(max_tokens=2)))
    with pytest.raises(TooLarge, match="question 1 has 3 regions, more than 2"):
        list(page.ask(dataclasses.replace(session, turns=()), Turn("% % %", (Click(1, 1),) * 3), Options()))
    stopped = Desk(model(), Limits(), Metrics())
    stopped.close()
    with pytest.raises(Stopping):
        list(Page(stopped, Limits(), tmp_path).ask(session, Turn("What?"), Options(max_tokens=2)))


def test_a_reader_who_leaves_frees_the_row(page, session):
    answers = page.ask(session, Turn("What?"), Options(max_tokens=200))
    next(answers)
    answers.close()
    (*_, (_, asked)) = page.ask(session, Turn("What?"), Options(answer="A cat."))
    assert asked.answer["text"] == "A cat."


def test_the_page_says_what_the_model_can_do():
    said = knows(model(), "debug", True)
    assert "boxes and masks" in said and "clicks" in said and "untrained" in said
    # a folder of that name is another model
    assert "untrained" not in knows(model(), "debug", False)


def test_an_earlier_answer_can_be_looked_at(page, session):
    options = Options(threshold=None)
    for answer in (GROUNDED, "A cat."):
        (*_, (session, _)) = page.ask(session, Turn("What?"), dataclasses.replace(options, answer=answer))
    first, second = session.turns
    assert page.last(session) is second
    back = session.look_at(0)
    assert page.last(back) is first and json.loads(Path(page.files(back)[0]).read_text()) == first.answer
    assert json.loads(Path(page.files(session)[0]).read_text()) == second.answer
    assert session.look_at(2) is session and session.look_at(-1) is session
    # what is undone is not looked at any more
    assert page.last(session.look_at(1).with_turns(session.turns[:1])) is first
    assert page.last(back.with_turns(())) is None


def test_only_phrases_that_have_something_to_show_are_coloured():
    text = "A man beside a kite."
    box = {"boxes": [[0, 0, 9, 9]], "scores": [0.5]}
    phrases = [
        {"text": "A man", "span": (0, 5), "boxes": [], "scores": []},
        {"text": "a kite", "span": (13, 19), **box},
    ]
    asked = Asked(Turn("What?"), {"text": text, "phrases": phrases})
    assert pieces_of(asked) == [("A man", None), (" beside ", None), ("a kite", "2"), (".", None)]
    assert messages_of([asked])[1]["content"].count("<span") == 1
