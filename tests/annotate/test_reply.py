"""Answers of a language model: read, aligned, held to the text and the boxes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.annotate.asking import Asking
from lgjax.annotate.prompts import EXAMPLES, annotation, boxes_of
from lgjax.annotate.reply import read_links, without_links, write_links
from lgjax.annotate.task import Instance, Link, Task
from lgjax.llm.request import Failure, Pending, Reply
from tests.annotate.sample import CHECKED, task

YARD = ("dog", 0.1, 0.2), ("dog", 0.6, 0.2), ("cat", 0.4, 0.1)
TEXT = "A dog (brown) looks at the left dog, two dogs at a cat [3]."


def test_an_answer_becomes_links_of_the_text():
    given_task = task(TEXT, *YARD)
    answer = (
        "A dog (brown) looks at (the left dog) [1.dog], (two dogs) [2.dog, 1. Dog] at ( a cat )[3.cat] [3]."
    )
    assert [(TEXT[s:e], i) for s, e, i in read_links(given_task, answer)] == [
        ("the left dog", (0,)),
        ("two dogs", (1, 0)),
        ("a cat", (2,)),
    ]
    assert read_links(given_task, TEXT) == ()


def test_small_changes_of_the_text_are_aligned():
    text = "A brown dog and a cat lie on the old carpet in front of the fire place, and both seem asleep."
    answer = text.replace("fire place", "fireplaces").replace("a cat", "(a cat) [3.cat]").replace("  ", "\n")
    links = read_links(task(text, *YARD), answer)
    assert [(text[s:e], i) for s, e, i in links] == [("a cat", (2,))]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("A dog lies at the door.", r"the text was changed \(similarity 0\.\d\d\)"),
        ("", "the text was changed"),
        (TEXT.replace("a cat", "(a cat) [4.cat]"), "there is no instance '4.cat'"),
        (TEXT.replace("a cat", "(a cat) [0.cat]"), "there is no instance '0.cat'"),
        (TEXT.replace("a cat", "(a cat) [2.cat]"), "instance 2 is of class 'dog', not 'cat'"),
        (TEXT.replace("a cat", "a cat ( ) [3.cat]"), "a phrase is empty"),
        (TEXT.replace("two dogs", "((two dogs) [1.dog, 2.dog]) [1.dog]"), "nested or not in pairs"),
        (TEXT.replace("two dogs", "two dogs [1.dog]"), "nested or not in pairs"),
        (TEXT.replace("two dogs", "(two dogs) [1.dog]"), "'two dogs' says 2, but has 1 instances"),
        (
            TEXT.replace("the left dog", "(the left dog) [2.dog]"),
            "'the left dog' is the one farthest from the left",
        ),
    ],
)
def test_answers_that_cannot_be_taken(answer, fault):
    with pytest.raises(ValueError, match=fault):
        read_links(task(TEXT, *YARD), answer)


def test_a_phrase_has_at_most_twelve_words():
    text = "a dog " * 7
    with pytest.raises(ValueError, match="more than 12 words"):
        read_links(task(text, *YARD), f"({text.strip()}) [1.dog]")


def test_crowds_belong_to_plurals():
    crowd = Instance(1, "person", (0.0, 0.0, 1.0, 0.5), crowd=True)
    people = Task(
        "A man before people.", (crowd, *task("", ("person", 0.1, 0.3), ("person", 0.5, 0.3)).instances)
    )
    answer = "(A man) [1.person, 2.person] before (people) [1.person, 2.person, 3.person]."
    assert [link.instances for link in read_links(people, answer)] == [(1,), (0, 1, 2)]


words = st.text(st.characters(codec="utf-8", exclude_characters="()[]"), min_size=1, max_size=6).filter(
    lambda word: bool(word.strip())
)


@settings(max_examples=40)
@given(st.lists(st.tuples(words, st.booleans()), min_size=1, max_size=8))
def test_what_is_written_is_read_again(parts):
    text, links = "", []
    for word, linked in parts:
        word = word.strip()
        if linked:
            links.append(Link(len(text), len(text) + len(word), (0,)))
        text += word + " "
    text = text.strip()
    given_task = task(text, ("thing", 0.1, 0.2))
    answer = write_links(given_task, links)
    try:
        assert read_links(given_task, answer) == tuple(links)
    except ValueError as error:  # the words may happen to say a number
        assert "says" in str(error)
    assert without_links(answer) == text


def test_the_checked_links_keep_the_rules_of_answers():
    captions = json.loads(CHECKED.read_text())["captions"]
    assert len(captions) == 195 and sum("[" in entry["marked"] for entry in captions) > 130


def test_the_examples_keep_their_own_rules_and_show_all_cases():
    for example, answer in EXAMPLES:
        assert write_links(example, read_links(example, answer)) == answer
    answers = [answer for _, answer in EXAMPLES]
    assert any(", " in answer[answer.find("[") : answer.find("]")] for answer in answers)  # a group
    assert any("[" not in answer for answer in answers) and any(a.endswith("?") for a in answers)
    assert any("(switched on)" in answer for answer in answers)


def test_the_prompt_holds_boxes_and_text():
    given_task = task("A dog.", ("dog", 0.25, 0.5))
    assert boxes_of(given_task.instances) == "1.dog: [0.250, 0.100, 0.750, 0.600]"
    messages = annotation(given_task)
    assert messages[0].role == "system" and messages[-1].content.endswith("\n\nText:\nA dog.")
    assert len(messages) == 2 + 2 * len(EXAMPLES)


class Told:
    """A language model that says what it is told, and remembers what it was asked."""

    def __init__(self, *outcomes):
        self.outcomes, self.requests = list(outcomes), []

    def complete(self, requests):
        self.requests.append(requests)
        return [self.outcomes.pop(0) for _ in requests]


def test_a_bad_answer_is_repaired_once_then_rejected_with_its_reason():
    model = Told(
        Reply("(A cat) [1.cat] sits."),
        Reply("(A cat) [7.cat] sits."),
        Reply("I cannot see the picture."),
        Failure("refused by the endpoint: status 400"),
        Pending(),
        Reply("(A cat) [1.cat] sits."),
        Reply("Sorry!"),
    )
    marked = Asking(model, "m").annotate([task("A cat sits.", ("cat", 0.1, 0.2))] * 5)
    good, repaired, rejected, refused, waiting = marked
    assert good.links == repaired.links == (Link(0, 5, (0,)),)
    assert repaired.repaired and not good.repaired
    assert "the text was changed" in rejected.fault and not rejected.links
    assert refused.fault == "refused by the endpoint: status 400" and waiting.pending
    assert [len(requests) for requests in model.requests] == [5, 2]
    assert "there is no instance '7.cat'" in model.requests[1][0].messages[-1].content
