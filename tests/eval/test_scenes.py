"""Scores on composed scenes: a perfect oracle reaches all of them, an empty or wrong one none."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.data import masks, scene_text
from lgjax.data.drawings import HUES, classes
from lgjax.data.scenes import SceneConfig
from lgjax.eval import report, scenes
from lgjax.eval.predictions import PhrasePrediction, Prediction
from lgjax.eval.scene_report import report_of
from lgjax.infer.regions import Box, Click

COUNT = 12
CONFIG = SceneConfig(size=96, backgrounds=("plain",))


@pytest.fixture(scope="module")
def held():
    return scenes.held_out("combinations", 3, COUNT, CONFIG)


def phrase_of(text: str, span: tuple[int, int], things, score: float = 0.9) -> PhrasePrediction:
    boxes = np.asarray([thing.box for thing in things], float).reshape(-1, 4)
    codes = tuple(masks.encode(thing.mask) for thing in things)
    return PhrasePrediction(text[slice(*span)], span, boxes, np.full(len(boxes), score), codes)


def prediction(text: str, phrases=()) -> Prediction:
    return Prediction("q", "a.png", (CONFIG.size, CONFIG.size), text, tuple(phrases), {"threshold": 0.2})


def told(scene, seed: int = 0) -> Prediction:
    """A description in the words of the data, grounded in the scene's own masks."""
    rng = np.random.default_rng(seed)
    said = scene_text.description(scene_text.View(scene), rng)
    text, phrases = "", []
    for part in said.answer:
        words, numbers = (part, None) if isinstance(part, str) else part
        if numbers is not None:
            phrases.append(((len(text), len(text) + len(words)), [scene.things[i] for i in numbers]))
        text += words
    return prediction(text, [phrase_of(text, span, things) for span, things in phrases])


def test_a_true_description_is_perfect_in_all_its_wordings(held):
    found = [scenes.score_description(one.scene, told(one.scene, seed)) for one in held for seed in range(5)]
    assert scenes.total(found) == (1, 1, 1, 1, 1)
    assert not any(one.wrong_names for one in found)


def test_nothing_said_finds_nothing(held):
    found = [scenes.score_description(one.scene, prediction("I see it.")) for one in held]
    assert scenes.total(found) == (0, 0, 0, None, 0)


def test_a_wrong_name_is_wrong_but_located(held):
    scene = held[0].scene
    other = next(kind.name for kind in scene_text.View(scene).absent())
    text = f"a {other}"
    found = scenes.score_description(scene, prediction(text, [phrase_of(text, (0, len(text)), scene.things)]))
    assert (found.right, found.located, found.boxes) == (0, len(scene.things), len(scene.things))
    assert found.wrong_names == (other,)


@given(st.integers(0, COUNT - 1), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_order_and_doubles(held, number, random):
    """The order of phrases changes nothing; a second box for the same thing costs precision alone."""
    scene = held[number].scene
    whole = told(scene)
    phrases = list(whole.phrases)
    kept = [phrase for phrase in phrases if random.random() < 0.6]
    some = scenes.score_description(scene, dataclasses.replace(whole, phrases=tuple(kept)))
    random.shuffle(kept)
    again = scenes.score_description(scene, dataclasses.replace(whole, phrases=tuple(kept)))
    assert (some.right, some.boxes, some.located) == (again.right, again.boxes, again.located)
    more = scenes.score_description(scene, dataclasses.replace(whole, phrases=(*kept, phrases[0])))
    assert more.right >= some.right and 0 <= some.f1 <= 1
    twice = scenes.score_description(scene, dataclasses.replace(whole, phrases=(*phrases, *phrases)))
    assert twice.right == twice.things == twice.boxes / 2


def test_as_many_pairs_as_there_can_be(held):
    """A box that fits two things leaves one of them to the box that fits no other."""
    scene = held[0].scene
    kind = scene.things[0].kind
    mask = np.zeros((CONFIG.size, CONFIG.size), bool)
    things = tuple(
        dataclasses.replace(scene.things[0], kind=kind, mask=mask, box=(0.0, 0.0, 30.0, height))
        for height in (20.0, 30.0)
    )
    boxes = np.asarray([[0, 0, 30, 29], [0, 0, 30, 50]], float)  # the first fits both, the second the second
    text = f"two {kind.plural}"
    phrase = PhrasePrediction(text, (0, len(text)), boxes, np.asarray([0.9, 0.8]))
    found = scenes.score_description(scene._replace(things=things), prediction(text, [phrase]))
    assert found.right == 2


def test_names_of_every_class_are_read():
    names = {kind.name for kind in classes()}
    for kind in classes():
        phrases = [scene_text.article(kind.name), f"the small {kind.name}", f"All the {kind.plural}"]
        # "a red apple" is a class of its own
        colours = [colour for colour in HUES if f"{colour} {kind.name}" not in names]
        phrases += [f"Two {colour} {kind.plural}" for colour in colours]
        phrases += [f"the {kind.name} to the left of the {other}" for other in ("dog", "orange")]
        assert {scenes.name_of(phrase) for phrase in phrases} == {kind.name}, phrases


def test_parts_of_words_are_no_names():
    assert scenes.name_of("a category") is None
    assert scenes.name_of("a police car") == "police car"
    assert scenes.names_in("A dog is to the left of two hot dogs.") == ["dog", "hot dog"]


def test_yes_and_no_are_read_from_the_data_own_answers(held):
    for one in held:
        view, rng = scene_text.View(one.scene), np.random.default_rng(0)
        for make, want in (
            (scene_text.is_there, True),
            (scene_text.how_many, True),
            (scene_text.is_there_not, False),
            (scene_text.how_many_absent, False),
        ):
            said = make(view, rng)
            text = "".join(part if isinstance(part, str) else part[0] for part in said.answer)
            assert scenes.says_yes(text) is want, text
    assert scenes.says_yes("") is None and scenes.says_yes("A dog.") is None


def test_questions_are_about_the_scene(held, tmp_path):
    for one in held:
        asked = scenes.questions_of(one, tmp_path)
        view = scene_text.View(one.scene)
        for question in (q for part in asked.values() for q in part):
            assert question.path.is_file() and question.image == question.path.name
        click, box, mark = asked["regions"]
        thing = one.scene.things[click.extra["thing"]]
        (point,), (corners,) = click.regions, box.regions
        assert isinstance(point, Click) and thing.mask[int(point.y), int(point.x)]
        assert isinstance(corners, Box)
        assert (corners.x0, corners.y0) == one.scene.things[box.extra["thing"]].box[:2]
        assert f"<{mark.extra['thing'] + 1}>" in mark.text
        present, absent = asked["presence"]
        assert present.extra["name"] in view.groups and absent.extra["name"] not in view.groups
        again = scenes.questions_of(one, tmp_path)
        assert again == asked


def oracle(held, folder) -> dict[scenes.Part, list]:
    """True answers to all parts."""
    answers: dict[scenes.Part, list] = {part: [] for part in scenes.PARTS}
    for one in held:
        for part, questions in scenes.questions_of(one, folder).items():
            for question in questions:
                if part == "descriptions":
                    said = told(one.scene)
                elif part == "expressions":
                    said = prediction(
                        "", [phrase_of("", (0, 0), [one.scene.things[question.extra["thing"]]])]
                    )
                elif part == "regions":
                    said = prediction(f"It is a {one.scene.things[question.extra['thing']].kind.name}.")
                else:
                    there = str(question.id).endswith("present")
                    said = prediction("Yes, there is one." if there else "No, there is none.")
                answers[part].append((question, said))
    return answers


def test_the_report_of_an_oracle(held, tmp_path):
    answers = oracle(held, tmp_path)
    made = report_of(held, answers, {"split": "combinations", "seed": 3}, 0.2)
    whole = made.tables[0].rows[0]
    assert whole == ("all", COUNT, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert sum(int(row[1] or 0) for row in made.tables[0].rows[1:]) == COUNT
    shares = {label: value for label, value, _ in made.tables[1].rows}
    wrong = {"things that are not there: claimed", "descriptions that name what is not there"}
    assert all(value == (0 if label in wrong else 1) for label, value in shares.items()), shares
    assert made.tables[2].rows[0] == ("0.2", 1.0, 1.0, 1.0, 1.0, 1.0)  # the oracle is 0.9 sure of all
    assert made.tables[2].rows[-1] == ("0.9", 0.0, 0.0, 0.0, None, 0.0)
    assert made.tables[3].rows[0] == ("0.2", 1.0, 1.0, None, None)
    report.write(made, tmp_path / "out")
    kept = json.loads((tmp_path / "out/scores.json").read_text())
    assert kept["tables"]["Descriptions"][0]["F1"] == 1 and kept["settings"]["threshold"] == 0.2
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/jpeg") == 10 and "<script" not in page and "http" not in page
    text = (tmp_path / "out/report.md").read_text()
    assert "| all | 12 | 1.000 |" in text and "worst/10.png" in text
    assert (tmp_path / "out/worst/10.png").is_file()


def test_the_report_of_silence(held, tmp_path):
    answers: dict[scenes.Part, list] = {
        part: [(question, prediction("")) for question, _ in pairs]
        for part, pairs in oracle(held, tmp_path).items()
    }
    made = report_of(held, answers, {"split": "combinations"}, 0.2)
    assert made.tables[0].rows[0] == ("all", COUNT, 0.0, 0.0, 0.0, None, 0.0)
    assert all(value == 0 for _, value, _ in made.tables[1].rows)
