"""Every sentence about a scene, checked word by word against the boxes of its things by rules of its own."""

import dataclasses
import re

import numpy as np
import PIL.Image
import pytest

from lgjax.data.drawings import classes
from lgjax.data.scene_text import SORTS, View, article, description, records
from lgjax.data.scenes import Scene, SceneConfig, compose
from lgjax.text.conversation import GROUNDING_SUFFIX

COUNT = 250
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
BY_NAME = {kind.name: kind for kind in classes()}
BY_PLURAL = {kind.plural: kind for kind in classes()}
SIDES = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1)}
WORDS = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}
COLOURS = {"red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey"}


@pytest.fixture(scope="module")
def told():
    out = []
    for i in range(COUNT):
        rng = np.random.default_rng([9, i])
        scene = compose(rng, SceneConfig(), ("train", "train", "combinations", "styles")[i % 4])
        out.append((scene, records(scene, rng, str(i))))
    return out


def named(scene, name: str) -> list[int]:
    return [i for i, thing in enumerate(scene.things) if thing.kind.name == name]


def away(scene, a: int, b: int, side: str) -> float:
    """How far a is on that side of b, in parts of the picture."""
    axis, sign = SIDES[side]
    boxes = [scene.things[i].box for i in (a, b)]
    middles = [(box[axis] + box[axis + 2]) / 2 / scene.image.width for box in boxes]
    return sign * (middles[0] - middles[1])


def fits(scene, words: str) -> list[int]:
    """The things that words such as "a big red dog" or "the two dogs" can mean."""
    words = re.sub(r"^(an?|the|all the|one) ", "", words[0].lower() + words[1:]) if words else words
    first, _, rest = words.partition(" ")
    if first in NUMBERS and first != "one":
        plural = max((p for p in BY_PLURAL if rest == p or rest.endswith(f" {p}")), key=len)
        found = named(scene, BY_PLURAL[plural].name)
        assert len(found) == NUMBERS[first], words
        return [i for i in found if all_adjectives(scene, i, rest[: -len(plural)].split())]
    for plural, kind in BY_PLURAL.items():
        if words == plural and kind.name != plural:
            return named(scene, kind.name)
    name = max((n for n in BY_NAME if words == n or words.endswith(f" {n}")), key=len)
    found = named(scene, name)
    return [i for i in found if all_adjectives(scene, i, words[: -len(name)].split())]


def all_adjectives(scene, index: int, words: list[str]) -> bool:
    others = [i for i in named(scene, scene.things[index].kind.name) if i != index]
    length = scene.things[index].length
    for word in words:
        if word in COLOURS:
            good = scene.things[index].colour == word
        else:
            ratios = [length / scene.things[i].length for i in others]
            good = {"big": all(r > 1.5 for r in ratios), "small": all(r < 0.67 for r in ratios)}[word]
        if not good:
            return False
    return True


def placed(scene, index: int, words: str) -> bool:
    """Whether "on the left", "at the top right" or "in the middle" is plainly so."""
    box, size = scene.things[index].box, scene.image.width
    x, y = (box[0] + box[2]) / 2 / size, (box[1] + box[3]) / 2 / size
    parts = set(re.sub("^(on|at|in) the ", "", words).split())
    assert parts <= {"left", "right", "top", "bottom", "middle"}
    good = {"left": x < 0.4, "right": x > 0.6, "top": y < 0.4, "bottom": y > 0.6}
    return all(good.get(part, abs(x - 0.5) < 0.1 and abs(y - 0.5) < 0.1) for part in parts)


def stacked(scene, a: int, b: int) -> bool:
    """Whether one thing is rather before or behind the other."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (scene.things[i].box for i in (a, b))
    shared = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    return shared > 0.4 * min((ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0))


@pytest.mark.parametrize(
    ("there", "hidden"),
    [
        ("hamburger", ("tomato", "piece of cheese", "onion", "sandwich")),
        ("keyboard", ("key", "laptop")),
        ("rocket", ("fire", "flying saucer")),
        ("snowman", ("carrot", "top hat")),
        ("birthday cake", ("candle", "strawberry", "cupcake")),
        ("fire truck", ("ladder", "car", "ambulance")),
        ("teddy bear", ("bear",)),
    ],
)
def test_nobody_denies_what_a_drawing_shows(there, hidden):
    thing = compose(np.random.default_rng(0), SceneConfig(max_things=1)).things[0]
    scene = Scene(PIL.Image.new("RGB", (128, 128)), (dataclasses.replace(thing, kind=BY_NAME[there]),))
    absent = {kind.name for kind in View(scene).absent()}
    assert not absent & {there, *hidden} and len(absent) > 150


def test_phrases_name_their_things(told):
    seen = 0
    for scene, made in told:
        for sort in ("description", "questions", "prompts"):
            for phrase in made[sort].phrases:
                words = made[sort].turns[phrase.turn].text[slice(*phrase.span)]
                found = set(fits(scene, words))
                # "a dog is to the left of the cat" may be said with another dog elsewhere
                some = words.lower().startswith(("a ", "an ")) and sort != "description"
                assert set(phrase.objects) <= found if some else set(phrase.objects) == found, words
                seen += 1
    assert seen > COUNT


def test_descriptions_name_everything_once(told):
    for scene, made in told:
        record = made["description"]
        words = record.turns[1].text
        if record.phrases:
            numbers = [i for phrase in record.phrases for i in phrase.objects]
            assert sorted(numbers) == list(range(len(scene.things))), words
        else:
            assert not record.turns[0].text.endswith(GROUNDING_SUFFIX)
        for a, side, b in re.findall(
            r"(An? [^.]*?) is (to the left of|to the right of|above|below) (an? [^.]*?)\.", words
        ):
            (i,), (j,) = fits(scene, a), fits(scene, b)
            others = [abs(away(scene, i, j, other)) for other in SIDES if SIDES[other][0] != SIDES[side][0]]
            assert away(scene, i, j, side) > 0.149 and away(scene, i, j, side) > max(others), words
            assert not stacked(scene, i, j), words
        for a, where in re.findall(r"(An? [^.]*?) is ((?:on|at|in) the [a-z ]+)\.", words):
            (i,) = fits(scene, a)
            assert placed(scene, i, where), words


def check_answer(scene, question: str, answer: str) -> str:
    """Hold an answer to the scene; returns the kind of question."""
    question = question.removesuffix(f" {GROUNDING_SUFFIX}")
    groups = {thing.kind.group for thing in scene.things}
    if match := re.fullmatch(r"How many (.*) are there\?", question):
        kind = BY_PLURAL[match[1]]
        count = len(named(scene, kind.name))
        if count == 0:
            assert kind.group not in groups
            assert answer == f"There is no {kind.name} in the picture."
            return "count none"
        number = {v: k for k, v in NUMBERS.items()}[count]
        assert answer == (
            f"There is one {kind.name}." if count == 1 else f"There are {number} {kind.plural}."
        )
        return "count"
    if match := re.fullmatch(r"Is there an? (.*) in the picture\?", question):
        kind = BY_NAME[match[1]]
        if answer.startswith("No"):
            assert kind.group not in groups and answer == f"No, there is no {kind.name} in the picture."
            return "no"
        assert sorted(fits(scene, re.fullmatch(r"Yes, there (?:is|are) (.*)\.", answer)[1])) == named(
            scene, kind.name
        )
        return "yes"
    if match := re.fullmatch(r"Where is the (.*)\?", question):
        (i,) = named(scene, match[1])
        found = re.fullmatch(rf"The {match[1]} is (.*?) the ((?!left of|right of).*)\.", answer)
        if found and found[1] in SIDES:
            (j,) = named(scene, found[2])
            assert away(scene, i, j, found[1]) > 0.149
            return "where beside"
        where = re.fullmatch(rf"The {match[1]} is (.*)\.", answer)[1]
        assert placed(scene, i, where)
        return "where"
    if match := re.fullmatch(r"What is (.*?) the ((?!left of|right of).*)\?", question):
        side, name = match[1], match[2]
        (j,) = named(scene, name)
        others = [i for i in range(len(scene.things)) if i != j and away(scene, i, j, side) > 0.03]
        (i,) = others
        assert away(scene, i, j, side) > 0.149
        words = f"{article(scene.things[i].kind.name)} is {side} the {name}."
        assert answer == words[0].upper() + words[1:]
        return "which"
    if match := re.fullmatch(r"What colour is the (.*)\?", question):
        (i,) = named(scene, match[1])
        assert answer == f"The {match[1]} is {scene.things[i].colour}."
        return "colour"
    raise AssertionError(question)


def test_answers_are_true(told):
    seen = set()
    for scene, made in told:
        turns = made["questions"].turns
        asked = [turn.text for turn in turns[::2]]
        assert len(set(asked)) == len(asked)
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            seen.add(check_answer(scene, question.text, answer.text))
    assert seen == {"count", "count none", "yes", "no", "where", "where beside", "which", "colour"}


def test_yes_and_no_are_true(told):
    seen = []
    for scene, made in told:
        turns = made["presence"].turns
        assert len(turns) == 6
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            seen.append(check_answer(scene, question.text, answer.text))
    assert set(seen) == {"yes", "no"} and 0.3 < seen.count("yes") / len(seen) < 0.7


def test_expressions_fit_their_things_alone(told):
    for scene, made in told:
        for expression in made["referring"].expressions:
            for text in expression.texts:
                words, _, where = text.partition(" on the ")
                words, _, at = words.partition(" at the ")
                words = words.removesuffix(" in the middle")
                found = fits(scene, words)
                if where or at:
                    if len(found) == 1:
                        assert placed(scene, found[0], f"on the {where or at}"), text
                    else:
                        side = {
                            "left": "to the left of",
                            "right": "to the right of",
                            "top": "above",
                            "bottom": "below",
                        }
                        mine = [
                            i
                            for i in found
                            if all(away(scene, i, j, side[where or at]) > 0.1 for j in found if j != i)
                        ]
                        assert len(found) == 2
                        found = mine
                assert sorted(found) == sorted(expression.objects), text


def test_prompts_are_answered_about_their_thing(told):
    for scene, made in told:
        record = made["prompts"]
        for number, region in enumerate(record.regions):
            question, answer = record.turns[2 * number].text, record.turns[2 * number + 1].text
            question = question.removesuffix(f" {GROUNDING_SUFFIX}")
            assert question.count("<obj>") == 1 and " <obj> " in question and region.turn == 2 * number
            thing = scene.things[region.object]
            if question.startswith("What colour"):
                assert answer == f"It is {thing.colour}."
            elif match := re.fullmatch(r"What is (.*) the object <obj> \?", question):
                if match[1] not in SIDES:
                    raise AssertionError(question)
                (i,) = [
                    i
                    for i in range(len(scene.things))
                    if i != region.object and away(scene, i, region.object, match[1]) > 0.03
                ]
                words = article(scene.things[i].kind.name)
                assert answer == words[0].upper() + words[1:] + "."
            else:
                assert answer == f"It is {article(thing.kind.name)}."


def test_marks_are_answered_about_their_thing(told):
    for scene, made in told:
        record = made["marks"]
        assert record.marks == tuple(range(len(scene.things))) and not record.phrases
        for question, answer in zip(record.turns[::2], record.turns[1::2], strict=True):
            if match := re.fullmatch(r"Which mark is on the (.*)\?", question.text):
                (i,) = named(scene, match[1])
                assert answer.text == f"The {match[1]} is <{i + 1}>."
            else:
                (k,) = re.findall(r"<(\d+)>", question.text)
                assert answer.text == f"It is {article(scene.things[int(k) - 1].kind.name)}."
        text = made["marked description"].turns[1].text
        assert sorted(map(int, re.findall(r"<(\d+)>", text))) == list(range(1, len(scene.things) + 1))


def test_sorts_are_all_made(told):
    assert all(set(made) == set(SORTS) for _, made in told)


@pytest.mark.parametrize(
    ("word", "want"),
    [
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("T-shirt", "a T-shirt"),
        ("orange crab", "an orange crab"),
    ],
)
def test_articles(word, want):
    assert article(word) == want


def test_descriptions_begin_with_what_shows_most_of_itself():
    for index in range(30):
        scene = compose(np.random.default_rng([11, index]), SceneConfig())
        view = View(scene)
        areas = [sum(scene.things[i].mask.sum() for i in numbers) for numbers in view.groups.values()]
        assert areas == sorted(areas, reverse=True)
        told = description(view, np.random.default_rng(index))
        first = next(part for part in told.answer if not isinstance(part, str))
        assert scene.things[first[1][0]].kind.name == next(iter(view.groups))
