"""Which classes of things a text mentions, by words.

The names of COCO's classes are those of `lgjax.text.coco_names`; here stands what reading a whole sentence
needs besides: names that are part of another name, words for groups, what a phrase is about.
Source: the synonym idea of CHAIR, spec/evaluation.md 6.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from lgjax.text import coco_names
from lgjax.text.coco_names import Word, words_of

GROUPS: dict[str, tuple[str, ...]] = {
    "vehicle": ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    "van": ("car", "truck"),
    "animal": ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    "pet": ("bird", "cat", "dog"),
    "bag": ("backpack", "handbag", "suitcase"),
    "food": (
        "banana",
        "apple",
        "sandwich",
        "orange",
        "broccoli",
        "carrot",
        "hot dog",
        "pizza",
        "donut",
        "cake",
    ),
    "fruit": ("banana", "apple", "orange"),
    "vegetable": ("broccoli", "carrot"),
    "furniture": ("bench", "chair", "couch", "bed", "dining table"),
    "seat": ("bench", "chair", "couch"),
    "desk": ("dining table",),
    "appliance": ("microwave", "oven", "toaster", "sink", "refrigerator"),
    "utensil": ("fork", "knife", "spoon"),
    "cutlery": ("fork", "knife", "spoon"),
    "silverware": ("fork", "knife", "spoon"),
    "drink": ("bottle", "wine glass", "cup"),
    "dish": ("bowl",),
    "board": ("surfboard", "snowboard", "skateboard"),
    "toy": ("teddy bear",),
    "stuffed animal": ("teddy bear",),
    "flower": ("potted plant",),
    "screen": ("tv", "laptop"),
    "device": ("laptop", "tv", "cell phone", "remote", "keyboard", "mouse"),
    "couple": ("person",),
    "crowd": ("person",),
    "family": ("person",),
    "audience": ("person",),
}
"""Word -> the classes any of which it may mean; for judging a phrase, never for CHAIR."""

OTHER_THINGS: tuple[str, ...] = (
    *("train track", "train station", "bus stop", "bus station", "car park", "car seat", "toilet paper"),
    *("bird house", "bird feeder", "bird bath", "dog house", "dog food", "cat food", "cat bed", "dog bed"),
    *("horse carriage", "home plate", "table tennis", "table cloth", "table lamp", "boat dock", "boat house"),
    *("book shelf", "book case", "phone booth", "clock tower", "tennis court", "ski slope", "ski resort"),
    *(
        "ski lift",
        "ski pole",
        "baseball cap",
        "mouse pad",
        "cake pan",
        "pizza box",
        "pizza cutter",
        "bed sheet",
    ),
    *("bed frame", "bottle cap", "banana tree", "orange juice", "orange tree", "apple tree", "apple juice"),
    *("cup holder", "chair lift", "oven mitt", "knife block", "laptop bag", "flower bed", "power plant"),
    *("couple of", "crowd of", "family of", "range of", "computer desk", "kite string", "tie dye"),
)
"""Names of which a part is the name of a class, which they do not mention."""

_ADJECTIVES = {"orange", "remote"}  # names of classes only where no other word follows
_COLOURED = {"is", "are", "was", "were", "in", "bright", "dark", "light", "pale", "very"}  # "is orange"
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
    """A name at words [first, last) of a text, and the classes it may mean."""

    classes: tuple[str, ...]
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """Finds mentions of classes. names: what is looked for; classes: what each of them may mean."""

    names: coco_names.Lexicon
    classes: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, categories: Iterable[str], *, groups: bool = False) -> Lexicon:
        """The words for these classes, with other names of those that are COCO's.

        groups: also words such as "vehicle", which may mean any class of a group.
        """
        categories = tuple(categories)
        classes: dict[str, tuple[str, ...]] = {name: () for name in OTHER_THINGS}
        if groups:
            classes |= {
                word: tuple(name for name in members if name in categories)
                for word, members in GROUPS.items()
            }
        classes |= {name: (name,) for name in categories}
        return cls(coco_names.Lexicon(classes), classes)

    def mentions(self, text: str) -> list[Mention]:
        """All mentions in reading order; a possessor ("the man's hat") is none."""
        return self._mentions(words_of(text))

    def _mentions(self, words: list[Word]) -> list[Mention]:
        found = []
        for first, last, noun in self.names.find(words):
            classes = dict.fromkeys(name for known in noun.categories for name in self.classes[known])
            if classes and not (last - first == 1 and _is_adjective(words, first)):
                found.append(Mention(tuple(classes), first, last))
        return found

    def meant(self, phrase: str) -> set[str]:
        """The classes that a noun phrase itself is about: its first mention, and those that belong to it.

        "a man on a horse" is about the man, "a man's horse" about the horse, "a man and a horse" about both,
        "a bowl of oranges" about either.
        """
        words = words_of(phrase)
        head: list[Mention] = []
        for mention in self._mentions(words):
            between = {word.text for word in words[head[-1].last : mention.first]} if head else set()
            if head and mention.first == head[-1].last:
                head[-1] = mention  # of a compound the last word counts
            elif between <= _LINKS:
                head.append(mention)
            else:
                break
        return {name for mention in head for name in mention.classes}


def _is_adjective(words: list[Word], index: int) -> bool:
    """Whether a word that is also an adjective is one here: "an orange shirt", "the shirt is orange"."""
    if words[index].text not in _ADJECTIVES:
        return False
    followed = index + 1 < len(words) and words[index + 1].text not in _FOLLOWERS
    return followed or (index > 0 and words[index - 1].text in _COLOURED)
