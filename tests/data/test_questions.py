"""Our own questions: none twice, each with the placeholders it needs and no others."""

import re

import pytest

from lgjax.data import questions
from lgjax.text.conversation import GROUNDING_SUFFIX, VISUAL_PROMPT_TAG

LISTS = {
    "REFERRING": (questions.REFERRING, 11),
    "BRIEF": (questions.BRIEF, 11),
    "GROUNDING_SUFFIXES": (questions.GROUNDING_SUFFIXES, 13),
    "REGION": (questions.REGION, 14),
}


@pytest.mark.parametrize("name", LISTS)
def test_as_many_as_the_paper_and_none_twice(name):
    texts, count = LISTS[name]
    assert len(texts) == count == len({text.casefold() for text in texts})
    for text in texts:
        assert text == " ".join(text.split()) and "%" not in text and "<image>" not in text


def test_placeholders():
    for text in questions.REFERRING:
        assert re.findall(r"{.*?}", text) == ["{t}"]
        assert "a {b}" in text.format(t="a {b}")
    for text in questions.REGION:
        assert text.split().count(VISUAL_PROMPT_TAG) == text.count("<") == 1 and "{" not in text
    for text in questions.BRIEF + questions.GROUNDING_SUFFIXES:
        assert not set("<>{}") & set(text)
    assert questions.GROUNDING_SUFFIXES[0] == GROUNDING_SUFFIX
