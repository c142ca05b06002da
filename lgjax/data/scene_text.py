"""What can truly be said about a composed scene: descriptions, questions, expressions, prompts and marks.

A sentence is only made where nobody could object: one thing is left of another by a clear margin, "the dog"
is the only dog, nothing is asked of a class that may be mixed up with one in the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lgjax.data import masks
from lgjax.data.drawings import ThingClass, classes
from lgjax.data.marks import marked
from lgjax.data.scenes import Scene, Thing
from lgjax.data.schema import Expression, Kind, Object, Phrase, Record, Region, Turn
from lgjax.text.conversation import GROUNDING_SUFFIX

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
CLEAR = 0.15  # of the picture: centres this far apart are clearly beside or above each other
_FAINT = 0.03  # centres closer than this are level
_UNGROUNDED = 0.15  # share of questions that do not ask for grounding
_POINTED_UNGROUNDED = 0.5  # the same of questions that point at a thing
_BIGGER = 1.6  # ratio of lengths from which one is "big" and the other "small"
_DESCRIBE = (
    "Describe the picture.",
    "What do you see?",
    "What is in the picture?",
    "Tell me what the picture shows.",
    "List what is there.",
)
_NAME_IT = ("What is the object {it} ?", "Name the object {it} .", "Which thing is the object {it} ?")

Sort = Literal["description", "questions", "referring", "prompts", "marks", "marked description", "presence"]
SORTS: tuple[Sort, ...] = (
    *("description", "questions", "referring", "prompts"),
    *("marks", "marked description", "presence"),
)
Part = str | tuple[str, tuple[int, ...]]  # text, or a phrase with the things it names


class Said(NamedTuple):
    """A question and its answer in parts; `regions`: the thing of each "<obj>" of the question."""

    question: str
    answer: tuple[Part, ...]
    regions: tuple[int, ...] = ()


def article(words: str) -> str:
    """The words with "a" or "an" in front."""
    an = words[0].lower() in "aeiou" and not words.startswith("unicorn")
    return f"{'an' if an else 'a'} {words}"


class View:
    """A scene as one talks about it: things by class, what shows most of itself first, and who is where."""

    def __init__(self, scene: Scene) -> None:
        self.things = scene.things
        groups: dict[str, list[int]] = {}
        for index, thing in enumerate(scene.things):
            groups.setdefault(thing.kind.name, []).append(index)
        areas = {name: sum(int(self.things[i].mask.sum()) for i in own) for name, own in groups.items()}
        self.groups = dict(sorted(groups.items(), key=lambda group: -areas[group[0]]))
        self.single = [numbers[0] for numbers in self.groups.values() if len(numbers) == 1]

    def kind(self, name: str) -> ThingClass:
        """The class with this name, of which something is in the picture."""
        return self.things[self.groups[name][0]].kind

    def absent(self) -> list[ThingClass]:
        """Classes that are not in the picture, nor anything that may be mixed up with them or shows them."""
        groups = {group for thing in self.things for group in (thing.kind.group, *thing.kind.shows)}
        return [kind for kind in classes() if kind.group not in groups]

    def side(self, a: int, b: int) -> str | None:
        """Where thing a is, seen from b: "left", "right", "above" or "below" if that is clear."""
        (ax, ay), (bx, by) = self.things[a].centre, self.things[b].centre
        dx, dy = ax - bx, ay - by
        if max(abs(dx), abs(dy)) < CLEAR or 0.8 < abs(dx) / max(abs(dy), 1e-9) < 1.25:
            return None
        gap, shared = self._apart(a, b)
        if shared > 1 / 3:  # rather before or behind
            return None
        if abs(dx) > abs(dy):
            return "left" if dx < 0 else "right"
        return ("above" if dy < 0 else "below") if gap < _FAINT else None

    def _apart(self, a: int, b: int) -> tuple[float, float]:
        """The gap between two boxes across the picture, and the share of the smaller one that they share."""
        one, other = (self.things[i].box for i in (a, b))
        across, down = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
        smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
        return -across / self.things[a].mask.shape[1], max(across, 0) * max(down, 0) / smaller

    def only_one(self, side: str, of: int) -> int | None:
        """The thing that is clearly on a side of another, if no other thing could be meant."""
        found = [i for i in range(len(self.things)) if i != of and self.side(i, of) == side]
        axis, sign = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}[side]
        away = [sign * (thing.centre[axis] - self.things[of].centre[axis]) for thing in self.things]
        perhaps = [i for i, far in enumerate(away) if i != of and far > _FAINT]
        return found[0] if len(found) == 1 and perhaps == found else None

    def place(self, index: int) -> str | None:
        """Words for where a thing is in the picture, None where they would be arguable."""
        x, y = self.things[index].centre
        across = "left" if x < 0.3 else "right" if x > 0.7 else "middle" if 0.42 < x < 0.58 else None
        down = "top" if y < 0.3 else "bottom" if y > 0.7 else "middle" if 0.42 < y < 0.58 else None
        if across is None or down is None:
            return None
        if (across, down) == ("middle", "middle"):
            return "in the middle"
        if down == "middle":
            return f"on the {across}"
        return f"at the {down}" if across == "middle" else f"at the {down} {across}"

    def sizes(self, name: str) -> tuple[int, int] | None:
        """The big and the small one of two things of a class, if they differ clearly."""
        numbers = self.groups[name]
        if len(numbers) != 2:
            return None
        big, small = sorted(numbers, key=lambda i: -self.things[i].length)
        clear = self.things[big].length >= _BIGGER * self.things[small].length
        seen = self.things[big].mask.sum() > self.things[small].mask.sum()
        return (big, small) if clear and seen else None

    def colours(self, name: str) -> list[str] | None:
        """The colours of all things of a class, None where one has no word."""
        found = [self.things[i].colour for i in self.groups[name]]
        return None if None in found else [colour for colour in found if colour]

    def name(self, index: int) -> str:
        """The class of a thing, with its colour where painted things could have another."""
        thing = self.things[index]
        return f"{thing.colour} {thing.kind.name}" if thing.colour and _painted(thing) else thing.kind.name


def _painted(thing: Thing) -> bool:
    return thing.kind.painted.get(thing.style, False)


def side_words(side: str) -> str:
    """ "to the left of", "above" and so on."""
    return f"to the {side} of" if side in ("left", "right") else side


def noun_phrases(view: View, name: str, rng: np.random.Generator) -> list[tuple[str, tuple[int, ...]]]:
    """Phrases that name all things of a class: "two dogs", or "a big dog" and "a small dog"."""
    numbers = view.groups[name]
    if len(numbers) == 1:
        return [(article(view.name(numbers[0])), (numbers[0],))]
    colours, sizes = view.colours(name), view.sizes(name)
    if colours and len(set(colours)) == len(colours) and rng.random() < 0.7:
        return [(article(f"{colour} {name}"), (i,)) for colour, i in zip(colours, numbers, strict=True)]
    if sizes and rng.random() < 0.7:
        return [(article(f"{word} {name}"), (i,)) for word, i in zip(("big", "small"), sizes, strict=True)]
    shared = (
        f"{colours[0]} " if colours and len(set(colours)) == 1 and _painted(view.things[numbers[0]]) else ""
    )
    return [(f"{NUMBERS[len(numbers)]} {shared}{view.kind(name).plural}", tuple(numbers))]


def _listed(phrases: Sequence[Part]) -> list[Part]:
    """ "a, b and c"."""
    out: list[Part] = []
    for number, phrase in enumerate(phrases):
        if number:
            out.append(" and " if number == len(phrases) - 1 else ", ")
        out.append(phrase)
    return out


def _capital(parts: Sequence[Part]) -> tuple[Part, ...]:
    first, *rest = parts
    if isinstance(first, str):
        return (first[0].upper() + first[1:], *rest)
    return ((first[0][0].upper() + first[0][1:], first[1]), *rest)


def description(view: View, rng: np.random.Generator) -> Said:
    """Everything in the picture, each thing named once, the classes that show most of themselves first."""
    names = list(view.groups)
    sentences: list[tuple[Part, ...]] = []
    if rng.random() < 0.4:
        phrases = [phrase for name in names for phrase in noun_phrases(view, name, rng)]
        start = ("The picture shows ", "I see ")[int(rng.integers(2))]
        sentences.append((start, *_listed(phrases), "."))
        names = []
    while names:
        name = names.pop(0)
        phrases = noun_phrases(view, name, rng)
        alone = len(view.groups[name]) == 1
        index = view.groups[name][0]
        partner = names[0] if names and len(view.groups[names[0]]) == 1 else None
        side = view.side(index, view.groups[partner][0]) if alone and partner else None
        if side and partner and rng.random() < 0.6:
            names.pop(0)
            other = noun_phrases(view, partner, rng)[0]
            sentences.append(_capital([phrases[0], f" is {side_words(side)} ", other, "."]))
        elif alone and (place := view.place(index)) and rng.random() < 0.6:
            sentences.append(_capital([phrases[0], f" is {place}."]))
        else:
            several = not phrases[0][0].startswith(("a ", "an "))
            sentences.append((f"There {'are' if several else 'is'} ", *_listed(phrases), "."))
    parts = [part for sentence in sentences for part in (*sentence, " ")][:-1]
    return Said(_DESCRIBE[int(rng.integers(len(_DESCRIBE)))], tuple(parts))


def how_many(view: View, rng: np.random.Generator) -> Said:
    """ "How many dogs are there?" """
    name = _draw(list(view.groups), rng)
    kind, numbers = view.kind(name), tuple(view.groups[name])
    words = f"{NUMBERS[len(numbers)]} {name if len(numbers) == 1 else kind.plural}"
    answer = (f"There {'is' if len(numbers) == 1 else 'are'} ", (words, numbers), ".")
    return Said(f"How many {kind.plural} are there?", answer)


def how_many_absent(view: View, rng: np.random.Generator) -> Said:
    """The same of a class that is not there."""
    kind = _draw(view.absent(), rng)
    return Said(f"How many {kind.plural} are there?", (f"There is no {kind.name} in the picture.",))


def is_there(view: View, rng: np.random.Generator) -> Said:
    """ "Is there a dog?" with "yes"."""
    name = _draw(list(view.groups), rng)
    numbers = tuple(view.groups[name])
    words = article(name) if len(numbers) == 1 else f"{NUMBERS[len(numbers)]} {view.kind(name).plural}"
    answer = (f"Yes, there {'is' if len(numbers) == 1 else 'are'} ", (words, numbers), ".")
    return Said(f"Is there {article(name)} in the picture?", answer)


def is_there_not(view: View, rng: np.random.Generator) -> Said:
    """ "Is there a dog?" with "no"."""
    kind = _draw(view.absent(), rng)
    return Said(
        f"Is there {article(kind.name)} in the picture?", (f"No, there is no {kind.name} in the picture.",)
    )


def where_is(view: View, rng: np.random.Generator) -> Said | None:
    """ "Where is the dog?", of the only one."""
    if not view.single:
        return None
    index = _draw(view.single, rng)
    name = view.things[index].kind.name
    it = (f"The {name}", (index,))
    others = [i for i in view.single if i != index and view.side(index, i)]
    place = view.place(index)
    if others and (place is None or rng.random() < 0.5):
        other = _draw(others, rng)
        there = (f"the {view.things[other].kind.name}", (other,))
        return Said(
            f"Where is the {name}?", (it, f" is {side_words(view.side(index, other) or '')} ", there, ".")
        )
    return Said(f"Where is the {name}?", (it, f" is {place}.")) if place else None


def which_side(view: View, rng: np.random.Generator) -> Said | None:
    """ "What is to the left of the dog?", where only one thing can be meant."""
    found = [
        (index, other, side)
        for index in view.single
        for side in ("left", "right", "above", "below")
        if (other := view.only_one(side, index)) is not None
    ]
    if not found:
        return None
    index, other, side = found[int(rng.integers(len(found)))]
    thing = article(view.things[other].kind.name)
    it = f"the {view.things[index].kind.name}"
    answer = _capital([(thing, (other,)), f" is {side_words(side)} ", (it, (index,)), "."])
    return Said(f"What is {side_words(side)} {it}?", answer)


def which_colour(view: View, rng: np.random.Generator) -> Said | None:
    """ "What colour is the car?", of the only one, where one word fits."""
    known = [i for i in view.single if view.things[i].colour]
    if not known:
        return None
    index = _draw(known, rng)
    thing = view.things[index]
    name = thing.kind.name
    return Said(f"What colour is the {name}?", ((f"The {name}", (index,)), f" is {thing.colour}."))


QUESTIONS: tuple[Callable[[View, np.random.Generator], Said | None], ...] = (
    how_many,
    how_many_absent,
    is_there,
    is_there_not,
    where_is,
    which_side,
    which_colour,
)


def questions(view: View, rng: np.random.Generator) -> list[Said]:
    """One to three different questions about the scene."""
    wanted = int(rng.integers(1, 3, endpoint=True))
    asked: list[Said] = []
    for i in rng.permutation(len(QUESTIONS)):
        if len(asked) < wanted and (said := QUESTIONS[i](view, rng)) is not None:
            asked.append(said)
    return asked


def presence(view: View, rng: np.random.Generator) -> list[Said]:
    """Three times whether something is there; about half of the things are."""
    return [(is_there, is_there_not)[int(rng.integers(2))](view, rng) for _ in range(3)]


def prompted(view: View, rng: np.random.Generator) -> list[Said]:
    """One to three questions that point at things."""
    asked: list[Said] = []
    count = min(int(rng.integers(1, 3, endpoint=True)), len(view.things))
    for index in rng.permutation(len(view.things))[:count].tolist():
        thing = view.things[index]
        sides = [s for s in ("left", "right", "above", "below") if view.only_one(s, index) is not None]
        choice = rng.random()
        if choice < 0.2 and thing.colour:
            said = Said("What colour is the object <obj> ?", (f"It is {thing.colour}.",), (index,))
        elif choice < 0.4 and sides:
            side = _draw(sides, rng)
            other = view.only_one(side, index)
            assert other is not None
            answer = _capital([(article(view.things[other].kind.name), (other,)), "."])
            said = Said(f"What is {side_words(side)} the object <obj> ?", answer, (index,))
        else:
            question = _draw(_NAME_IT, rng).format(it="<obj>")
            said = Said(question, ("It is ", (article(thing.kind.name), (index,)), "."), (index,))
        asked.append(said)
    return asked


def marked_questions(view: View, rng: np.random.Generator) -> list[Said]:
    """One to three questions about numbered marks; thing i has the mark i + 1."""
    asked: list[Said] = []
    count = min(int(rng.integers(1, 3, endpoint=True)), len(view.things))
    for index in rng.permutation(len(view.things))[:count].tolist():
        name, mark = view.things[index].kind.name, f"<{index + 1}>"
        if index in view.single and rng.random() < 0.4:
            asked.append(Said(f"Which mark is on the {name}?", (f"The {name} is {mark}.",)))
        else:
            asked.append(Said(_draw(_NAME_IT, rng).format(it=mark), (f"It is {article(name)}.",)))
    return asked


def expressions(view: View) -> tuple[Expression, ...]:
    """Texts that each name exactly one thing, or all things of a class."""
    out: list[Expression] = []
    for name, numbers in view.groups.items():
        if len(numbers) == 1:
            thing = view.things[numbers[0]]
            texts = [f"the {name}"]
            texts += [f"the {thing.colour} {name}"] if thing.colour else []
            texts += [f"the {name} {place}"] if (place := view.place(numbers[0])) else []
            out.append(Expression(texts=tuple(texts), objects=(numbers[0],)))
            continue
        every = f"the {NUMBERS[len(numbers)]} {view.kind(name).plural}"
        out.append(Expression(texts=(every, f"all the {view.kind(name).plural}"), objects=tuple(numbers)))
        for index in numbers:
            if texts := _telling_apart(view, name, index):
                out.append(Expression(texts=tuple(texts), objects=(index,)))
    return tuple(out)


def _telling_apart(view: View, name: str, index: int) -> list[str]:
    """Texts that fit one of several things of a class and no other."""
    texts = []
    colours, sizes = view.colours(name), view.sizes(name)
    colour = view.things[index].colour
    if colours and colour and colours.count(colour) == 1:
        texts.append(f"the {colour} {name}")
    if sizes:
        texts.append(f"the {'big' if sizes[0] == index else 'small'} {name}")
    numbers = view.groups[name]
    if len(numbers) == 2:
        other = numbers[0] if numbers[1] == index else numbers[1]
        words = {
            "left": "on the left",
            "right": "on the right",
            "above": "at the top",
            "below": "at the bottom",
        }
        if side := view.side(index, other):
            texts.append(f"the {name} {words[side]}")
    return texts


def _draw(items, rng: np.random.Generator):
    return items[int(rng.integers(len(items)))]


def records(
    scene: Scene, rng: np.random.Generator, name: str, sorts: Sequence[Sort] = SORTS
) -> dict[Sort, Record]:
    """What is said about a scene, one record of each sort, all with the id `name`.

    "description", "questions" and "presence" are grounded chat, "prompts" chat that points at things, "marks"
    and "marked description" chat about numbered marks. Each sort has random numbers of its own, whichever are
    asked for.
    """
    view = View(scene)
    own = dict(zip(SORTS, rng.spawn(len(SORTS)), strict=True))
    makers: dict[Sort, Callable[[np.random.Generator], Record]] = {
        "description": lambda rng: _chat(scene, name, [description(view, rng)], rng),
        "questions": lambda rng: _chat(scene, name, questions(view, rng), rng),
        "referring": lambda rng: _record(scene, name, "referring", expressions=expressions(view)),
        "prompts": lambda rng: _chat(scene, name, prompted(view, rng), rng),
        "marks": lambda rng: _marked_chat(scene, name, marked_questions(view, rng)),
        "marked description": lambda rng: marked(
            _chat(scene, name, [description(view, rng)], rng, always=True)
        ),
        "presence": lambda rng: _chat(scene, name, presence(view, rng), rng),
    }
    return {sort: makers[sort](own[sort]) for sort in sorts}


def _record(scene: Scene, name: str, kind: Kind, **fields) -> Record:
    objects = tuple(
        Object(box=thing.box, mask=masks.encode(thing.mask), name=thing.kind.name, id=index)
        for index, thing in enumerate(scene.things)
    )
    return Record(id=name, kind=kind, image=scene.image, size=scene.image.size, objects=objects, **fields)


def _chat(
    scene: Scene, name: str, rounds: Sequence[Said], rng: np.random.Generator, always: bool = False
) -> Record:
    """A grounded chat; some questions do not ask for grounding, and their answers have none."""
    turns: list[Turn] = []
    phrases: list[Phrase] = []
    regions: list[Region] = []
    for said in rounds:
        ask = always or rng.random() >= (_POINTED_UNGROUNDED if said.regions else _UNGROUNDED)
        regions += [Region(len(turns), index) for index in said.regions]
        turns.append(Turn("human", f"{said.question} {GROUNDING_SUFFIX}" if ask else said.question))
        text = ""
        for part in said.answer:
            words, numbers = (part, None) if isinstance(part, str) else part
            if numbers is not None and ask:
                phrases.append(
                    Phrase(turn=len(turns), span=(len(text), len(text) + len(words)), objects=numbers)
                )
            text += words
        turns.append(Turn("gpt", text))
    return _record(scene, name, "chat", turns=tuple(turns), phrases=tuple(phrases), regions=tuple(regions))


def _marked_chat(scene: Scene, name: str, rounds: Sequence[Said]) -> Record:
    turns = []
    for said in rounds:
        answer = "".join(part if isinstance(part, str) else part[0] for part in said.answer)
        turns += [Turn("human", said.question), Turn("gpt", answer)]
    return _record(scene, name, "chat", turns=tuple(turns), marks=tuple(range(len(scene.things))))
