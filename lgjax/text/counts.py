"""How many things a phrase says that it is about."""

from __future__ import annotations

from collections.abc import Sequence

from lgjax.text.coco_names import words_of

COUNTS: dict[str, int] = {
    **dict.fromkeys(("one", "single"), 1),
    **dict.fromkeys(("two", "both", "couple", "pair", "2"), 2),
    **{
        word: number
        for number, word in enumerate(("three", "four", "five", "six", "seven", "eight", "nine", "ten"), 3)
    },
    **{str(number): number for number in range(3, 21)},
}
_PAIRED = (
    *("scissors", "shears", "pliers", "skis", "gloves", "glasses", "sunglasses", "binoculars", "headphones"),
    *("jeans", "trousers", "pants", "shorts"),
)
_IN_FRONT = ("a", "the", "all", "these", "those", "his", "her", "its", "their", "my", "your", "our")


def count_of(words: Sequence[str]) -> int | None:
    """The first number that words in lower case say; "a pair of scissors" says none."""
    for word, of, what in zip(words, [*words[1:], ""], [*words[2:], "", ""], strict=False):
        if word in COUNTS and not (word == "pair" and of == "of" and what in _PAIRED):
            return COUNTS[word]
    return None


def number_of_things(phrase: str) -> int:
    """The number that a phrase begins with: 2 of "the two dogs" and "a pair of shoes", otherwise 1.

    A number further behind is of something else, as in "a man with two dogs".
    """
    words = [word.text for word in words_of(phrase)]
    while words and words[0] in _IN_FRONT:
        words.pop(0)
    # "a pair of ..." is three words
    return (count_of(words[:3]) or 1) if words and words[0] in COUNTS else 1
