"""Predictions for many questions, shard by shard: a killed run goes on without a picture lost or done twice.

The questions are cut into shards in their order; process I of N makes the shards I, I + N, ... and a shard
has its name when it is complete, so any number of processes may be killed and started again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgjax.data import masks
from lgjax.eval.lines import write_whole
from lgjax.eval.predictions import PhrasePrediction, Prediction, to_line
from lgjax.eval.questions import Question, check
from lgjax.infer.answer import Answer
from lgjax.infer.chat import GroundedChat

SHARD = 32  # questions
RUN_FILE = "run.json"


def predict(
    load: Callable[[], GroundedChat],
    questions: Sequence[Question],
    out: Path,
    *,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    batch: int = 8,
    shard: int = SHARD,
    process: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Answer questions into `out`/shard-*.jsonl; returns how many shards other processes have yet to make.

    load: gives the model, called when there is something left to do; settings: kept with every prediction,
    the same for the whole folder; options: the fields of `lgjax.infer.request.Options`; process: (I, N);
    progress: called with how many questions of this process are done, and of how many.

    Raises:
        FileNotFoundError, ValueError: a picture that is not there or cannot be read, a question that makes no
            sense, a repeated id, or a folder of other questions or settings.
    """
    number, count = process
    if not 0 <= number < count or min(batch, shard) < 1:
        raise ValueError(f"process {number}/{count} must be 0 to {count - 1}, batch {batch} at least 1")
    check(questions)
    shard = _begin(out, questions, settings, shard)
    shards = [list(questions[first : first + shard]) for first in range(0, len(questions), shard)]
    files = [out / f"shard-{k:05d}.jsonl" for k in range(len(shards))]
    mine = range(number, len(shards), count)
    done, total = 0, sum(len(shards[k]) for k in mine)
    chat: GroundedChat | None = None
    for k in mine:
        if not files[k].exists():
            chat = chat or load()
            write_whole(files[k], _lines(chat, shards[k], settings, options, batch))
        for unfinished in out.glob(f"{files[k].name}.*.tmp"):  # of a process that was killed
            unfinished.unlink(missing_ok=True)
        done += len(shards[k])
        progress(done, total)
    return sum(not file.exists() for file in files)


def _lines(
    chat: GroundedChat,
    questions: Sequence[Question],
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    batch: int,
) -> str:
    lines = []
    for first in range(0, len(questions), batch):
        some = questions[first : first + batch]
        answers = ask(chat, some, options)
        lines += [
            to_line(prediction_of(question, answer, settings))
            for question, answer in zip(some, answers, strict=True)
        ]
    return "".join(f"{line}\n" for line in lines)


def ask(chat: GroundedChat, questions: Sequence[Question], options: Mapping[str, Any]) -> list[Answer]:
    """Answer questions as one batch.

    Raises:
        ValueError: a picture that cannot be read, or a question that makes no sense, with the ids.
    """
    try:
        return chat.ask_batch(
            [question.path for question in questions],
            [question.text for question in questions],
            [question.regions or None for question in questions],
            answers=[question.answer for question in questions],
            batch_size=len(questions),
            **options,
        )
    except ValueError as error:
        ids = ", ".join(repr(question.id) for question in questions)
        raise ValueError(f"questions {ids}: {error}") from error


def seconds_a_picture(chat: GroundedChat, questions: Sequence[Question], options: Mapping[str, Any]) -> float:
    """The time of one batch after everything was compiled, divided by its pictures."""
    ask(chat, questions, options)
    start = time.perf_counter()
    ask(chat, questions, options)
    return (time.perf_counter() - start) / len(questions)


def prediction_of(question: Question, answer: Answer, settings: Mapping[str, Any]) -> Prediction:
    """What is kept of an answer."""
    width, height = answer.image.size
    end = len(answer.text)
    phrases = []
    for phrase in answer.phrases:
        span = (min(phrase.span[0], end), min(phrase.span[1], end))  # the text may have lost an end tag
        codes = tuple(masks.encode(mask) for mask in phrase.masks)
        scores = np.clip(phrase.scores, 0, 1)
        phrases.append(PhrasePrediction(answer.text[slice(*span)], span, phrase.boxes, scores, codes))
    return Prediction(
        question_id=question.id,
        image=question.image,
        size=(height, width),
        text=answer.text,
        phrases=tuple(phrases),
        settings=dict(settings),
        extra=dict(question.extra),
        record=answer.record(question.id),
    )


def _begin(out: Path, questions: Sequence[Question], settings: Mapping[str, Any], shard: int) -> int:
    """Write down what a folder is for, or hold it to what was written; returns the size of its shards."""
    parts = [
        [q.id, q.image, q.text, [dataclasses.astuple(r) for r in q.regions], q.answer, dict(q.extra)]
        for q in questions
    ]
    asked = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    run = {"settings": dict(settings), "questions": len(questions), "asked": asked, "shard": shard}
    path = out / RUN_FILE
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.glob("shard-*.jsonl"))):
            raise ValueError(f"{out} is there, but is no folder of predictions that was begun here")
        write_whole(path, json.dumps(run, indent=1) + "\n")
        return shard
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        before, counted, known = begun["settings"], begun["questions"], begun["asked"]
        shard = int(begun["shard"])
        names = sorted({*before, *settings})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged; take another folder, or remove {out}") from error
    wanted = json.loads(json.dumps(dict(settings)))
    for name in names:
        if before.get(name) != wanted.get(name):
            raise ValueError(
                f"{out} was begun with {name} {json.dumps(before.get(name))}, now it is "
                f"{json.dumps(wanted.get(name))}; take another folder, or remove this one"
            )
    if counted != len(questions) or known != asked:
        raise ValueError(
            f"{out} was begun with {counted} questions, and now {len(questions)} are asked that are "
            "not the same; take another folder, or remove this one"
        )
    return shard
