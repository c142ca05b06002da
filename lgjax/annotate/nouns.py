"""Noun phrases that name things of known categories, found by word lists: no grammar, no network.

A mention is a name with the words in front of it that belong to it ("two small dogs", "a group of people"),
and what these and the words behind it say of number, side and size. What is only said not to be there, to be
like something, or that a name is part of another name ("a bus stop") is no mention.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from lgjax.text.coco_names import Lexicon, Noun, Word, words_of

Side = Literal["left", "right", "middle"]
Size = Literal["large", "small"]
COUNTS = {
    word: number
    for number, words in {
        1: ("one", "single"),
        2: ("two", "both", "couple", "pair", "2"),
        **{n: (word, str(n)) for n, word in enumerate("three four five six seven eight nine ten".split(), 3)},
    }.items()
    for word in words
}
_ARTICLES = {"a", "an", "another"}
_DEFINITE = {
    "the",
    "this",
    "that",
    "these",
    "those",
    "his",
    "her",
    "its",
    "their",
    "my",
    "your",
    "our",
    "each",
    "every",
}
_SEVERAL = {
    "some",
    "several",
    "many",
    "few",
    "various",
    "multiple",
    "numerous",
    "other",
    "all",
    "more",
    "different",
}
_DETERMINERS = _ARTICLES | _DEFINITE | _SEVERAL | COUNTS.keys() - {"couple", "pair", "single"}
_SETS = {
    *("group", "groups", "bunch", "number", "lot", "lots", "fleet", "herd", "flock", "row", "rows", "line"),
    *(
        "variety",
        "collection",
        "team",
        "crowd",
        "couple",
        "pair",
        "pile",
        "stack",
        "bunches",
        "set",
        "family",
    ),
}
_FUNCTION = {
    *"of in on at by to from for with without and or but nor as than then while near next behind beside between".split(),
    *"under over above below along across around through into onto off out up down inside outside against among".split(),
    *"after before during about toward towards is are was were be been being am has have had do does did can".split(),
    *"could will would should may might must not no that which who whom whose where when there here it he she".split(),
    *"they we you i him them me us himself herself itself themselves what how why if because so also very just".split(),
    *"only too together alone visible present nearby sits stands sit stand lie lies lay wear wears hold holds ride".split(),
    *"rides play plays walk walks eat eats look looks seem seems appear appears watch surround fly flies get gets".split(),
    *"set rest rests paired atop amid amidst beneath past like likely in-between either neither both each all".split(),
    *"inhales leads adjust adjusts topped full filled ready available able aboard asleep awake".split(),
}
_SIDES: dict[str, Side] = {
    **dict.fromkeys(("left", "leftmost", "left-hand"), "left"),
    **dict.fromkeys(("right", "rightmost", "right-hand"), "right"),
    **dict.fromkeys(("middle", "center", "centre", "central"), "middle"),
}
_SIZES: dict[str, Size] = {
    **dict.fromkeys(
        "large larger largest big bigger biggest closest nearest foreground tall taller tallest".split(),
        "large",
    ),
    **dict.fromkeys("small smaller smallest little tiny farthest background".split(), "small"),
}
_COMPARED = {"larger", "largest", "bigger", "biggest", "smaller", "smallest", "taller", "tallest"}
# no names of things, though they look like one
_UNREAL = {
    "poster",
    "posters",
    "painting",
    "paintings",
    "statue",
    "statues",
    "sculpture",
    "drawing",
    "sign",
    "signs",
}
_LINKING = {"of", "with", "in", "on", "for"}
_ADJECTIVE = re.compile(r"(?!.*ing$)[\w'-]+")
_FURTHEST = 6  # words in front of a name


@dataclasses.dataclass(frozen=True)
class Mention:
    """A noun phrase at characters [start, end); `head`: the words of its name.

    count: how many it says; several: it says more than one without a number; new: its article is "a" or
    "another"; crowd: it says "crowd"; compared: it says which of several by size ("the larger dog").
    """

    start: int
    end: int
    head: str
    noun: Noun
    count: int | None = None
    several: bool = False
    new: bool = False
    crowd: bool = False
    side: Side | None = None
    size: Size | None = None
    compared: bool = False


def mentions(text: str, lexicon: Lexicon) -> list[Mention]:
    """The noun phrases of a text that name things, in reading order."""
    words = words_of(text)
    found = []
    last = 0
    for start, end, noun in lexicon.find(words):
        if not _is_thing(text, words, start, end, noun):
            continue
        first = _first_word(text, words, start, last)
        if _is_absent(words, first):
            continue
        found.append(_mention(text, words, (first, start, end), noun))
        last = end
    return found


def _is_thing(text: str, words: Sequence[Word], start: int, end: int, noun: Noun) -> bool:
    """Whether the name stands for a thing, not in front of another noun, as a verb or as a possessor."""
    if start and words[start - 1].text == "to" and noun.singular and not noun.plural:
        return start > 1 and words[start - 2].text in ("next", "close")  # else "to train", "to cook"
    if end == len(words) or re.search(r"[^\s]", text[words[end - 1].end : words[end].start]):
        return True
    after = words[end].text
    if after in _FUNCTION | _DETERMINERS | _SETS or after in _SIDES or not noun.singular:
        return True
    return bool(re.search(r"(ing|ed|ly)$", after)) or (after.endswith("s") and after not in _PARTS)


_PARTS = {
    "signs",
    "lights",
    "toys",
    "seats",
    "tracks",
    "parts",
    "doors",
    "wheels",
    "stands",
    "shops",
    "stops",
    "glass",
}


def _first_word(text: str, words: Sequence[Word], start: int, last: int) -> int:
    """The first word of the phrase whose name begins at word `start`; it lies behind word `last`."""
    first, at = start, start - 1
    while at >= max(last, start - _FURTHEST) and not text[words[at].end : words[at + 1].start].strip():
        word = words[at].text
        if word in _DETERMINERS:
            first = at
            # "all the dogs", "these two dogs", "the three dogs"
            if word in COUNTS.keys() | _SEVERAL | _DEFINITE:
                at -= 1
                continue
            break
        if first < start and words[first].text in _DETERMINERS:
            break  # what stands in front of an article belongs to another phrase
        if word == "of" and at > last and words[at - 1].text in _SETS:
            return _first_word(text, words, at - 1, last)
        if word in _FUNCTION or not _ADJECTIVE.fullmatch(word):
            break
        if word in _SIZES or word in _COLOURS or word in COUNTS or word in _SETS and first < start:
            first = at
        at -= 1
    return first


_COLOURS = {
    *"red green blue yellow black white brown grey gray orange pink purple beige tan golden young old older".split(),
    *"wooden metal stone glass plastic young elderly male female different identical closed open".split(),
}


def _is_absent(words: Sequence[Word], first: int) -> bool:
    before = [word.text for word in words[max(0, first - 3) : first]]
    if before[-1:] and before[-1] in ("no", "without", "like", "any"):
        return True
    return len(before) > 1 and before[-1] == "of" and before[-2] in _UNREAL


def _mention(text: str, words: Sequence[Word], at: tuple[int, int, int], noun: Noun) -> Mention:
    first, start, end = at
    inside = [word.text for word in words[first:start]]
    behind = _words_behind(text, words, end)
    counts = [COUNTS[word] for word in inside if word in COUNTS]
    sets = any(word in _SETS and after == "of" for word, after in zip(inside, inside[1:], strict=False))
    singular = noun.singular and not (noun.plural and (sets or _SEVERAL & set(inside) or counts))
    sides = [_SIDES[word] for word in (*inside, *behind) if word in _SIDES]
    sizes = [_SIZES[word] for word in (*inside, *behind) if word in _SIZES]
    return Mention(
        start=words[first].start,
        end=words[end - 1].end,
        head=" ".join(word.text for word in words[start:end]),
        noun=noun,
        count=counts[0] if counts else None if not singular else 1,
        several=not singular and not counts,
        new=bool(inside) and (inside[0] in _ARTICLES and singular or "one" in inside),
        crowd="crowd" in inside,
        side=sides[0] if sides else None,
        size=sizes[0] if sizes else None,
        compared=bool(_COMPARED & set(inside)) or bool({"foreground", "background"} & set(behind)),
    )


def _words_behind(text: str, words: Sequence[Word], end: int) -> list[str]:
    """The words of "on the left", "in the foreground" directly behind a name."""
    behind = [word.text for word in words[end : end + 4]]
    if behind[:1] and behind[0] in ("on", "in", "to", "at") and behind[1:2] in (["the"], ["far"]):
        if behind[2:3] and (behind[2] in _SIDES or behind[2] in _SIZES) and behind[3:4] != ["of"]:
            return [behind[2]]
    return []
