"""What happens on the page, without a browser: taps, answers as they come, pictures and files."""

import itertools
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lgjax import draw
from lgjax.infer.answer import Phrase
from lgjax.infer.regions import Box, Click, Scribble
from lgjax.infer.request import Options
from lgjax.serve.limits import Limits
from lgjax.serve.metrics import Metrics
from lgjax.serve.page import KINDS, Page, Session, forget, knows, messages_of, pieces_of
from lgjax.serve.queue import Desk, Stopping, Turn
from tests.infer.model import GROUNDED, chat, model, picture
from tests.serve.server import png


@pytest.fixture(scope="module")
def page():
    limits = Limits(turns=2)
    desk = Desk(model(), limits, Metrics())
    desk.start()
    yield Page(desk, limits)
    desk.close()


@pytest.fixture
def session(page, tmp_path):
    (tmp_path / "photo.png").write_bytes(png(0))
    session = page.take(str(tmp_path / "photo.png"))
    yield session
    forget(session)


def test_taps_become_regions(page, session):
    click, box, scribble = KINDS
    for kind, x, y in [(click, 1, 2), (box, 60, 70), (box, 3, 4), (scribble, 5, 5), (scribble, 6, 7)]:
        session = page.tap(session, kind, x, y)
    assert session.regions == (Click(1, 2), Box(60, 70, 3, 4), Scribble(((5, 5), (6, 7))))
    half = page.tap(page.tap(session, click, 8, 8), box, 9, 9)
    assert half.regions[-2:] == (Click(8, 8), Scribble(((9, 9),), "box")) and half.unfinished
    assert page.tap(half, scribble, 7, 7).regions[-2:] == (half.regions[-1], Scribble(((7, 7),)))
    drawn = np.asarray(page.preview(session))
    assert (drawn != picture(0)).any() and drawn.shape == (90, 120, 3)
    assert page.preview(Session()) is None


def test_an_answer_is_shown_as_it_comes_and_kept(page, session):
    turn, options = Turn("Is % red?", (Click(30, 45),)), Options(answer=GROUNDED, threshold=None)
    steps = list(page.ask(session, turn, options))
    texts = [asked.answer["text"] for _, asked in steps]
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert len(set(texts)) > 3 and {len(asked.answer["phrases"]) for _, asked in steps} == {0, 1, 2}
    later, asked = steps[-1]
    want = chat().ask(picture(0), "Is % red?", Click(30, 45), answer=GROUNDED, threshold=None)
    assert asked.answer == want.to_json() and later.turns[-1] is asked and later.regions == ()

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
        assert picture_file.width >= 480
    forget(later)
    assert not Path(as_json).parent.exists()


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
    with pytest.raises(ValueError, match="2 questions are the most"):
        list(page.ask(session, Turn("What?"), Options(max_tokens=2)))
    stopped = Desk(model(), Limits(), Metrics())
    stopped.close()
    with pytest.raises(Stopping):
        list(Page(stopped, Limits()).ask(session, Turn("What?"), Options(max_tokens=2)))


def test_a_reader_who_leaves_frees_the_row(page, session):
    answers = page.ask(session, Turn("What?"), Options(max_tokens=200))
    next(answers)
    answers.close()
    (*_, (_, asked)) = page.ask(session, Turn("What?"), Options(answer="A cat."))
    assert asked.answer["text"] == "A cat."


def test_the_page_says_what_the_model_can_do():
    said = knows(model(), "debug")
    assert "boxes and masks" in said and "clicks" in said and "untrained" in said
