"""Conversations about pictures, written from their captions and boxes: by rule, or by a language model.

Source: spec/training_and_data.md 9 (the original took the conversations of LLaVA-Instruct).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lgjax.annotate.asking import request_of
from lgjax.annotate.prompts import boxes_of
from lgjax.annotate.task import Instance
from lgjax.data.questions import BRIEF
from lgjax.llm.request import Failure, LanguageModel, Message, Outcome, Pending

VERSION = 1
Style = Literal["conversation", "detail", "reasoning"]
STYLES: tuple[Style, ...] = get_args(Style)
Chat = dict[str, Any]  # {"id", "image", "conversations": [{"from", "value"}]}, as LLaVA-Instruct has them
_RULES = """\
You write training data for an assistant that sees pictures. You do not see the picture; you get captions \
that people wrote about it and a list of the things in it, as number.class: [x1, y1, x2, y2], where the box \
runs from 0 to 1, from left to right and from top to bottom. Write as if you saw the picture. Never mention \
captions, boxes, numbers of the list or coordinates; say where things are in words. State only what the \
captions and the list support. Use exactly this form, each on its own line:
Question: ...
Answer: ...
"""
_ASKED: Mapping[Style, str] = {
    "conversation": "Write a conversation of three to five questions with short answers, about what things "
    "are there, how many, where, and what they do. Ask only what has a definite answer.",
    "detail": "Write one question that asks for a detailed description, and an answer of several sentences "
    "in a single line that covers the things of the picture and where they are.",
    "reasoning": "Write one question that needs thinking about the scene, its causes, purposes or dangers, "
    "and an answer in a single line that argues from what is seen.",
}
_PART = re.compile(r"^\s*(Question|Answer)\s*:\s*", re.MULTILINE)
_GIVEN_AWAY = re.compile(r"\bcaptions?\b|\bbounding box|\bcoordinates?\b|\[\s*0?\.\d", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is known of a picture: its file name, captions and instances."""

    image: str
    captions: tuple[str, ...]
    instances: tuple[Instance, ...]


def caption_chat(image: str, caption: str, number: int) -> Chat:
    """A caption as the answer to a request for one; `number` chooses its wording."""
    return _chat(image, [BRIEF[number % len(BRIEF)], caption.strip()])


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes conversations with a language model, all in one style."""

    language_model: LanguageModel
    model: str
    style: Style

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its conversations."""
        return {"model": self.model, "style": self.style, "version": VERSION}

    def write(self, scenes: Sequence[Scene]) -> list[Chat | Failure | Pending]:
        """A conversation about each scene.

        Raises:
            Stopped: see `lgjax.llm.client.Client`.
        """
        outcomes = self.language_model.complete(
            [request_of(self.model, _messages(scene, self.style)) for scene in scenes]
        )
        return [_read(scene, outcome) for scene, outcome in zip(scenes, outcomes, strict=True)]


def _messages(scene: Scene, style: Style) -> tuple[Message, ...]:
    captions = "\n".join(caption.strip() for caption in scene.captions)
    given = f"Captions:\n{captions}\n\nThings in the picture:\n{boxes_of(scene.instances)}"
    return Message("system", _RULES + _ASKED[style]), Message("user", given)


def _read(scene: Scene, outcome: Outcome) -> Chat | Failure | Pending:
    if isinstance(outcome, Failure | Pending):
        return outcome
    parts = _PART.split(outcome.text)[1:]
    names, texts = parts[::2], [" ".join(text.split()) for text in parts[1::2]]
    if not names or names != ["Question", "Answer"] * (len(names) // 2) or not all(texts):
        return Failure("the written conversation is not question, answer, question, answer ...")
    if any(_GIVEN_AWAY.search(text) for text in texts):
        return Failure("the written conversation speaks of captions or boxes")
    return _chat(scene.image, texts)


def _chat(image: str, texts: Sequence[str]) -> Chat:
    messages = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    messages[0]["value"] = f"<image>\n{messages[0]['value']}"
    return {"id": image.rpartition("/")[2].rpartition(".")[0], "image": image, "conversations": messages}
