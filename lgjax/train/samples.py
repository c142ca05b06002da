"""Answers of the model as it is now, drawn beside what they should be.

Works on one process; see `lgjax.infer`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from lgjax.config import ModelConfig
from lgjax.data.marks import picture_of
from lgjax.data.rounds import Wording, rounds_of
from lgjax.data.schema import Record
from lgjax.infer.answer import Answer
from lgjax.infer.chat import GroundedChat
from lgjax.infer.request import Model
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER, Tokenizer


class Sample(NamedTuple):
    """A question about a picture, and its answer with grounding tokens."""

    record: Record
    picture: Image.Image
    question: str
    expected: str


def choose(records: Sequence[Any], count: int, wording: Wording = "released") -> list[Sample]:
    """The first rounds of the first records that ask without visual prompts and whose picture can be read."""
    found: list[Sample] = []
    for number in range(min(len(records), 20 * count)):
        if len(found) == count:
            break
        with contextlib.suppress(ValueError, OSError):
            record = records[number]
            first = rounds_of(record, np.random.default_rng(number), wording)[0]
            if record.image is not None and not first.regions:
                question = first.question.replace(IMAGE_PLACEHOLDER, "").strip()
                found.append(Sample(record, picture_of(record), question, first.answer))
    return found


def answer(
    config: ModelConfig,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    **options: Any,
) -> list[Answer]:
    """Greedy answers to samples. `params` have the layers of the language model apart (`groups.apart`)."""
    compute = jnp.dtype(jnp.float32) if jax.default_backend() == "cpu" else jnp.dtype(jnp.bfloat16)
    chat = GroundedChat(Model(config, params, tokenizer, compute, compute))
    pictures, questions = [one.picture for one in samples], [one.question for one in samples]
    return chat.ask_batch(pictures, questions, **{"ground": False, "max_tokens": 96, **options})


def draw(samples: Sequence[Sample], answers: Sequence[Answer], folder: Path, step: int) -> None:
    """Write `step_N.jsonl` (question, expected and found text) and one drawn picture a sample."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (sample, found) in enumerate(zip(samples, answers, strict=True)):
        name = f"step_{step:06d}_{number}.png"
        found.draw().save(folder / name)
        line = {"question": sample.question, "expected": sample.expected, "answer": found.tagged_text}
        lines.append(json.dumps({"step": step, "picture": name, **line}))
    (folder / f"step_{step:06d}.jsonl").write_text("\n".join(lines) + "\n")
