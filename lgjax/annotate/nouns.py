"""Noun phrases that name things of known categories, found by word lists: no grammar, no network.

A mention is a name with the words in front of it that belong to it ("two small dogs", "a group of people"),
and what these and the words behind it say of number, side and size. No mention is what is only said not to be
there or to be like something, what is asked for ("how many dogs"), some of several ("one of the dogs"), and a
name that is part of another one ("a bus stop").
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from lgjax.text.coco_names import Lexicon, Noun, Word, words_of
from lgjax.text.counts import COUNTS, count_of

Side = Literal["left", "right", "middle"]
Size = Literal["large", "small"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SIDES: dict[str, Side] = {
    **dict.fromkeys(_words("left leftmost left-hand"), "left"),
    **dict.fromkeys(_words("right rightmost right-hand"), "right"),
    **dict.fromkeys(_words("middle center centre central"), "middle"),
}
_ABSOLUTE = _words("large big tall small little tiny")
_SIZES: dict[str, Size] = {
    **dict.fromkeys(_words("large larger largest big bigger biggest tall taller tallest"), "large"),
    **dict.fromkeys(_words("small smaller smallest little tiny"), "small"),
    **dict.fromkeys(_words("foreground closest nearest"), "large"),
    **dict.fromkeys(_words("background farthest"), "small"),
}
_NEW = _words("a an another")
_SEVERAL = _words("some several many few various multiple numerous other all more different")
_DEFINITE = _words("the this that these those his her its their my your our each every")
_DETERMINERS = _NEW | _SEVERAL | _DEFINITE | COUNTS.keys() - _words("couple pair single")
_SETS = _words(
    "group groups bunch bunches number lot lots fleet herd flock row rows line variety collection team crowd "
    "couple pair pile stack set"
)
_COLOURS = _words("red green blue yellow black white brown grey gray orange pink purple beige tan golden")
_ADJECTIVES = (
    _COLOURS
    | _SIZES.keys()
    | _words(
        "young old older elderly adult male female wooden metal stone glass plastic different identical "
        "closed open empty full parked"
    )
)
# words that end a phrase, and verbs that may follow a name at once
_FUNCTION = _words(
    """
    of in on at by to from for with without and or but nor as than then while next near behind beside
    between under over above below along across around through into onto off out up down inside outside
    against among amid amidst after before during about toward towards past atop beneath like likely unlike
    if because so also very just only too together alone visible present nearby available able ready full
    filled topped paired aboard asleep awake is are was were be been being am has have had do does did can
    could will would should may might must not no any that which who whom whose where when there here it he
    she they we you i him them me us himself herself itself themselves what how why either neither both set
    sit stand lie lay wear hold ride play walk eat look seem appear watch surround fly get rest lean run
    wait face follow carry use swim graze gather adjust
    """
)
# nouns that look like verbs behind a name: "bus stops", "car seats"
_PARTS = _words("signs lights toys seats tracks parts doors wheels shops stops tires tops legs")
# names that are verbs behind a person: "a man skis"
_VERBS = _words("skis cooks trains bats")
_UNREAL = _words("poster posters painting paintings statue statues sculpture sculptures drawing sign signs")
_SOME = _words("one some none most either neither")
_FURTHEST = 6  # words in front of a name


@dataclasses.dataclass(frozen=True)
class Mention:
    """A noun phrase at characters [start, end); `head`: the words of its name.

    count: how many it says; several: it says more than one without a number; new: its article is "a" or
    "another"; crowd: it says "crowd"; compared: it says which of several by size or depth ("the larger dog").
    """

    start: int
    end: int
    head: str
    noun: Noun
    count: int | None
    several: bool
    new: bool
    crowd: bool
    side: Side | None
    size: Size | None
    compared: bool


def side_of(words: Sequence[str]) -> Side | None:
    """The side that a phrase says."""
    return next((_SIDES[word] for word in words if word in _SIDES), None)


def mentions(text: str, lexicon: Lexicon) -> list[Mention]:
    """The noun phrases of a text that name things, in reading order and without overlaps."""
    words = words_of(text)
    found, last = [], 0
    for start, end, noun in lexicon.find(words):
        if _is_verb(text, words, start, noun, lexicon) or _is_part(text, words, end, noun, lexicon):
            continue
        first = _first_word(text, words, start, last)
        if not _is_absent(text, words, first):
            found.append(_mention(words, first, start, end, noun))
            last = end
    return found


def _adjacent(text: str, words: Sequence[Word], at: int) -> bool:
    """Whether only white space stands between word `at` and the one before it."""
    return 0 < at < len(words) and not text[words[at - 1].end : words[at].start].strip()


def _is_verb(text: str, words: Sequence[Word], start: int, noun: Noun, lexicon: Lexicon) -> bool:
    """Whether "to" or a person makes a verb of the name: "to train", "a man skis", but not "next to dogs"."""
    if _is_done(text, words, start, lexicon):
        return True
    if not start or words[start - 1].text != "to" or noun.plural:
        return False
    return start < 2 or words[start - 2].text not in ("next", "close")


def _is_done(text: str, words: Sequence[Word], at: int, lexicon: Lexicon) -> bool:
    """Whether word `at` says what a single person before it does."""
    if not _adjacent(text, words, at) or words[at].text not in _VERBS:
        return False
    before = lexicon.at(words, at - 1)
    return before is not None and before[0].singular and before[0].categories == ("person",)


def _is_part(text: str, words: Sequence[Word], end: int, noun: Noun, lexicon: Lexicon) -> bool:
    """Whether the name before word `end` belongs to a longer one: "a bus stop", "jumbo jet airplanes"."""
    if not _adjacent(text, words, end):
        return False
    if lexicon.at(words, end):
        return not _is_done(text, words, end, lexicon)
    after = words[end].text
    if noun.plural or after in _FUNCTION | _DETERMINERS | _SETS or after in _SIDES:
        return False
    is_verb = re.search(r"(ing|ed|ly)$", after) or (after.endswith("s") and after not in _PARTS)
    return not is_verb


def _first_word(text: str, words: Sequence[Word], start: int, last: int) -> int:
    """The first word of the phrase whose name begins at word `start`; it lies at or behind word `last`.

    With an article or number all words in between belong to it, else only known adjectives.
    """
    first = start
    for at in range(start - 1, max(last, start - _FURTHEST) - 1, -1):
        word = words[at].text
        if not _adjacent(text, words, at + 1):
            break
        if words[first].text in _DETERMINERS and word not in _DETERMINERS and word != "of":
            break  # what stands in front of an article belongs to another phrase
        if word in _DETERMINERS:
            if words[first].text in _NEW:
                break
            first = at
        elif word == "of":
            if at > last and words[at - 1].text in _SETS and first == at + 1:
                return _first_word(text, words, at - 1, last)
            break
        elif word == "and" and words[at - 1].text in _COLOURS and words[at + 1].text in _COLOURS:
            continue
        elif word in _FUNCTION or word.endswith("ing"):
            break
        elif word in _ADJECTIVES or word in COUNTS or (word in _SETS and first == start):
            first = at if first == at + 1 or word in _COLOURS else first
    return first


def _is_absent(text: str, words: Sequence[Word], first: int) -> bool:
    """Whether the words in front ask for a thing or deny it, or say that something is like it or shows it."""
    near = 0 if not _adjacent(text, words, first) else 1 if not _adjacent(text, words, first - 1) else 2
    before = [word.text for word in words[first - near : first]]
    if any(word == "not" or word.endswith("n't") for word in before):
        return True
    if before[-1:] and before[-1] in ("no", "without", "like", "any", "how"):
        return True
    return before[-1:] == ["of"] and before[0] in _UNREAL | _SOME


def _mention(words: Sequence[Word], first: int, start: int, end: int, noun: Noun) -> Mention:
    inside = [word.text for word in words[first:start]]
    told = [*inside, *_words_behind(words, end)]
    count = count_of([*inside, *(word.text for word in words[start:end])])
    several = noun.plural and (not noun.singular or bool((_SEVERAL | _SETS) & set(inside)))
    return Mention(
        start=words[first].start,
        end=words[end - 1].end,
        head=" ".join(word.text for word in words[start:end]),
        noun=noun,
        count=count or (None if several else 1),
        several=several and not count,
        new=bool(_NEW & set(inside[:1]) or "one" in inside) and not several,
        crowd="crowd" in inside,
        side=side_of(told),
        size=next((_SIZES[word] for word in told if word in _SIZES), None),
        compared=bool((_SIZES.keys() - _ABSOLUTE) & set(told)),
    )


def _words_behind(words: Sequence[Word], end: int) -> list[str]:
    """The word that tells in "on the left", "in the foreground", right behind a name."""
    behind = [word.text for word in words[end : end + 4]]
    if len(behind) < 3 or behind[0] not in ("on", "in", "to", "at") or behind[1] != "the":
        return []
    return [behind[2]] if behind[3:4] != ["of"] else []
