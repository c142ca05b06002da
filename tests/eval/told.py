"""A chat that answers from the question alone, at once: for what has nothing to do with networks."""

from __future__ import annotations

import time
import zlib

import numpy as np
import PIL.Image

from lgjax.data.images import load_image
from lgjax.infer.answer import Answer, Phrase
from lgjax.infer.chat import GroundedChat


class Told(GroundedChat):
    """Answers "A thing of N." with one phrase; slow enough to be killed within a shard."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked: list[str] = []

    def ask_batch(self, pictures, texts, regions=None, **options) -> list[Answer]:
        time.sleep(self.seconds)
        self.asked += texts
        return [_answer(load_image(picture), text) for picture, text in zip(pictures, texts, strict=True)]


def _answer(image: PIL.Image.Image, question: str) -> Answer:
    rng = np.random.default_rng(zlib.crc32(question.encode()))
    width, height = image.size
    corners = np.sort(rng.random((2, 2, 2)), axis=1).reshape(2, 4).astype(np.float32)
    boxes = corners * np.asarray([width, height, width, height], np.float32)
    scores = np.sort(rng.random(2))[::-1].astype(np.float32)
    phrase = Phrase("A thing", (0, 7), boxes, scores, rng.random((2, height, width)) < 0.5)
    text = f"A thing of {zlib.crc32(question.encode())}."
    tagged = text.replace("A thing", "<g_s> A thing <g_e> <seg>")
    return Answer(text, (phrase,), image, None, tagged, (corners,), True, 5)
