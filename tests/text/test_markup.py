"""Answers to display text and spans: properties over any ids, written answers, the original's rules."""

from __future__ import annotations

import colorsys
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lgjax.text import markup
from lgjax.text.markup import parse_ids
from tests.text.tiny import TOKENIZER, grounding_ids, ordinary_ids, special_ids

OPEN, CLOSE, SEG = TOKENIZER.g_s_id, TOKENIZER.g_e_id, TOKENIZER.seg_id


def parse(text: str) -> markup.Markup:
    return parse_ids(TOKENIZER.encode(text), TOKENIZER)


@settings(max_examples=300)
@given(st.lists(ordinary_ids | grounding_ids | grounding_ids | special_ids, max_size=30))
def test_properties_of_any_answer(ids: list[int]) -> None:
    found = parse_ids(ids, TOKENIZER)
    assert len(found.phrases) == ids.count(SEG)
    for phrase in found.phrases:
        assert 0 <= phrase.start <= phrase.end <= len(found.text)
        assert found.text[phrase.start : phrase.end] == phrase.text == phrase.text.strip()
    ends = [phrase.end for phrase in found.phrases]
    assert ends == sorted(ends)
    # nothing of the answer is lost or invented but spaces
    assert squeeze(found.text) == squeeze(TOKENIZER.decode(ids), tags=True)
    if not {OPEN, CLOSE, SEG} & set(ids):
        assert found == (TOKENIZER.decode(ids).strip(" "), ())


def squeeze(text: str, tags: bool = False) -> str:
    text = re.sub("<g_s>|<g_e>|<seg>", "", text) if tags else text
    return text.replace(" ", "")


phrases = st.lists(st.sampled_from(["red", "boats", "the", "Two", "man's"]), min_size=1, max_size=3).map(
    " ".join
)
between = st.sampled_from(["", "next to", "and", ".", ", near", "; then", "(left)", "!"])


@given(st.lists(st.tuples(between, phrases), max_size=5), between)
def test_well_formed_answers(parts: list[tuple[str, str]], end: str) -> None:
    found = parse("".join(f" {lead} <g_s> {phrase} <g_e> <seg>" for lead, phrase in parts) + f" {end}")
    assert [phrase.text for phrase in found.phrases] == [phrase for _, phrase in parts]
    words = [word for lead, phrase in parts for word in (lead, phrase)] + [end]
    wanted = re.sub(r" ([.,;!])", r"\1", " ".join(word for word in words if word))
    assert found.text == wanted


@pytest.mark.parametrize(
    ("answer", "text", "spans"),
    [
        (
            "<g_s> A man <g_e> <seg> rides <g_s> a horse <g_e> <seg>.",
            "A man rides a horse.",
            ["A man", "a horse"],
        ),
        ("<seg> .", ".", [""]),
        ("<seg>", "", [""]),
        ("Yes.", "Yes.", []),
        ("", "", []),
        ("Here is <g_s> the cup <g_e> <seg>", "Here is the cup", ["the cup"]),
        ("<g_s> a cup <g_e> on a plate", "a cup on a plate", []),
        ("<g_s> a cup on a plate", "a cup on a plate", []),
        ("a cup <g_e> <seg> on it", "a cup on it", [""]),
        ("see <g_s> a cup <seg> here", "see a cup here", ["a cup"]),
        ("<g_s> a cup <g_e> stands here <seg> .", "a cup stands here.", ["a cup"]),
        ("<g_s> a <g_e> <seg> <seg> b", "a b", ["a", ""]),
        ("<g_s> a <g_s> red <g_e> <seg> cup <g_e> <seg>", "a red cup", ["red", "a red cup"]),
        ("<g_s> a <g_e> and <g_s> cup <seg>", "a and cup", ["cup"]),
        ("<g_s> <g_e> <seg> x", "x", [""]),
        (
            "the <g_s> man <g_e> <seg> 's hat ( <g_s> blue <g_e> <seg> )",
            "the man's hat (blue)",
            ["man", "blue"],
        ),
        ("a <g_s> man <g_e> <seg> 'quoted' text", "a man 'quoted' text", ["man"]),
        ("<g_s> a <g_e><seg>\n\n- <g_s> b <g_e><seg>", "a - b", ["a", "b"]),
        ("a</s> <g_s> b <g_e> <seg></s>", "a b", ["b"]),
    ],
)
def test_answers(answer: str, text: str, spans: list[str]) -> None:
    found = parse(answer)
    assert found.text == text
    assert [phrase.text for phrase in found.phrases] == spans


def test_line_breaks_of_the_answer_stay() -> None:
    newline = TOKENIZER.encode("\n")[-1]
    ids = [
        OPEN,
        *TOKENIZER.encode("one")[1:],
        CLOSE,
        SEG,
        newline,
        newline,
        OPEN,
        *TOKENIZER.encode("two")[1:],
    ]
    found = parse_ids([*ids, CLOSE, SEG], TOKENIZER)
    assert found.text == "one\n\ntwo"
    assert found.phrases == (("one", 0, 3), ("two", 5, 8))


def test_text_that_only_looks_like_a_tag_is_left_alone() -> None:
    letters = [i for letter in "<seg>" for i in TOKENIZER.encode("\n" + letter)[3:]]
    found = parse_ids(letters, TOKENIZER)
    assert found == ("<seg>", ())


boxes = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.just(4)),
    elements=st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.0]),
)


@given(st.lists(st.tuples(phrases, boxes), min_size=1, max_size=5))
def test_filter_keeps_what_has_boxes(parts: list[tuple[str, np.ndarray]]) -> None:
    text = "".join(f"<g_s> {phrase} <g_e> <seg> and " for phrase, _ in parts) + "more."
    groups = [group for _, group in parts]
    found, kept = markup.filter_empty_boxes(text, groups)
    full = [(phrase, group[group.any(1)]) for phrase, group in parts if group.any()]
    assert re.findall("<g_s> (.*?) <g_e> <seg>", found) == [phrase for phrase, _ in full]
    assert found.count("<seg>") == len(full) == len(kept)
    for ours, (_, wanted) in zip(kept, full, strict=True):
        np.testing.assert_array_equal(ours, wanted)
    plain = re.sub("<.*?>", " ", text).split()
    assert re.sub("<.*?>", " ", found).split() == plain
    masks = [np.zeros((len(group), 1, 1), bool) for group in groups]
    assert markup.filter_empty_box_masks(text, groups, masks)[0] == found
    record = markup.format_record(found, kept, "q")
    assert record.text.split() == plain
    assert record.boxes == re.findall(r"\[[^]]*\]", record.text_boxes)
    for string, group in zip(record.boxes, kept, strict=True):
        rows = [list(map(float, row.split(","))) for row in string.strip("[]").split(";")]
        np.testing.assert_allclose(rows, group, atol=5e-4)


def test_filter_needs_a_mask_for_each_box() -> None:
    with pytest.raises(ValueError, match=r"\[2\] boxes but \[1\] masks"):
        markup.filter_empty_box_masks("a <seg> b", [np.ones((2, 4), np.float32)], [np.zeros((1, 2, 2), bool)])


@given(boxes, st.integers(1, 2000), st.integers(1, 2000))
def test_unresized_boxes_are_those_of_the_picture(group: np.ndarray, width: int, height: int) -> None:
    (found,) = markup.unresize_boxes([group], width, height)
    assert found.dtype == np.float32
    longer = max(width, height)
    pixels = found.astype(np.float64) * [width, height, width, height]
    np.testing.assert_allclose(pixels, group.astype(np.float64) * longer, rtol=3e-7)


def test_more_phrases_than_colours() -> None:
    html = markup.demo_html("".join(f"<g_s>p{i}<g_e> <seg> , " for i in range(23)))
    colours = re.findall(r"rgb\((\d+), (\d+), (\d+)\)", html)
    assert [tuple(map(int, colour)) for colour in colours] == [*markup.COLOURS, *markup.COLOURS[:3]]
    assert markup.demo_history(html) == re.sub("<.*?>", "", html)


def test_colours_are_shuffled_hues() -> None:
    hues = [i / 20 for i in range(20)]
    random.Random(0).shuffle(hues)
    wanted = [tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue, 1, 1)) for hue in hues]
    assert list(markup.COLOURS) == wanted


def test_short_answers_are_returned_as_they_are():
    """Answers of fewer than six characters fail in the original (quirk Q3)."""
    for text in ("<seg>", "Yes.", ""):
        assert markup.format_record(text, [], 7) == (7, text, text, [])


plain = st.text("abc ,.'(\n", max_size=12)


@given(st.lists(st.tuples(plain, st.text("xyz", min_size=1, max_size=5)), max_size=4), plain)
def test_texts_with_tokens_keep_their_ids(parts: list[tuple[str, str]], end: str) -> None:
    """What is read from a file and written again is the same to the model."""
    text = "".join(f"{before} <g_s> {phrase} <g_e> <seg>" for before, phrase in parts) + end
    found = markup.parse_text(text)
    assert [phrase.text for phrase in found.phrases] == [phrase for _, phrase in parts]
    spans = [(phrase.start, phrase.end) for phrase in found.phrases]
    again = markup.mark_phrases(found.text, spans)
    assert TOKENIZER.encode(again) == TOKENIZER.encode(text)
    assert "".join(markup.parse_text(again).text.split()) == "".join(found.text.split())


def test_text_without_tokens_stays_as_it_is() -> None:
    assert markup.parse_text("  two  words ") == ("  two  words ", ())
    assert markup.mark_phrases("  two  words ", []) == "  two  words "
    assert markup.mark_phrases("a cat.", [(0, 5), (6, 6)]) == "<g_s> a cat <g_e> <seg> . <seg>"
