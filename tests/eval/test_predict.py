"""Runs over many questions: kills, resumption, several processes, what is refused, and the same answers."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lgjax.data import masks
from lgjax.eval import predictions
from lgjax.eval.lines import SHARDS
from lgjax.eval.predict import RUN_FILE, predict
from lgjax.eval.questions import Question
from lgjax.infer.chat import GroundedChat
from lgjax.infer.regions import Box, Click
from tests.eval.told import Told
from tests.infer.model import GROUNDED, chat, picture

SETTINGS = {"checkpoint": "told", "threshold": 0.2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        PIL.Image.fromarray(picture(i, *[(90, 120), (130, 70), (90, 120)][i])).save(path)
    return paths


def questions(photos: list[Path], count: int) -> list[Question]:
    chosen = [photos[i % len(photos)] for i in range(count)]
    return [
        Question(id=i, image=path.name, path=path, text=f"What is {i}?", extra={"category": "conv"})
        for i, path in enumerate(chosen)
    ]


def run(asked, out: Path, told: GroundedChat | None = None, **changes) -> int:
    fields = {"settings": SETTINGS, "options": {}, "batch": 2, "shard": 4, **changes}
    return predict(lambda: told or Told(), asked, out, **fields)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_killed_processes_lose_nothing_and_repeat_nothing(photos, tmp_path):
    """Two processes are killed over and over at random moments; what comes out is an undisturbed run."""
    asked, dice = questions(photos, 90), random.Random(0)
    run(asked, tmp_path / "whole")
    out = tmp_path / "killed"
    context = multiprocessing.get_context("fork")  # the stand-in for a chat starts no threads
    kills = 0
    for _ in range(60):
        workers = [
            context.Process(target=run, args=(asked, out, Told(0.004)), kwargs={"process": (number, 2)})
            for number in range(2)
        ]
        for worker in workers:
            worker.start()
        time.sleep(dice.uniform(0.0, 0.08))
        for worker in workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, signal.SIGKILL)
                kills += 1
            worker.join()
        for path in out.glob(SHARDS):
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert kills > 10
    assert run(asked, out) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert [p.question_id for p in predictions.read(out)] == list(range(90))


def test_a_finished_run_needs_no_model(photos, tmp_path):
    asked, told = questions(photos, 6), Told()
    assert run(asked, tmp_path, told) == 0 and len(told.asked) == 6
    assert run(asked, tmp_path, told) == 0 and len(told.asked) == 6


def test_processes_share_the_shards(photos, tmp_path):
    asked = questions(photos, 14)
    first, second = Told(), Told()
    assert run(asked, tmp_path, first, process=(0, 2)) == 2
    assert run(asked, tmp_path, second, process=(1, 2)) == 0
    assert sorted(first.asked + second.asked) == sorted(question.text for question in asked)
    assert len(first.asked) == 8
    with pytest.raises(ValueError, match="process 2/2"):
        run(asked, tmp_path, process=(2, 2))


def test_predictions_hold_what_was_asked_and_found(photos, tmp_path):
    run(questions(photos, 5), tmp_path)
    found = predictions.read(tmp_path)
    pairs = predictions.match(found, questions(photos, 5))
    for question, prediction in pairs:
        assert prediction is not None
        assert prediction.settings == SETTINGS and prediction.extra == {"category": "conv"}
        width, height = PIL.Image.open(question.path).size
        assert prediction.size == (height, width)
        (want,) = Told().ask_batch([question.path], [question.text])
        assert prediction.record == want.record(question.id)
        (phrase,) = prediction.phrases
        np.testing.assert_allclose(phrase.boxes, want.phrases[0].boxes, atol=6e-4)
        np.testing.assert_array_equal(phrase.bitmaps(prediction.size), want.phrases[0].masks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {**SETTINGS, "threshold": 0.05}}, "begun with threshold 0.2, now it is 0.05"),
        ({"settings": {**SETTINGS, "queries": 50}}, "begun with queries null, now it is 50"),
        ({"count": 6}, "begun with 8 questions, and now 6"),
        ({"text": "Why?"}, "not the same"),
    ],
)
def test_a_folder_of_another_run_is_refused(photos, tmp_path, change, message):
    run(questions(photos, 8), tmp_path)
    before = contents(tmp_path)
    asked = questions(photos, change.pop("count", 8))
    if text := change.pop("text", None):
        asked[3] = dataclasses.replace(asked[3], text=text)
    with pytest.raises(ValueError, match=message):
        run(asked, tmp_path, **change)
    assert contents(tmp_path) == before


def test_the_size_of_batches_may_change(photos, tmp_path):
    asked = questions(photos, 9)
    run(asked, tmp_path / "one", shard=3)
    run(asked, tmp_path / "two", shard=3, process=(0, 2))
    run(asked, tmp_path / "two", shard=5, batch=7)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"path": Path("/nowhere/a.png")}, "question 1: image file '/nowhere/a.png' is not there"),
        ({"path": Path(__file__)}, "test_predict.py.* not a picture"),
        ({"id": 0}, "question 0 is asked twice"),
        ({"regions": (Click(500, 5),)}, "question 1: .*outside the picture"),
    ],
)
def test_bad_questions_are_refused_before_any_work(photos, tmp_path, question, message):
    asked = questions(photos, 4)
    asked[1] = dataclasses.replace(asked[1], **question)
    told = Told()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(asked, tmp_path / "out", told)
    assert not told.asked and not (tmp_path / "out").exists()


def test_damaged_and_foreign_folders_are_refused(photos, tmp_path):
    asked = questions(photos, 4)
    run(asked, tmp_path / "a")
    (tmp_path / "a" / RUN_FILE).write_text("[1]")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        run(asked, tmp_path / "a")
    (tmp_path / "a" / RUN_FILE).unlink()
    with pytest.raises(ValueError, match="no folder of predictions that was begun here"):
        run(asked, tmp_path / "a")


class Failing(GroundedChat):
    """The chat of the tests, whose machine goes down in its third batch."""

    def __init__(self) -> None:
        super().__init__(chat().model)
        self.batches = 0

    def ask_batch(self, *arguments, **options):
        self.batches += 1
        if self.batches == 3:
            raise RuntimeError("the machine went down")
        return super().ask_batch(*arguments, **options)


def test_the_model_gives_the_same_for_any_batch_and_after_a_failure(photos, tmp_path):
    """Questions of different lengths, pictures of different shapes, regions and forced answers, in batches
    of two and one at a time."""
    plain = questions(photos, 5)
    asked = [
        plain[0],
        dataclasses.replace(
            plain[1], text="Where is the object % , and what else is there?", regions=(Click(9, 9),)
        ),
        dataclasses.replace(plain[2], answer=GROUNDED),
        dataclasses.replace(plain[3], text="What is % ?", regions=(Box(5, 6, 60, 70),), answer=GROUNDED),
        plain[4],
    ]
    options = {"max_tokens": 12, "threshold": 0.02, "keep": 3}
    fields = {"options": options, "settings": options, "shard": 2}
    with pytest.raises(RuntimeError):
        run(asked, tmp_path / "two", Failing(), **fields)
    begun = contents(tmp_path / "two")
    assert SHARDS.replace("*", "00000") in begun and SHARDS.replace("*", "00002") not in begun
    run(asked, tmp_path / "two", chat(), **fields)
    run(asked, tmp_path / "whole", chat(), **fields)
    assert contents(tmp_path / "two") == contents(tmp_path / "whole")
    run(asked, tmp_path / "one", chat(), **{**fields, "batch": 1})
    both = predictions.read(tmp_path / "two"), predictions.read(tmp_path / "one")
    for a, b in zip(*both, strict=True):
        assert a.question_id == b.question_id and a.text == b.text
        for one, other in zip(a.phrases, b.phrases, strict=True):
            assert one.span == other.span and len(one.boxes) == len(other.boxes) <= 3
            np.testing.assert_allclose(one.boxes, other.boxes, atol=4e-3)
            np.testing.assert_allclose(one.scores, other.scores, atol=2e-6)
            for mask, same in zip(one.masks or (), other.masks or (), strict=True):
                size = (a.size[1], a.size[0])
                assert (masks.decode(mask, size) != masks.decode(same, size)).mean() < 1e-3
    assert [len(p.phrases) for p in both[0]][2:4] == [2, 2]
