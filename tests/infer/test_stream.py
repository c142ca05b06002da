"""Answers that are heard while they are written: the same as asked for whole, in pieces that never change."""

import dataclasses
import time
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax import Box, Click, Done, Found, Words
from lgjax.infer import engine, generate
from lgjax.infer.chat import GroundedChat
from lgjax.infer.request import Options
from lgjax.infer.run import Batch, run
from lgjax.infer.stream import kept_ids, settled_ids, settled_text
from lgjax.text import markup
from tests.infer.model import GROUNDED, chat, model, picture, tokenizer

LONG = f"{GROUNDED} <g_s> A dog <g_e> <seg> sits and <g_s> the sky <g_e> <seg> is blue ."


def equal_answers(one, other) -> None:
    for name in ("text", "tagged_text", "finished", "num_tokens"):
        assert getattr(one, name) == getattr(other, name)
    assert len(one.phrases) == len(other.phrases)
    for a, b in zip(one.phrases, other.phrases, strict=True):
        assert (a.text, a.span) == (b.text, b.span)
        for name in ("boxes", "scores", "masks"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for a, b in zip(one.canvas_boxes, other.canvas_boxes, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"answer": LONG, "threshold": 0.02},
        {"max_tokens": 40},
        {"max_tokens": 40, "temperature": 1.0, "seed": 3},
        {"answer": LONG, "threshold": None, "stop": ("sits and", "dog x")},
    ],
)
def test_the_answer_of_a_stream_is_that_of_ask(chunk, options):
    question, region = "Is % left of % ?", [Click(10, 10), Box(50, 50, 80, 80)]
    want = chat().ask(picture(0), question, region, **options)
    events = list(chat().stream(picture(0), question, region, chunk=chunk, **options))
    assert isinstance(events[-1], Done)
    equal_answers(events[-1].answer, want)
    assert "".join(event.text for event in events if isinstance(event, Words)) == want.text
    found = [event for event in events if isinstance(event, Found)]
    assert [event.number for event in found] == list(range(len(want.phrases)))
    for event, phrase in zip(found, want.phrases, strict=True):
        assert (event.phrase.text, event.phrase.span) == (phrase.text, phrase.span)
    if found:  # the last one was looked for together with all others
        np.testing.assert_array_equal(found[-1].phrase.boxes, want.phrases[-1].boxes)


@pytest.mark.parametrize("seg_state", ["before", "at"])
def test_a_phrase_is_told_before_the_words_behind_it(seg_state):
    loaded = dataclasses.replace(model(), config=dataclasses.replace(model().config, seg_state=seg_state))
    heard, told = "", []
    for event in GroundedChat(loaded).stream(picture(0), "What is it?", answer=LONG, chunk=1, threshold=None):
        if isinstance(event, Words):
            heard += event.text
        elif isinstance(event, Found):
            assert heard[slice(*event.phrase.span)] == event.phrase.text
            told.append((event.phrase.text, len(heard)))
    assert [phrase for phrase, _ in told] == ["A man", "two brown horses", "A dog", "the sky"]
    assert all(length < len(heard) - 5 for _, length in told)


def test_a_conversation_goes_on_after_a_stream():
    talk, other = chat().start(picture(0)), chat().start(picture(0))
    for _ in talk.stream("What is it?", answer=GROUNDED):
        pass
    other.ask("What is it?", answer=GROUNDED)
    abandoned = talk.stream("Is it red?", max_tokens=20)
    next(abandoned)
    abandoned.close()
    equal_answers(talk.ask("And now?", max_tokens=8), other.ask("And now?", max_tokens=8))


def test_one_program_from_question_to_question():
    talk = chat().start(picture(0))

    def hear(text: str, **options) -> None:
        for _ in talk.stream(text, **options):
            pass
        talk.undo()

    hear("What is it?", max_tokens=60, answer=None)
    hear("What is it?", answer=LONG)
    programs = (generate._advance, generate._begin, generate._prefill, engine.ground, engine.masks_of)
    before = [program._cache_size() for program in programs]
    hear("Where?", max_tokens=33)
    hear("Where is it?", max_tokens=64, temperature=1.0, seed=4, top_p=0.5)
    hear("Who?", answer="<g_s> A dog <g_e> <seg>", stop="x")
    talk.ask("Where?", max_tokens=50)
    assert [program._cache_size() for program in programs] == before


def requests(*questions: str, **options):
    return [
        chat().start(picture(i)).request(text, None, Options(**options))[0]
        for i, text in enumerate(questions)
    ]


def test_rows_of_a_batch_end_when_they_are_ready_and_when_nobody_listens():
    texts = ["A cat .", LONG, "A very long answer that goes on and on and on and on .", GROUNDED]
    asked = [requests("What is it?", answer=text, threshold=None)[0] for text in texts]
    whole = run(model(), asked).answers
    batch = Batch(model(), asked)
    heard: list = [[] for _ in texts]
    steps = []

    def reader(row: int):
        if row == 0:
            steps.append(len(batch.ids[2]))
        return ("live", "live", "gone" if len(steps) > 3 else "live", "end")[row]

    for row, event in batch.events(3, reader):
        heard[row].append((event, len(steps)))
    assert [type(event) for event, _ in heard[2]].count(Done) == 0  # gone before its end
    assert "".join(e.text for e, _ in heard[2]) != whole[2].text
    for row in (0, 1, 3):
        event = heard[row][-1][0]
        assert event.answer.text == whole[row].text
        for phrase, want in zip(event.answer.phrases, whole[row].phrases, strict=True):
            np.testing.assert_allclose(phrase.boxes, want.boxes, atol=2e-3)
    assert heard[0][-1][1] < heard[3][-1][1] < heard[1][-1][1]  # each as soon as it is ready
    assert len({when for _, when in heard[3]}) == 1  # everything at its end
    assert len({when for _, when in heard[1]}) > 3


def pieces():
    """Ids of text of every kind: words, grounding tokens, bytes of characters, spelled-out ends."""
    tok = tokenizer()
    parts = [
        "A man",
        "'s",
        "'x",
        "'re",
        "'red",
        "</s",
        "</",
        " . ",
        "\n",
        "你好",
        "🐈",
        "(",
        ")",
        "a%b",
        "  ",
    ]
    texts = [tok.encode(part)[1:] for part in parts]
    tags = [[tok.g_s_id], [tok.g_e_id], [tok.seg_id]]
    single = st.integers(3, 802).map(lambda i: [i])
    return st.lists(st.sampled_from(texts + tags) | single, max_size=14).map(lambda x: list(chain(*x)))


@settings(max_examples=150)
@given(pieces(), st.lists(st.sampled_from(["man", "A", "n's", "re", "好", "x'", "<seg>"]), max_size=2))
def test_what_was_told_never_changes(ids, stops):
    tok, ids = tokenizer(), np.asarray(ids, np.int32)
    kept, ended = kept_ids(ids, stops, tok)
    final = settled_text(kept, tok, whole=True)
    spans = markup.parse_ids(kept, tok).phrases
    sent, previous = "", np.zeros(0, np.int32)
    for n in range(len(ids) + 1):
        part, over = kept_ids(ids[:n], stops, tok)
        if over:
            assert ended and settled_text(part, tok, whole=True) == final
            break
        settled = settled_ids(part, stops, tok)
        assert len(settled) >= len(previous)
        previous = settled
        text = settled_text(settled, tok, whole=False)
        if len(text) > len(sent):
            assert text.startswith(sent)
            sent = text
        told = markup.parse_ids(settled, tok).phrases
        assert told == spans[: len(told)]
        assert all(sent[phrase.start : phrase.end] == phrase.text for phrase in told)
    assert final.startswith(sent)


def test_a_stop_text_of_any_length_is_looked_for_quickly():
    """Only as much of it as the answer has characters can have begun; to try every begin takes a minute."""
    tok = tokenizer()
    ids = np.asarray(tok.encode("The sky is xxx")[1:], np.int32)
    start = time.monotonic()
    settled = settled_ids(ids, ["x" * 1_500_000], tok)
    assert time.monotonic() - start < 5 and tok.decode(settled).rstrip() == "The sky is"


def test_text_is_told_soon():
    tok = tokenizer()
    ids = np.asarray(tok.encode("A cat sits on a red mat and looks at the 你好你好 sky")[1:], np.int32)
    for n in range(1, len(ids)):
        whole = markup.parse_ids(ids[:n], tok).text.rstrip("\N{REPLACEMENT CHARACTER}")
        assert len(whole) - len(settled_text(ids[:n], tok, whole=False)) <= 5
