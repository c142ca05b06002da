"""Requests as they are read, before any model is asked: what they become, and what they may not hold."""

import io
import tracemalloc

import numpy as np
import PIL.Image
import pytest

from lgjax.data import masks
from lgjax.infer.regions import Again, Box, Click, Mask, Scribble, as_trained
from lgjax.serve.limits import Limits, TooLarge
from lgjax.serve.queue import Question
from lgjax.serve.schema import ChatRequest
from tests.serve.server import ask, data_url

SIZE = (1000, 800)


def url(size: tuple[int, int] = SIZE) -> str:
    file = io.BytesIO()
    PIL.Image.new("RGB", size).save(file, "PNG")
    return data_url(file.getvalue())


def talk(regions: list[dict], questions: int = 1, size: tuple[int, int] = SIZE) -> list[dict]:
    """So many questions, each with these regions."""
    text = f"is {' % ' * len(regions)} here?"
    out = [ask(text, url=url(size), regions=regions)]
    for _ in range(questions - 1):
        out += [{"role": "assistant", "content": "b"}, {"role": "user", "content": text, "regions": regions}]
    return out


def read(messages: list[dict], **body) -> Question:
    return ChatRequest.model_validate({"messages": messages, **body}).question(Limits())


def mask(size: tuple[int, int] = SIZE, reading: str = "box") -> dict:
    bitmap = np.zeros(size[::-1], bool)
    bitmap[10:200, 30:500] = True
    return {"type": "mask", **masks.encode(bitmap), "reading": reading}


@pytest.mark.parametrize("reading", ["click", "box"])
def test_large_regions_become_at_once_what_they_are_read_as(reading):
    points = [[5, 6], [70, 80], [90, 20]]
    again, code = {"type": "again", "number": 1}, mask(reading=reading)
    regions = [{"type": "scribble", "points": points, "reading": reading}, code, again]
    found = read(talk(regions)).turn.regions
    want = [
        as_trained(Scribble(tuple((x, y) for x, y in points), reading), SIZE),
        as_trained(Mask(np.asarray(masks.decode(code, SIZE)), reading), SIZE),
        Again(1),
    ]
    assert list(found) == want and isinstance(found[1], Box if reading == "box" else Click)


def test_one_mask_at_a_time_is_in_memory():
    messages = talk([mask()] * 16, questions=3)
    tracemalloc.start()
    read(messages)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 * SIZE[0] * SIZE[1]  # bytes; all of them are 48 times a picture's pixels


def test_regions_of_a_request_are_bounded_together():
    scribble = {"type": "scribble", "points": [[1, 1]] * 3000}
    with pytest.raises(TooLarge, match="the scribbles have 12000 points together, more than 10000"):
        read(talk([scribble] * 2, questions=2))
    wide = (4000, 4000)
    with pytest.raises(TooLarge, match="6 masks have 96000000 pixels together, more than 64000000"):
        read(talk([mask(wide)] * 3, questions=2, size=wide))


def test_what_is_drawn_has_a_seed_of_its_own_unless_one_is_given():
    def seed(**body) -> int:
        return read([ask("What is it?")], **body).options.seed

    assert len({seed(temperature=0.5) for _ in range(4)}) > 1
    assert seed(temperature=0.5, seed=0) == 0 and seed(temperature=0.5, seed=7) == 7
    assert seed() == seed(temperature=0) == 0


def test_fields_of_openai_that_change_no_answer_are_known():
    image = {"type": "image_url", "image_url": {"url": url(), "detail": "high"}}
    first = {"role": "user", "content": [{"type": "text", "text": "a?"}, image], "name": "ann"}
    back = {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None, "phrases": []}
    idle = {"tools": [], "logprobs": False, "response_format": {"type": "text"}, "presence_penalty": 0.0}
    found = read([first, back, {"role": "user", "content": "% of what?"}], user="ann", seed=None, **idle)
    assert [(turn.text, answer) for turn, answer in found.earlier] == [("a?", "b")]
    assert found.turn.text == "% of what?"


def test_a_picture_may_come_in_lines():
    whole = url()
    head, _, code = whole.partition(",")
    lines = "\r\n".join([f"{head},", *(code[i : i + 76] for i in range(0, len(code), 76)), ""])
    assert read([ask("a?", url=lines)]).picture == read([ask("a?", url=whole)]).picture
