"""Phrases for which nothing was found in the picture: marked in the text, or taken out of it.

Taking a phrase out mends the grammar around it by rules for English: lists close up, "on the ..." goes with
its phrase, a sentence that says nothing else goes whole, and what cannot be mended is told anew as "There is
...". Other phrases always keep their words. Source: spec/evaluation.md 6.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

NOT_FOUND = " [not found]"
Span = tuple[int, int]
_FIRST = 0xE000  # while a sentence is mended each phrase is one character of Unicode's private use area
_LAST = 0xF8FF
_SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s|$)|$)", re.DOTALL)
_PLACES = (
    *("to the left of", "to the right of", "on the left of", "on the right of", "on the left side of"),
    *("on the right side of", "in front of", "on top of", "next to", "close to", "in the middle of"),
    *(
        "at the edge of",
        "along with",
        "together with",
        "on",
        "in",
        "at",
        "by",
        "with",
        "near",
        "above",
        "below",
    ),
    *("under", "underneath", "beneath", "behind", "beside", "before", "against", "along", "across", "around"),
    *("between", "inside", "outside", "over", "through", "toward", "towards", "into", "onto", "from", "of"),
)
_PLACE = rf"(?:{'|'.join(sorted(_PLACES, key=len, reverse=True))})"
_LINK = rf"(?:(?:\w+ing )?{_PLACE}|\w{{2,}}ing)"  # between a phrase and what it is beside, or does
_DANGLING = re.compile(rf"(?:\b(?:is|are|was|were|be|and|or|the|a|an|to|{_PLACE})|,)[.!?]*$")
_SINGULAR = {"a", "an", "one", "another", "this", "that"}
_PLURAL = {"two", "three", "four", "five", "six", "some", "several", "many", "both", "these", "those", "all"}
_SMALL = _SINGULAR | _PLURAL | {"the", "his", "her", "its", "their"}
_AGREE = {"are": "is", "were": "was", "have": "has"}


def flag(text: str, spans: Sequence[Span], lost: Collection[int]) -> tuple[str, list[Span]]:
    """Write `NOT_FOUND` behind the phrases with the numbers `lost`; returns the text and all spans in it."""
    ends = sorted({spans[number][1] for number in lost if spans[number][1] > spans[number][0]})
    out, last = "", 0
    for end in ends:
        out += text[last:end] + NOT_FOUND
        last = end
    out += text[last:]

    def moved(place: int, inside: bool) -> int:
        return place + len(NOT_FOUND) * sum(end < place or (end == place and not inside) for end in ends)

    return out, [(moved(start, False), moved(max(start, end), end > start)) for start, end in spans]


def drop(text: str, spans: Sequence[Span], lost: Collection[int]) -> tuple[str, list[Span | None]]:
    """Take the phrases with the numbers `lost` out of a text.

    Returns the text and the span of each phrase in it, None for those that are gone. Where phrases overlap
    they stay together: all go with the longest or none. A text in which nothing is lost does not change.
    """
    outer = [
        number
        for number, (start, end) in enumerate(spans)
        if end > start and not any(_within((start, end), number, other, k) for k, other in enumerate(spans))
    ]
    gone = [number for number in outer if number in set(lost)]
    taken = any(_FIRST <= ord(character) <= _LAST for character in text)
    if not gone or taken or len(outer) > _LAST - _FIRST:
        return text, [
            None if n in set(lost) and end > start else (start, end) for n, (start, end) in enumerate(spans)
        ]
    outer.sort(key=lambda number: spans[number])
    code = {number: chr(_FIRST + place) for place, number in enumerate(outer)}
    coded, last = "", 0
    for number in outer:
        coded += text[last : spans[number][0]] + code[number]
        last = spans[number][1]
    coded += text[last:]
    out = _mend_all(
        coded, {code[number] for number in gone}, lambda c: _words(text, spans[outer[ord(c) - _FIRST]])
    )
    return _expand(out, text, spans, outer, code)


def _within(span: Span, number: int, other: Span, k: int) -> bool:
    """Whether a phrase is part of another; of two equal ones the first is the whole."""
    if k == number or other[1] <= other[0]:
        return False
    overlap = max(span[0], other[0]) < min(span[1], other[1])
    return overlap and (span[0] - span[1], number) > (other[0] - other[1], k)


def _words(text: str, span: Span) -> str:
    return text[slice(*span)]


def _expand(
    coded: str, text: str, spans: Sequence[Span], outer: Sequence[int], code: dict[int, str]
) -> tuple[str, list[Span | None]]:
    """Put the words of the phrases back, and find every phrase in the new text."""
    number_of = {character: number for number, character in code.items()}
    out = ""
    begins: dict[int, int] = {}
    for character in coded:
        if (number := number_of.get(character)) is None:
            out += character
            continue
        words = _words(text, spans[number])
        begins[number] = len(out)
        if not out.rstrip() or out.rstrip()[-1] in ".!?":
            words = words[0].upper() + words[1:]
        elif words.split()[0].lower() in _SMALL:
            words = words[0].lower() + words[1:]
        out += words
    found: list[Span | None] = []
    for start, end in spans:
        whole = next((n for n in outer if spans[n][0] <= start and end <= spans[n][1] and end > start), None)
        if whole is None or whole not in begins:
            found.append(
                None if end > start or whole is not None else (min(start, len(out)), min(start, len(out)))
            )
            continue
        shift = begins[whole] - spans[whole][0]
        found.append((start + shift, end + shift))
    return out, found


def _mend_all(coded: str, gone: Collection[str], words: Callable[[str], str]) -> str:
    """The sentences without the characters `gone`; what stands between two sentences goes with the second."""
    out, last = "", 0
    for match in _SENTENCE.finditer(coded):
        between, sentence = coded[last : match.start()], match.group()
        last = match.end()
        phrases = [c for c in sentence if _FIRST <= ord(c) <= _LAST]
        kept = [c for c in phrases if c not in gone]
        if phrases and not kept:
            continue
        mended = sentence if kept == phrases else _mend(sentence, gone, kept, words)
        out += (between if out else "") + mended
    return out


def _mend(sentence: str, gone: Collection[str], kept: Sequence[str], words: Callable[[str], str]) -> str:
    one, lost = f"[{chr(_FIRST)}-{chr(_LAST)}]", f"[{''.join(gone)}]"
    mended = sentence
    if not re.match(r"there (?:is|are)\b", sentence, re.IGNORECASE):
        mended = re.sub(rf"{one}(?:(?:, and |, or |, | and | or ){one})+", lambda m: _list(m, gone), mended)
        mended = re.sub(rf"^({one}) (are|were|have)\b", lambda m: _agreeing(m, words), mended)
        mended = re.sub(rf"(?<={one}),? {_LINK} {lost}(?=[\s.,;!?]|$)", "", mended)
        mended = re.sub(rf",? {_PLACE} {lost}(?=\s*(?:[.,;!?]|$)| and | while | {_PLACE}\b)", "", mended)
    if any(character in gone for character in mended) or _DANGLING.search(mended):
        return f"There {_is(words(kept[0]))} {_joined(kept, ' and ')}."
    return mended


def _list(match: re.Match[str], gone: Collection[str]) -> str:
    """A list without what is gone; its last link stays. One of which nothing is left shrinks to one item."""
    items = [c for c in match.group() if _FIRST <= ord(c) <= _LAST]
    kept = [item for item in items if item not in gone]
    if len(kept) == len(items):
        return match.group()
    return _joined(kept or items[:1], " or " if " or " in match.group() else " and ")


def _joined(items: Sequence[str], link: str) -> str:
    return link.join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _agreeing(match: re.Match[str], words: Callable[[str], str]) -> str:
    """The verb in the singular behind a single thing."""
    phrase, verb = match.groups()
    return f"{phrase} {_AGREE[verb] if _is(words(phrase)) == 'is' else verb}"


def _is(phrase: str) -> str:
    """ "is" or "are", by the first word or else the last."""
    first, *_, last = [*phrase.lower().split(), ""] if " " not in phrase.strip() else phrase.lower().split()
    if first in _SINGULAR:
        return "is"
    return "are" if first in _PLURAL or (last.endswith("s") and not last.endswith("ss")) else "is"
