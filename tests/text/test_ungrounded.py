"""Phrases that were not found: flagged in the text, or taken out of it without harm to the rest."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgjax.text.ungrounded import NOT_FOUND, drop, flag


def parse(marked: str) -> tuple[str, list[tuple[int, int]], list[int]]:
    """Text, spans and lost phrases of a text with [phrases that were found] and {lost ones}."""
    text, spans, lost = "", [], []
    for part in re.split(r"(\[[^\]]*\]|\{[^}]*\})", marked):
        if part[:1] in ("[", "{"):
            lost += [len(spans)] if part[0] == "{" else []
            spans.append((len(text), len(text) + len(part) - 2))
            part = part[1:-1]
        text += part
    return text, spans, lost


@pytest.mark.parametrize(
    ("marked", "want"),
    [
        ("[A dog], {a kite} and [a cat].", "A dog and a cat."),
        ("[A dog], [a kite] and {a cat} play.", "A dog and a kite play."),
        ("The picture shows {a cat}, {a dog} and [two cars].", "The picture shows two cars."),
        ("I see [a cat], {a dog}, and [two cars].", "I see a cat and two cars."),
        ("{A dog} and [a cat] are on [the sofa].", "A cat is on the sofa."),
        ("There are {a dog}, [a kite] and [a cat].", "There is a kite and a cat."),
        ("There are [two dogs] and {a kite}.", "There are two dogs."),
        ("[A man] rides [a horse] on {the beach}.", "A man rides a horse."),
        ("[A woman] wearing {a hat} sits on [a bench].", "A woman sits on a bench."),
        (
            "[A woman] in [a red dress] is walking with {a dog} in [the park].",
            "A woman in a red dress is walking in the park.",
        ),
        ("[A dog] is to the left of {a kite}.", "There is a dog."),
        ("{A dog} is to the left of [a kite].", "There is a kite."),
        ("[A man] flies {a kite}.", "There is a man."),
        ("I see {a kite}. [A dog] is here.", "A dog is here."),
        ("[A dog] is here. {A kite} flies over {a tree}. All is well.", "A dog is here. All is well."),
        ("{A dog} barks.", ""),
    ],
)
def test_the_grammar_is_mended(marked, want):
    text, spans, lost = parse(marked)
    out, found = drop(text, spans, lost)
    assert out == want
    for number, span in enumerate(found):
        if number in lost:
            assert span is None
        else:
            assert span is not None and out[slice(*span)].lower() == text[slice(*spans[number])].lower()


WORDS = ["a dog", "two cats", "the sofa", "a man", "an orange car"]
BETWEEN = [" ", ", ", " and ", " is on ", " are near ", " wearing ", ". ", "! The end. ", " sees ", ", with "]


@st.composite
def sentences(draw):
    parts = draw(
        st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(BETWEEN), st.booleans()), max_size=7)
    )
    marked = "".join(("{%s}" if lost else "[%s]") % words + between for words, between, lost in parts)
    return parse(draw(st.sampled_from(["", "There are ", "I see "])) + marked)


@given(sentences())
def test_other_phrases_keep_their_words_and_nothing_lost_stays(case):
    text, spans, lost = case
    out, found = drop(text, spans, lost)
    kept = [n for n in range(len(spans)) if n not in lost]
    assert [n for n, span in enumerate(found) if span is not None] == kept
    places = [found[n] for n in kept]
    assert places == sorted(places, key=lambda span: span or (0, 0))
    for number in kept:
        span = found[number]
        assert span is not None and out[slice(*span)].lower() == text[slice(*spans[number])].lower()
    for words in WORDS:  # each is as often there as it was found
        wanted = sum(text[slice(*spans[n])] == words for n in kept)
        assert out.lower().count(words) == wanted
    assert (drop(text, spans, [])) == (text, spans)


@given(sentences())
def test_a_flag_stands_behind_each_lost_phrase(case):
    text, spans, lost = case
    out, found = flag(text, spans, lost)
    assert out.replace(NOT_FOUND, "") == text
    assert out.count(NOT_FOUND) == len(lost)
    for number, (span, old) in enumerate(zip(found, spans, strict=True)):
        assert out[slice(*span)] == text[slice(*old)]
        assert out[span[1] :].startswith(NOT_FOUND) == (number in lost)


def test_phrases_within_phrases_and_bare_ones():
    text = "A man with a hat runs."
    spans = [(0, 16), (11, 16), (22, 22)]  # a whole phrase, one within it, a bare <seg>
    assert drop(text, spans, [1]) == (text, [(0, 16), None, (22, 22)])
    assert drop(text, spans, [0]) == ("", [None, None, (0, 0)])
    assert drop(text, spans, [2])[0] == text
    assert flag(text, spans, [1])[0] == f"A man with a hat{NOT_FOUND} runs."
