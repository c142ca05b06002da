"""Names of categories in texts."""

import json
from pathlib import Path

import pytest

from lgjax.text.coco_names import SYNONYMS, Lexicon, coco_lexicon, plurals, words_of


def categories_of(phrase: str) -> tuple[str, ...]:
    """The categories that the last name of the phrase stands for."""
    found = coco_lexicon().find(words_of(phrase))
    return found[-1][2].categories if found else ()


@pytest.mark.parametrize(
    ("phrase", "categories"),
    [
        ("Two young children", ("person",)),
        ("a glass", ("cup", "wine glass")),
        ("the bottle of wine", ("bottle",)),
        ("a large teddy bear", ("teddy bear",)),
        ("a polar bear", ("bear",)),
        ("HOT DOGS", ("hot dog",)),
        ("the chef’s knives", ("knife",)),
        ("a dining-room table", ("dining table",)),
        ("some policemen", ("person",)),
        ("the weather", ()),
        ("", ()),
    ],
)
def test_categories_of_a_phrase(phrase, categories):
    assert categories_of(phrase) == categories


def test_every_category_and_synonym_is_found_in_both_numbers():
    for category, names in SYNONYMS.items():
        for name in (category, *names):
            assert category in categories_of(f"there is a {name}"), name
            for plural in plurals(name):
                assert category in categories_of(plural), plural


def test_singular_and_plural_are_told_apart():
    found = {
        word: coco_lexicon().find(words_of(word))[0][2]
        for word in ("dog", "dogs", "sheep", "benches", "ponies")
    }
    assert {word: (noun.singular, noun.plural) for word, noun in found.items()} == {
        "dog": (True, False),
        "dogs": (False, True),
        "sheep": (True, True),
        "benches": (False, True),
        "ponies": (False, True),
    }


def test_categories_are_those_of_coco():
    """The sample's annotation file names all 80."""
    file = Path(__file__).parent.parent / "annotate" / "data" / "instances.json"
    assert set(SYNONYMS) == {category["name"] for category in json.loads(file.read_text())["categories"]}


def test_unknown_categories_are_known_by_their_own_name():
    found = Lexicon(["wheel barrow"]).find(words_of("Two wheel barrows and a dog"))
    assert [(start, end, noun.categories) for start, end, noun in found] == [(1, 3, ("wheel barrow",))]
