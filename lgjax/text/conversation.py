"""Prompts and labels: conversations to text, text to training ids, ids to a padded batch.

A conversation is what LLaVA's JSON files hold: a list of {"from": "human" | "gpt", "value": text}.
Source: spec/language_model.md 7, 8, 9.1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from lgjax.config import IGNORE_LABEL, History
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER, Tokenizer

GROUNDING_SUFFIX = "(with grounding)"
VISUAL_PROMPT_MARK = "%"
VISUAL_PROMPT_TAG = "<obj>"
# the questions and answers that the released checkpoints were trained with
FLICKR_QUESTION = f"<image>\nPresent a compact description of the photo's key features.\n{GROUNDING_SUFFIX}"
FLICKR_PHRASE = "<g_s>{phrase}<g_e><seg>"
REFERRING_QUESTION = "Please detect the object according to the text {text} (referring)."
FIRST_REFERRING_QUESTION = f"<image>\n {REFERRING_QUESTION}"
REFERRING_ANSWER = "<seg> ."

Conversation = Sequence[Mapping[str, str]]
SPEAKERS = ("human", "gpt")
_PLACEHOLDER_ANSWER = "Placeholder."


@dataclasses.dataclass(frozen=True)
class Template:
    """How turns become one text: system text, a role before each message, a separator after it.

    `separators` follow a message of the user and of the model. Source: spec/language_model.md 7.
    """

    system: str
    roles: tuple[str, str]
    separators: tuple[str, str]

    @property
    def answer_start(self) -> str:
        """What stands between a question and its answer."""
        return f"{self.roles[1]}: "

    def render(self, texts: Sequence[str]) -> str:
        """Join messages of user and model in turn, the user first; an empty one leaves only its role."""
        out = self.system + self.separators[0]
        for i, text in enumerate(texts):
            out += f"{self.roles[i % 2]}: {text}{self.separators[i % 2]}" if text else f"{self.roles[i % 2]}:"
        return out


V1 = Template(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    roles=("USER", "ASSISTANT"),
    separators=(" ", "</s>"),
)


def normalise_image_tag(text: str) -> str:
    """Move every "<image>" of a message into one in front, followed by a newline; other texts are unchanged.

    Source: spec/language_model.md 7.1.
    """
    if IMAGE_PLACEHOLDER not in text:
        return text
    return f"{IMAGE_PLACEHOLDER}\n{text.replace(IMAGE_PLACEHOLDER, '').strip()}".strip()


def training_prompt(
    conversation: Conversation,
    *,
    normalise_image: bool = True,
    mark_objects: bool = False,
    template: Template = V1,
) -> str:
    """Turn a whole conversation into the text the model is trained on; it ends with "</s>".

    A first message of the model is dropped. `normalise_image` applies `normalise_image_tag` (all data but
    Flickr and referring); `mark_objects` turns each "<obj>" into the mark of a visual prompt (stage 3).
    Source: spec/language_model.md 7.2.

    Raises:
        ValueError: no message of the user, an unknown speaker, or two messages in a row of one speaker.
    """
    for i, message in enumerate(conversation):
        if missing := {"from", "value"} - message.keys():
            raise ValueError(f"message {i} of the conversation lacks '{sorted(missing)[0]}'")
        if message["from"] not in SPEAKERS:
            raise ValueError(f"message {i} is from '{message['from']}'; expected 'human' or 'gpt'")
    turns = list(conversation)
    dropped = 1 if turns and turns[0]["from"] == "gpt" else 0
    turns = turns[dropped:]
    if not turns:
        raise ValueError("the conversation has no message from 'human'")
    for i, message in enumerate(turns):
        if message["from"] != SPEAKERS[i % 2]:
            raise ValueError(
                f"message {i + dropped} is from '{message['from']}' again; 'human' and 'gpt' must alternate"
            )
    texts = [message["value"] for message in turns]
    prompt = template.render([normalise_image_tag(text) for text in texts] if normalise_image else texts)
    return prompt.replace(VISUAL_PROMPT_TAG, f"{VISUAL_PROMPT_MARK} ") if mark_objects else prompt


def evaluation_prompt(question: str, *, template: Template = V1) -> str:
    """Build the prompt of a benchmark question; the image tag and "(with grounding)" are added when missing.

    As in the original it ends where the first "ASSISTANT: " stands, also one inside the question.
    Source: spec/language_model.md 7.3, quirk Q19.
    """
    if not question.endswith(GROUNDING_SUFFIX):
        question = f"{question} {GROUNDING_SUFFIX}"
    text = normalise_image_tag(f"{IMAGE_PLACEHOLDER} {question}")
    prompt = template.render([text, _PLACEHOLDER_ANSWER])
    return prompt[: prompt.index(template.answer_start)] + template.answer_start.rstrip()


def chat_prompt(
    turns: Sequence[tuple[str, str]],
    question: str,
    *,
    history: History = "demo",
    template: Template = V1,
) -> str:
    """Build the prompt of `question` after earlier (question, answer) `turns` of a chat about one image.

    The image tag is put in front of the first question; "(with grounding)" is the user's to write. `history`
    "demo" removes every "</s>", so that an answer is followed at once by "USER:", as in the released demo;
    "training" ends each answer with "</s>" as in training, removes it only from the messages, and turns each
    "<obj>" into the mark of a visual prompt.
    Source: spec/language_model.md 7.4, quirk Q8.
    """
    stop = template.separators[1]
    texts = [text for turn in turns for text in turn] + [question, _PLACEHOLDER_ANSWER]
    if history == "training":
        texts = [text.replace(stop, "") for text in texts]
    texts[0] = f"{IMAGE_PLACEHOLDER} {texts[0]}"
    prompt = template.render([normalise_image_tag(text) for text in texts])
    prompt = prompt[: prompt.rindex(template.answer_start)] + template.answer_start.rstrip()
    if history == "demo":
        return prompt.replace(stop, "")
    return prompt.replace(VISUAL_PROMPT_TAG, f"{VISUAL_PROMPT_MARK} ")


def tagged_marks(question: str) -> str:
    """The question with "<obj>" for each mark of a visual prompt, as training data have it.

    `chat_prompt` then writes it as training does: "the object % ?" has other ids than "the object <obj> ?".
    Source: spec/visual_prompts.md 6.
    """
    mark = VISUAL_PROMPT_MARK
    return re.sub(rf"(?:(?<= )|^){mark}(?!{mark})", VISUAL_PROMPT_TAG, question)


class TrainingIds(NamedTuple):
    """Ids of a training prompt and their labels (`IGNORE_LABEL` where nothing is learnt).

    `mismatch` says that the rounds could not be told apart and the whole sample is ignored.
    """

    ids: list[int]
    labels: list[int]
    mismatch: bool


def training_ids(
    prompt: str,
    tokenizer: Tokenizer,
    max_length: int,
    *,
    has_image: bool = True,
    template: Template = V1,
) -> TrainingIds:
    """Tokenise a training prompt and label the answers with their "</s>"; everything else is ignored.

    A text-only sample (`has_image=False`) keeps "<image>" as words and is cut to `max_length`; a sample with
    an image is cut later, by `collate`. Texts that hold "</s>", "<unk>" or " ASSISTANT: " inside a message
    cannot be split into rounds: all their labels are ignored. Source: spec/language_model.md 8.
    """
    encode = tokenizer.encode_prompt if has_image else tokenizer.encode
    ids = encode(prompt) if has_image else encode(prompt)[:max_length]
    labels = list(ids)
    labels[0] = IGNORE_LABEL
    # <s> of a round encoded alone stands for the </s> that ends it in the prompt
    position = 1
    separator = template.separators[0] + template.answer_start
    for turn in prompt.split(template.separators[1]):
        parts = turn.split(separator)
        if len(parts) != 2:
            break
        question = len(encode(parts[0] + separator)) - 2
        stop = min(position + question, len(labels))
        labels[position:stop] = [IGNORE_LABEL] * (stop - position)
        position += len(encode(turn))
    labels[position:] = [IGNORE_LABEL] * len(labels[position:])
    real = sum(i != tokenizer.pad_id for i in ids)
    mismatch = position < max_length and position != real
    return TrainingIds(ids, [IGNORE_LABEL] * len(ids) if mismatch else labels, mismatch)


class TextBatch(NamedTuple):
    """Right-padded rows; the image still counts as one column (id -200)."""

    input_ids: Int32[np.ndarray, "b t"]
    labels: Int32[np.ndarray, "b t"]
    attention_mask: Bool[np.ndarray, "b t"]


def collate(samples: Sequence[TrainingIds], pad_id: int, max_length: int) -> TextBatch:
    """Stack samples to one width: pad on the right, then cut to `max_length` columns.

    The mask is True where the id is not `pad_id`, as in the original. Source: spec/language_model.md 9.1.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("cannot collate an empty list of samples")
    width = min(max(len(sample.ids) for sample in samples), max_length)
    input_ids = np.full((len(samples), width), pad_id, np.int32)
    labels = np.full((len(samples), width), IGNORE_LABEL, np.int32)
    for row, sample in enumerate(samples):
        count = min(len(sample.ids), width)
        input_ids[row, :count] = sample.ids[:count]
        labels[row, :count] = sample.labels[:count]
    return TextBatch(input_ids, labels, input_ids != pad_id)
