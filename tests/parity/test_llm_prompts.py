"""Prompts of every stored conversation, and the strings that the released checkpoints were trained with."""

from __future__ import annotations

import json

import pytest

from lgjax.text import conversation, tokenizer
from tests.parity import cases

CONVERSATIONS = [
    pytest.param(case, id=f"{path.stem}-{case['name']}")
    for path in cases.files("llm_tokens_*.json")
    for case in json.loads(path.read_text())["cases"]
]
PROMPTS = cases.files("llm_prompts*.json")


def prompt_of(case: dict) -> str:
    kind, stored = case["kind"], case["conversation"]
    if kind == "eval":
        return conversation.evaluation_prompt(stored[0]["value"])
    if kind == "demo":
        turns = [(question["value"], answer["value"]) for question, answer in stored]
        return conversation.chat_prompt(turns[:-1], turns[-1][0])
    options = {
        "train": {},
        "train_raw": {"normalise_image": False},
        "train_visual_prompt": {"mark_objects": True},
        "train_text_only": {},
    }
    return conversation.training_prompt(stored, **options[kind])


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_prompt(case: dict) -> None:
    assert prompt_of(case) == case["prompt"]


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_strings(path) -> None:
    stored = json.loads(path.read_text())
    template = stored["templates"][stored["used"]]
    assert conversation.V1.system == template["system"]
    assert list(conversation.V1.roles) == template["roles"]
    assert list(conversation.V1.separators) == [template["sep"], template["sep2"]]
    ours = {
        "special_tokens": list(tokenizer.GROUNDING_TOKENS),
        "image_placeholder": tokenizer.IMAGE_PLACEHOLDER,
        "image_token_index": tokenizer.IMAGE_TOKEN,
        "ignore_index": conversation.IGNORE_LABEL,
        "grounding_suffix": conversation.GROUNDING_SUFFIX,
        "visual_prompt_mark": conversation.VISUAL_PROMPT_MARK,
        "visual_prompt_training_tag": conversation.VISUAL_PROMPT_TAG,
        "flickr_question": conversation.FLICKR_QUESTION,
        "flickr_answer_piece": conversation.FLICKR_PHRASE,
        "referring_question_first": conversation.FIRST_REFERRING_QUESTION,
        "referring_question_next": conversation.REFERRING_QUESTION,
        "referring_answer": conversation.REFERRING_ANSWER,
    }
    assert ours == {name: stored[name] for name in ours}
    tag = stored["visual_prompt_training_tag"]
    turn = [{"from": "human", "value": f"a{tag}b"}, {"from": "gpt", "value": "c"}]
    marked = conversation.training_prompt(turn, mark_objects=True)
    assert f"a{stored['visual_prompt_training_replacement']}b" in marked
