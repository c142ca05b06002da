"""Noun phrases and what they mean, by rules of words, and measured against links checked by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.annotate.check import agreement, texts_of_file
from lgjax.annotate.inputs import read_inputs
from lgjax.annotate.matcher import Matcher, match
from lgjax.annotate.nouns import mentions
from lgjax.annotate.records import TextLink, text_of
from lgjax.text.coco_names import SYNONYMS, coco_lexicon
from tests.annotate.sample import CAPTIONS, CHECKED, INSTANCES, task

DOGS = ("dog", 0.1, 0.2), ("dog", 0.6, 0.22)


def phrases(text: str) -> list[str]:
    return [text[one.start : one.end] for one in mentions(text, coco_lexicon())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man in a hat rides two brown horses past the bus.", ["A man", "two brown horses", "the bus"]),
        ("a group of people and a couple of old dogs", ["a group of people", "a couple of old dogs"]),
        ("A green and white city bus", ["A green and white city bus"]),
        ("The bike shop employee waits at a bus stop for the train station.", ["The bike shop employee"]),
        ("jumbo jet airplanes near the car park", ["airplanes"]),
        ("There is no dog, and nobody without a car.", []),
        ("A cloud like a sheep above a painting of a horse.", []),
        ("He likes to train and to cook next to people.", ["people"]),
        ("A cat eats. The dog sleeps, the bird sings", ["A cat", "The dog", "the bird"]),
        ("all of the three small cats", ["the three small cats"]),
        ("How many dogs are there? The two dogs.", ["The two dogs"]),
        ("One of the cats, some of the dogs", []),
        ("A man skis down a hill, a chef cooks pizza.", ["A man", "a chef", "pizza"]),
        ("A woman, skis in hand, waits.", ["A woman", "skis"]),
        ("He isn’t wearing a tie, and it does not hold a cat.", []),
        ("No, the cat is not. A dog is.", ["the cat", "A dog"]),
        ("", []),
    ],
)
def test_noun_phrases(text, expected):
    assert phrases(text) == expected


@pytest.mark.parametrize(
    ("text", "named", "expected"),
    [
        ("A dog sleeps.", DOGS[:1], [("A dog", (0,))]),
        ("A dog sleeps.", DOGS, []),  # which one?
        ("Two dogs sleep.", DOGS, [("Two dogs", (0, 1))]),
        ("Three dogs sleep.", DOGS, []),
        ("Some dogs sleep.", DOGS, [("Some dogs", (0, 1))]),
        ("Some dogs sleep.", DOGS[:1], []),
        ("The dog on the left barks at the right dog.", DOGS, [("The dog", (0,)), ("the right dog", (1,))]),
        ("The smaller dog sleeps.", (("dog", 0.1, 0.1), ("dog", 0.5, 0.4)), [("The smaller dog", (0,))]),
        ("A dog sleeps.", (("dog", 0.1, 0.1), ("dog", 0.5, 0.4)), [("A dog", (1,))]),
        ("A glass is full.", (("cup", 0.1, 0.1),), [("A glass", (0,))]),
        ("A glass is full.", (("cup", 0.1, 0.1), ("wine glass", 0.5, 0.1)), []),
        ("A man greets a boy.", (("person", 0.1, 0.4),), []),  # one box, two people
        ("A man smiles. The man waves.", (("person", 0.1, 0.4),), [("A man", (0,)), ("The man", (0,))]),
        ("A pair of scissors.", (("scissors", 0.1, 0.4),), [("A pair of scissors", (0,))]),
        ("A unicorn and a wug.", (("wug", 0.1, 0.4),), [("a wug", (0,))]),
        ("The couch.", DOGS, []),
        (
            "A small dog sleeps.",
            (("dog", 0.1, 0.1), ("dog", 0.5, 0.4)),
            [],
        ),  # small for a dog, or the smaller
        ("Two dogs. The dogs bark.", DOGS, [("Two dogs", (0, 1)), ("The dogs", (0, 1))]),
        ("The left dog and other dogs", (*DOGS, DOGS[1]), [("The left dog", (0,)), ("other dogs", (1, 2))]),
    ],
)
def test_what_phrases_mean(text, named, expected):
    links = match(task(text, *named))
    assert [(text[link.start : link.end], link.instances) for link in links] == expected


@settings(max_examples=60)
@given(st.data())
def test_links_are_always_in_order_and_of_the_right_category(data):
    words = st.sampled_from(
        [*SYNONYMS, "people", "a", "two", "the", "of", "and", "left", "on", "no", ".", "group"]
    )
    text = " ".join(data.draw(st.lists(words, max_size=14)))
    categories = data.draw(
        st.lists(st.sampled_from(["dog", "person", "cup", "wine glass", "mouse"]), max_size=5)
    )
    given_task = task(text, *((category, 0.1 * k, 0.2) for k, category in enumerate(categories)))
    last = 0
    for link in match(given_task):
        assert last <= link.start < link.end <= len(text) and link.instances
        assert len({given_task.instances[i].category for i in link.instances}) == 1
        assert text[link.start : link.end] == text[link.start : link.end].strip()
        last = link.end


def test_precision_and_recall_against_the_checked_links():
    inputs = read_inputs(INSTANCES, None, CAPTIONS)
    ours = {}
    for chat in inputs.items:
        links = Matcher().annotate([inputs.task(chat, 1)])[0].links
        found = inputs.instances(chat["image"])
        ours[chat["image"], text_of(chat["conversations"][1])] = [
            TextLink(0, link.start, link.end, tuple(found[i].id for i in link.instances)) for link in links
        ]
    both = agreement(ours, texts_of_file(CHECKED, inputs))
    assert both.texts == 195 and both.second == 486
    assert both.precision >= 0.98 and both.recall >= 0.74
    assert both.same_spans / both.phrases > 0.97
