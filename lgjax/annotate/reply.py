"""The written form of links, "(a black car) [10.car]": how it is made, read, and held to its text.

Only pairs of round brackets and labels count; other brackets belong to the text.
Source: spec/training_and_data.md 9.1, 9.3.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from lgjax.annotate.nouns import side_of
from lgjax.annotate.task import Instance, Link, Task
from lgjax.text.coco_names import words_of
from lgjax.text.counts import count_of

SIMILARITY = 0.98  # least, of the text without markup to the text that was given
MAX_WORDS = 12
_PAIR = re.compile(r"\(([^()]*)\)\s*\[\s*(\d+\s*\.\s*[^\[\],]+(?:,\s*\d+\s*\.\s*[^\[\],]+)*)\]")
_LABEL = re.compile(r"(\d+)\s*\.\s*(.+)")
_LEFTOVER = re.compile(r"\[\s*\d+\s*\.")


def write_links(task: Task, links: Sequence[Link]) -> str:
    """The text with its links written into it."""
    pieces, last = [], 0
    for start, end, instances in links:
        labels = ", ".join(f"{i + 1}.{task.instances[i].category}" for i in instances)
        pieces += [task.text[last:start], f"({task.text[start:end]}) [{labels}]"]
        last = end
    return "".join([*pieces, task.text[last:]])


def read_links(task: Task, answer: str) -> tuple[Link, ...]:
    """The links that an answer gives to the text, each held to the instances.

    Crowds are left out where the phrase names a single thing; a text that was changed a little is aligned.

    Raises:
        ValueError: why the answer cannot be taken; in words that also tell its author.
    """
    plain, pairs = _split(answer)
    if _LEFTOVER.search(plain) and not _LEFTOVER.search(task.text):
        raise ValueError("brackets are nested or not in pairs of (phrase) [number.class]")
    align = _alignment(plain, task.text)
    links = []
    for start, end, labels in pairs:
        place = align(start, end)
        phrase = plain[start:end].strip()
        if not phrase or place is None:
            raise ValueError(
                "a phrase is empty" if not phrase else f"the phrase '{phrase}' is not in the text"
            )
        if len(phrase.split()) > MAX_WORDS:
            raise ValueError(f"a phrase has more than {MAX_WORDS} words")
        chosen = _instances(labels, task.instances)
        if kept := _fitting(phrase, chosen, task.instances):
            links.append(Link(*place, kept))
    return tuple(links)


def without_links(answer: str) -> str:
    """The text without the markup of its links."""
    return _split(answer)[0]


def _split(answer: str) -> tuple[str, list[tuple[int, int, str]]]:
    """The answer without its markup, and (start, end, labels) of each phrase in it."""
    plain, last, pairs = "", 0, []
    for match in _PAIR.finditer(answer):
        plain += answer[last : match.start()]
        pairs.append((len(plain), len(plain) + len(match[1]), match[2]))
        plain += match[1]
        last = match.end()
    return plain + answer[last:], pairs


def _alignment(plain: str, text: str):
    """A function from [start, end) of `plain` to the same words in `text`, None where they changed.

    White space does not count.

    Raises:
        ValueError: the two are not similar enough.
    """
    ours, theirs = _squeeze(text), _squeeze(plain)
    ours_text, theirs_text = ("".join(char for _, char in side) for side in (ours, theirs))
    if ours_text == theirs_text:
        blocks = [(0, 0, len(ours))]
    else:
        matcher = difflib.SequenceMatcher(None, theirs_text, ours_text, autojunk=False)
        if (ratio := matcher.ratio()) < SIMILARITY:
            raise ValueError(f"the text was changed (similarity {ratio:.2f})")
        blocks = matcher.get_matching_blocks()
    number = {position: k for k, (position, _) in enumerate(theirs)}

    def align(start: int, end: int) -> tuple[int, int] | None:
        inside = [number[i] for i in range(start, end) if i in number]
        for begin, target, length in blocks:
            if inside and begin <= inside[0] and inside[-1] < begin + length:
                shift = target - begin
                return ours[inside[0] + shift][0], ours[inside[-1] + shift][0] + 1
        return None

    return align


def _squeeze(text: str) -> list[tuple[int, str]]:
    return [(i, char) for i, char in enumerate(text) if not char.isspace()]


def _instances(labels: str, instances: Sequence[Instance]) -> tuple[int, ...]:
    chosen = []
    for label in labels.split(","):
        match = _LABEL.fullmatch(label.strip())
        number = int(match[1]) if match else 0
        if not match or not 1 <= number <= len(instances):
            raise ValueError(f"there is no instance '{label.strip()}'")
        if match[2].strip().lower() != instances[number - 1].category.lower():
            name = instances[number - 1].category
            raise ValueError(f"instance {number} is of class '{name}', not '{match[2].strip()}'")
        chosen.append(number - 1)
    return tuple(dict.fromkeys(chosen))


def _fitting(phrase: str, chosen: tuple[int, ...], instances: Sequence[Instance]) -> tuple[int, ...]:
    """The instances without crowds that one thing cannot be.

    Raises:
        ValueError: the phrase says a number or a side that these boxes contradict.
    """
    words = [word.text for word in words_of(phrase)]
    single = tuple(i for i in chosen if not instances[i].crowd)
    kept = single if single and len(single) < len(chosen) and len(single) == 1 else chosen
    count = count_of(words)
    if count and len(kept) != count and not any(instances[i].crowd for i in kept):
        raise ValueError(f"'{phrase}' says {count}, but has {len(kept)} instances")
    if (side := side_of(words)) in ("left", "right") and len(kept) == 1:
        centre = instances[kept[0]].centre
        others = [one.centre for one in instances if one.category == instances[kept[0]].category]
        if len(others) > 1 and centre == (max(others) if side == "left" else min(others)):
            raise ValueError(f"'{phrase}' is the one farthest from the {side}")
    return kept
