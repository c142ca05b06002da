"""The offline annotator: names of categories, counts, sides and sizes against the instances of the picture.

It links a phrase only where the words leave no choice; what could mean one instance or another stays plain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lgjax.annotate.nouns import Mention, mentions
from lgjax.annotate.task import Instance, Link, Marked, Task
from lgjax.text.coco_names import SYNONYMS, Lexicon, coco_lexicon

VERSION = 1
DOMINANT = 3.0  # how many times larger the boxes are of what is meant than of what is not
PROMINENT = 0.005  # of the picture, the least box of what is meant where the words leave a choice
APART = 0.1  # of the picture's width, between the centres of "the left one" and the next


@dataclasses.dataclass(frozen=True)
class Matcher:
    """An `Annotator` without a network or a model."""

    @property
    def identity(self) -> dict[str, Any]:
        """Its name and version."""
        return {"annotator": "matcher", "version": VERSION}

    def annotate(self, tasks: Sequence[Task]) -> list[Marked]:
        """The links of each text."""
        return [Marked(links=match(task)) for task in tasks]


def match(task: Task) -> tuple[Link, ...]:
    """Tie the noun phrases of a text to instances."""
    found = mentions(task.text, _lexicon(task.instances))
    singular = {mention: _choose(mention, found, task.instances) for mention in found if not mention.several}
    links = []
    for mention in found:
        chosen = singular[mention] if not mention.several else _all_of(mention, singular, task.instances)
        if chosen:
            links.append(Link(mention.start, mention.end, tuple(chosen)))
    return tuple(links)


def _lexicon(instances: Sequence[Instance]) -> Lexicon:
    """Names of COCO, and of other categories that the picture has."""
    foreign = {one.category for one in instances} - SYNONYMS.keys()
    return Lexicon((*SYNONYMS, *sorted(foreign))) if foreign else coco_lexicon()


def _candidates(mention: Mention, instances: Sequence[Instance], *, crowd: bool = False) -> list[int]:
    categories = {one.category for one in instances} & set(mention.noun.categories)
    if len(categories) > 1:
        return []  # "a glass" where there are cups and wine glasses
    return [i for i, one in enumerate(instances) if one.category in categories and one.crowd == crowd]


def _choose(mention: Mention, found: Sequence[Mention], instances: Sequence[Instance]) -> list[int]:
    """The instances of a mention that says how many; none where it is not certain."""
    candidates = _candidates(mention, instances)
    count = mention.count or 1
    if count == 1 and len(candidates) > 1 and mention.side:
        return _at_side(mention, candidates, instances)
    others = _other_heads(mention, found)
    if len(candidates) == count:
        return [] if count == 1 and others else candidates
    if count > len(candidates) or others or (mention.size == "small" and not mention.compared):
        return []
    sign = 1 if mention.size == "small" and mention.compared else -1
    order = sorted(candidates, key=lambda i: sign * instances[i].area)
    larger, smaller = (instances[order[k]].area for k in (count - 1, count))
    if sign > 0:
        larger, smaller = smaller, larger
    return sorted(order[:count]) if larger > max(DOMINANT * smaller, PROMINENT) else []


def _other_heads(mention: Mention, found: Sequence[Mention]) -> set[str]:
    """By what other words the text brings in single things of the kind: "a boy" beside "a man"."""
    same = [other for other in found if set(other.noun.categories) & set(mention.noun.categories)]
    return {other.head for other in same if other.new} - {mention.head}


def _at_side(mention: Mention, candidates: Sequence[int], instances: Sequence[Instance]) -> list[int]:
    """The one at the side that the mention names, if it stands apart from the next."""
    order = sorted(candidates, key=lambda i: instances[i].centre)
    if mention.side == "middle":
        return [order[len(order) // 2]] if len(order) % 2 else []
    first, second = (order[0], order[1]) if mention.side == "left" else (order[-1], order[-2])
    return [first] if abs(instances[first].centre - instances[second].centre) > APART else []


def _all_of(
    mention: Mention, singular: Mapping[Mention, list[int]], instances: Sequence[Instance]
) -> list[int]:
    """All instances of a plural without a number, but for those that are named on their own."""
    crowds = _candidates(mention, instances, crowd=True)
    if mention.crowd and crowds:
        return crowds
    kind = set(mention.noun.categories)
    same = [other for other in singular if other.count == 1 and set(other.noun.categories) & kind]
    if any(not singular[other] for other in same):
        return []
    taken = {i for other in same for i in singular[other]}
    left = [i for i in sorted([*_candidates(mention, instances), *crowds]) if i not in taken]
    return left if len(left) > 1 or crowds else []
