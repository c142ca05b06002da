"""From records to rounds: the rules of every kind, by hand from spec/training_and_data.md 6 and 8."""

import dataclasses
import re

import numpy as np
import pytest

from lgjax.data import questions
from lgjax.data.rounds import render, rounds_of
from lgjax.data.schema import Turn
from lgjax.text.conversation import V1
from tests.data.records import caption, chat, referring, region, words

SEEDS = range(200)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_chat_is_taken_as_it_stands():
    first, second = rounds_of(chat(7, regions=True), rng())
    assert first.question == "<image>\nWhat is <obj> here? (with grounding)"
    assert first.answer == "<g_s> A man <g_e> <seg> and <g_s> 7 horses <g_e> <seg> near a house."
    assert first.phrases == ((1,), (0, 3)) and first.regions == (2,)
    assert second == ("Is it half full?", "<g_s> The cup <g_e> <seg> is 50 % full.", ((),), ())


def test_text_alone_has_no_image_tag():
    assert rounds_of(words(), rng())[0].question == "Name 0 colours."


def test_caption_is_the_worked_example():
    (one,) = rounds_of(caption(), rng())
    assert one.question == (
        "<image>\nPresent a compact description of the photo's key features.\n(with grounding)"
    )
    assert one.answer == "<g_s> Two dogs <g_e> <seg> chase <g_s> a red ball <g_e> <seg> ."
    assert one.phrases == ((0, 1), (2,))


def test_referring_asks_for_one_to_four_expressions():
    counts, texts = set(), set()
    for seed in SEEDS:
        rounds = rounds_of(referring(), rng(seed))
        counts.add(len(rounds))
        asked = [one.phrases[0][0] for one in rounds]
        assert len(set(asked)) == len(asked)
        for number, one in enumerate(rounds):
            start = "<image>\n Please" if number == 0 else "Please"
            i = asked[number]
            found = re.fullmatch(
                f"{start} detect the object according to the text (.*) \\(referring\\)\\.", one.question
            )
            assert found and found[1] in (f"thing {i}", f"the {i}")
            texts.add(found[1])
            assert one.answer == "<seg> ."
    assert counts == {1, 2, 3, 4} and len(texts) == 12
    assert {len(rounds_of(referring(count=2), rng(seed))) for seed in SEEDS} == {1, 2}


def test_region_asks_for_one_to_all_expressions():
    counts = set()
    for seed in SEEDS:
        rounds = rounds_of(region(), rng(seed))
        counts.add(len(rounds))
        assert rounds[0].question.startswith("<image>\n")
        assert all("<image>" not in one.question for one in rounds[1:])
        for one in rounds:
            assert one.question.removeprefix("<image>\n") in questions.REGION
            assert one.answer in (f"Cat {one.regions[0]}", "it")
    assert counts == {1, 2, 3}


def test_varied_wording_draws_from_the_lists():
    found = {"chat": set(), "caption": set(), "referring": set()}
    for seed in range(400):
        found["chat"].add(
            rounds_of(chat(), rng(seed), "varied")[0].question.removeprefix("<image>\nWhat is here? ")
        )
        found["caption"].add(rounds_of(caption(), rng(seed), "varied")[0].question.removeprefix("<image>\n"))
        question = rounds_of(referring(count=1), rng(seed), "varied")[0].question
        found["referring"].add(
            question.removeprefix("<image>\n").replace("thing 0", "{t}").replace("the 0", "{t}")
        )
    assert found["chat"] == set(questions.GROUNDING_SUFFIXES)
    assert found["referring"] == set(questions.REFERRING)
    assert {text.split("\n")[0] for text in found["caption"]} == set(questions.BRIEF)
    assert {text.split("\n")[1] for text in found["caption"]} == set(questions.GROUNDING_SUFFIXES)


def test_a_region_without_a_space_in_front_gets_one():
    record = dataclasses.replace(
        chat(regions=True), turns=(Turn("human", "the object<obj>?"), Turn("gpt", "Yes.")), phrases=()
    )
    assert rounds_of(record, rng())[0].question == "<image>\nthe object <obj>?"
    start = dataclasses.replace(record, turns=(Turn("human", "<obj> is?"), Turn("gpt", "Yes.")))
    assert rounds_of(start, rng())[0].question == "<image>\n <obj> is?"


def test_render_ends_every_answer():
    text = render(rounds_of(words(3), rng()))
    assert text == V1.system + " USER: Name 3 colours. ASSISTANT: Red, green.</s>"


@pytest.mark.parametrize("record", [referring(), region()])
def test_nothing_to_ask_for_is_said(record):
    with pytest.raises(ValueError, match="without anything to ask for"):
        rounds_of(dataclasses.replace(record, expressions=()), rng())
