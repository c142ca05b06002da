"""Training learns: sixteen scenes by heart, read back through the chat as any user would."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lgjax import GroundedChat
from lgjax.data.rounds import rounds_of
from lgjax.data.schema import Record
from lgjax.infer.answer import Answer
from lgjax.train import samples
from lgjax.train.config import load_config
from lgjax.train.loop import train

CONFIG = Path(__file__).parents[2] / "configs" / "sixteen_scenes.py"


def named_boxes(record: Record) -> list[tuple[str, np.ndarray]]:
    """(phrase, box in pixels) of everything that the first answer of a record names."""
    first = rounds_of(record, np.random.default_rng(0))[0]
    names = [name.strip() for name in re.findall(r"<g_s>(.*?)<g_e>", first.answer)]
    pairs = zip(names, first.phrases, strict=True)
    return [(name, np.asarray(record.objects[i].box, float)) for name, found in pairs for i in found]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(sides.clip(0)))
    return shared / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def grounded_f1(records: Sequence[Record], answers: Sequence[Answer]) -> tuple[float, float, float]:
    """Precision, recall and F1 of boxes: the same phrase, overlap of at least 0.5, each thing found once."""
    right = claimed = wanted = 0
    for record, answer in zip(records, answers, strict=True):
        left = named_boxes(record)
        wanted += len(left)
        for phrase in answer.phrases:
            for box in phrase.boxes:
                claimed += 1
                fitting = [(overlap(box, b), i) for i, (name, b) in enumerate(left) if name == phrase.text]
                if fitting and max(fitting)[0] >= 0.5:
                    right += 1
                    left.pop(max(fitting)[1])
    precision, recall = right / max(claimed, 1), right / wanted
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


@pytest.mark.slow  # 800 steps: about ten minutes of two cores
def test_sixteen_scenes_are_learnt_by_heart(tmp_path):
    config = load_config(CONFIG, "paper")
    train(config, tmp_path, console=Console(quiet=True))
    chat = GroundedChat.load(tmp_path / "model")
    chosen = samples.choose(config.data.grounded[0].records(), 16)
    assert len(chosen) == 16
    questions = [one.question for one in chosen]
    answers = chat.ask_batch([one.picture for one in chosen], questions, ground=False, max_tokens=96)
    same = sum(a.tagged_text == s.expected for a, s in zip(answers, chosen, strict=True))
    precision, recall, f1 = grounded_f1([one.record for one in chosen], answers)
    print(f"{same}/16 answers word for word; precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f}")
    assert f1 >= 0.95
