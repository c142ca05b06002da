"""From a chat and its links to the records of the original: grounded answers, and questions with "<obj>".

Source: spec/training_and_data.md 5.3, 5.4, 9.1, 9.3, 9.4.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from lgjax.annotate.writing import Chat
from lgjax.text.conversation import GROUNDING_SUFFIX, VISUAL_PROMPT_TAG
from lgjax.text.markup import mark_phrases
from lgjax.text.tokenizer import GROUNDING_TOKENS, IMAGE_PLACEHOLDER

REFUSAL = "Please provide"


class TextLink(NamedTuple):
    """Characters [start, end) of message `turn` mean the instances with these annotation ids."""

    turn: int
    start: int
    end: int
    ids: tuple[int | str, ...]


def text_of(message: Mapping[str, str]) -> str:
    """What a message says, without the tag that stands for the picture."""
    return message["value"].replace(IMAGE_PLACEHOLDER, "").strip()


def fault_of_chat(chat: Any) -> str:
    """Why a chat cannot be annotated; empty when it can."""
    messages = chat.get("conversations") if isinstance(chat, dict) else None
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("value"), str) and m["value"].strip() for m in messages
    ):
        return "no conversation of messages with from and value"
    if not isinstance(chat.get("image"), str):
        return "no picture is named"
    speakers = [message.get("from") for message in messages]
    if not messages or speakers != ["human", "gpt"] * (len(messages) // 2):
        return "messages do not go human, gpt, human, gpt ..."
    if any(IMAGE_PLACEHOLDER in message["value"] for message in messages[1:]):
        return f"{IMAGE_PLACEHOLDER} stands behind the first question"
    texts = [text_of(message) for message in messages]
    reserved = (*GROUNDING_TOKENS, VISUAL_PROMPT_TAG, GROUNDING_SUFFIX)
    if found := [piece for piece in reserved if any(piece in text for text in texts)]:
        return f"a text already holds {found[0]}"
    return "a message is blank" if not all(texts) else ""


def grounded(chat: Chat, links: Sequence[TextLink]) -> dict[str, Any]:
    """The record of grounded chat: phrases marked in answers, the request in the questions before them."""
    messages = [dict(message) for message in chat["conversations"]]
    ids = []
    for turn in range(1, len(messages), 2):
        here = [link for link in links if link.turn == turn]
        if not here:
            continue
        text = text_of(messages[turn])
        messages[turn]["value"] = mark_phrases(text, [(link.start, link.end) for link in here])
        messages[turn - 1]["value"] = f"{messages[turn - 1]['value'].rstrip()} {GROUNDING_SUFFIX}"
        ids += [list(link.ids) for link in here]
    return {"id": chat["id"], "image": chat["image"], "conversations": messages, "gd_ls": ids}


def fault_of_grounded(record: Mapping[str, Any], known: Collection[int | str]) -> str:
    """Which of the original's filters refuses a record; "" when none does. `known`: ids of its picture."""
    messages, lists = record["conversations"], record.get("gd_ls")
    answers = [message["value"] for message in messages if message["from"] == "gpt"]
    if not lists or not any(lists):
        return "no phrase is grounded"
    if not any("with grounding" in message["value"] for message in messages if message["from"] == "human"):
        return "no question asks for grounding"
    if any(REFUSAL in answer for answer in answers):
        return f'an answer holds "{REFUSAL}"'
    if any(sum(answer.count(token) for answer in answers) != len(lists) for token in GROUNDING_TOKENS):
        return "the numbers of <g_s>, <g_e>, <seg> and id lists differ"
    if any(re.search(r"<g_s>\s*(<g_e>\s*)?<seg>|<g_s>\s*<g_e>", answer) for answer in answers):
        return "a phrase is empty"
    if not all(i in known for ids in lists for i in ids or ()):
        return "an id is not among the instances of the picture"
    return ""


def prompted(chat: Chat, links: Sequence[TextLink]) -> dict[str, Any] | None:
    """The record of visual-prompt chat: things of the questions become "the object <obj>", each its own.

    None when no question names a thing.
    """
    messages = [dict(message) for message in chat["conversations"]]
    new_questions: list[str | None] = []
    ids: list[list[int | str] | None] = []
    for turn in range(0, len(messages), 2):
        here = [link for link in links if link.turn == turn]
        question = _with_tags(text_of(messages[turn]), here)
        new_questions.append(question if here else None)
        ids.append([i for link in here for i in link.ids] if here else None)
        if here:
            start = f"{IMAGE_PLACEHOLDER}\n" if IMAGE_PLACEHOLDER in messages[turn]["value"] else ""
            messages[turn]["value"] = start + question
    if not any(ids):
        return None
    kept = {"id": chat["id"], "image": chat["image"], "conversations": messages}
    return {**kept, "new_qs": new_questions, "q_gd_ls": ids}


def _with_tags(text: str, links: Sequence[TextLink]) -> str:
    pieces, last = [], 0
    for link in links:
        tags = " and ".join([f"the object {VISUAL_PROMPT_TAG}"] * len(link.ids))
        before = text[last : link.start]
        pieces += [before, tags if before.strip() or last else tags.capitalize()]
        # the tag is one token only with a space on both sides
        pieces += [" "] if text[link.end : link.end + 1] not in ("", " ") else []
        last = link.end
    return "".join([*pieces, text[last:]]).strip()
