"""Which classes of things a text mentions, by words.

Source: the synonym idea of CHAIR, spec/evaluation.md 6.2; the words are those of `lgjax.eval.coco_words`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from lgjax.eval.coco_words import GROUPS, NOUN_ONLY, OTHER_THINGS, WORDS

_TOKEN = re.compile(r"[^\W_]+")
_COLOURED = {"is", "are", "was", "were", "in", "bright", "dark", "light", "pale", "very", "and"}  # ... orange
_LINKS = {"and", "or", "of", "a", "an", "the", "his", "her", "their", "some", "two", "three", "several"}
_FOLLOWERS = _LINKS | {
    *(
        "on",
        "in",
        "at",
        "by",
        "with",
        "from",
        "to",
        "for",
        "near",
        "next",
        "under",
        "over",
        "behind",
        "beside",
    ),
    *(
        "is",
        "are",
        "was",
        "were",
        "that",
        "which",
        "while",
        "as",
        "lies",
        "lying",
        "sits",
        "sitting",
        "placed",
    ),
}


@dataclasses.dataclass(frozen=True)
class Mention:
    """Words that name one class, or a group of classes any of which may be meant.

    first, last: numbers of its words in the text, last exclusive; possessive: "the man's" of "the man's hat".
    """

    classes: tuple[str, ...]
    first: int
    last: int
    possessive: bool


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """Words, singular and plural, split at blanks -> the classes they may mean; none for other things."""

    entries: Mapping[tuple[str, ...], tuple[str, ...]]

    @classmethod
    def of(cls, categories: Iterable[str], *, groups: bool = False) -> Lexicon:
        """The words for these classes: COCO's have synonyms, others just their names.

        groups: also words such as "vehicle", which may mean any class of a group.
        """
        categories = list(categories)
        entries = {form: () for form in _forms(OTHER_THINGS)}
        if groups:
            for words, members in GROUPS.items():
                known = tuple(name for name in members.split(", ") if name in categories)
                entries |= {form: known for form in _forms(words) if known}
        for name in categories:
            entries |= {form: (name,) for form in _forms(WORDS.get(name.lower(), ""))}
        # a class's own name goes before another class's synonym
        return cls(entries | {form: (name,) for name in categories for form in _forms(name.lower())})

    def mentions(self, text: str) -> list[Mention]:
        """All mentions in reading order; of words that overlap the longest from the left are one mention."""
        tokens = list(_TOKEN.finditer(text.lower()))
        words = [token.group() for token in tokens]
        longest = max(map(len, self.entries), default=0)
        found: list[Mention] = []
        first = 0
        while first < len(words):
            last = next(
                (end for end in range(first + longest, first, -1) if tuple(words[first:end]) in self.entries),
                0,
            )
            last = min(last, len(words))
            classes = self.entries.get(tuple(words[first:last]), ())
            if classes and not (last - first == 1 and _is_adjective(words, first)):
                possessive = bool(re.match(r"['’](?:s\b|(?=\s))", text[tokens[last - 1].end() :].lower()))
                found.append(Mention(classes, first, last, possessive))
            first = max(last, first + 1)
        return found

    def meant(self, phrase: str) -> set[str]:
        """The classes that a noun phrase itself is about: its first mention, and those that belong to it.

        "a man on a horse" is about the man, "a man's horse" about the horse, "a man and a horse" about both,
        "a bowl of oranges" about either.
        """
        words = [token.group() for token in _TOKEN.finditer(phrase.lower())]
        mentions = self.mentions(phrase)
        head = [m for m in mentions if not m.possessive][:1] or mentions[:1]
        for mention in mentions:
            if not head or mention.first < head[-1].last:
                continue
            between = words[head[-1].last : mention.first]
            if not between:  # a compound: "kitchen table chairs"
                head[-1] = mention
            elif _LINKS.issuperset(between):
                head.append(mention)
        return {name for mention in head for name in mention.classes}


def _is_adjective(words: list[str], index: int) -> bool:
    """Whether a word that is also an adjective is one here: "an orange shirt", "the shirt is orange"."""
    if words[index] not in NOUN_ONLY:
        return False
    followed = index + 1 < len(words) and words[index + 1] not in _FOLLOWERS
    return followed or (index > 0 and words[index - 1] in _COLOURED)


def _forms(words: str) -> list[tuple[str, ...]]:
    """Singular and plural of the words of a table, each split into its parts."""
    pairs = [word.partition("/") for word in words.split(", ") if word]
    forms = [form for one, _, many in pairs for form in (one, many or _plural(one))]
    return [tuple(_TOKEN.findall(form)) for form in forms]


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word if word in ("skis", "scissors") else word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"
