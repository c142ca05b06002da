"""Prompts, label masks and collation: identities of the template, errors, and rules by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgjax.text import conversation
from lgjax.text.conversation import (
    V1,
    chat_prompt,
    collate,
    evaluation_prompt,
    tagged_marks,
    training_ids,
    training_prompt,
)
from tests.text.tiny import TOKENIZER

# no markers and no colon: such messages cannot be mistaken for a part of the template
plain = st.text(st.characters(codec="utf-8", exclude_characters="<:", exclude_categories=["Cs"]), min_size=1)
words = st.lists(st.sampled_from(["boat", "two", "a", "%", "50%", "lake.", "Où"]), min_size=1).map(" ".join)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=4)


def messages(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    pairs_of = [[{"from": "human", "value": q}, {"from": "gpt", "value": a}] for q, a in pairs]
    return [message for pair in pairs_of for message in pair]


@given(st.lists(plain | st.just("<image>"), max_size=6).map(" ".join))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = conversation.normalise_image_tag(text)
    assert conversation.normalise_image_tag(once) == once
    if "<image>" in text:
        assert once.startswith("<image>")
        assert once.count("<image>") == 1
        rest = once.removeprefix("<image>")
        assert rest == "" or rest == "\n" + text.replace("<image>", "").strip()
    else:
        assert once == text


@given(turns)
def test_training_prompt_can_be_taken_apart(pairs: list[tuple[str, str]]) -> None:
    prompt = training_prompt(messages(pairs))
    assert prompt.startswith(V1.system + " USER: ")
    rounds = prompt.removeprefix(V1.system + " ").split("</s>")
    assert rounds.pop() == ""
    assert [tuple(r.removeprefix("USER: ").split(" ASSISTANT: ")) for r in rounds] == pairs


def test_first_model_message_is_dropped_and_empty_ones_leave_the_role() -> None:
    turns = messages([("a", "b")])
    assert training_prompt([{"from": "gpt", "value": "hello"}, *turns]) == training_prompt(turns)
    assert training_prompt(messages([("a", "")])).endswith(" USER: a ASSISTANT:")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "no message from 'human'"),
        ([{"from": "gpt", "value": "a"}], "no message from 'human'"),
        ([{"from": "human", "value": "a"}] * 2, "message 1 is from 'human' again"),
        (
            [{"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"}],
            "message 1 is from 'gpt' again",
        ),
        ([{"from": "system", "value": "a"}], "message 0 is from 'system'; expected 'human' or 'gpt'"),
        ([{"from": "human", "text": "a"}], "message 0 of the conversation lacks 'value'"),
    ],
)
def test_bad_conversations(turns: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_prompt(turns)


def test_objects_become_marks_before_tokenising() -> None:
    prompt = training_prompt(messages([("<image>\nName <obj> and <obj> .", "A cup.")]), mark_objects=True)
    assert "<obj>" not in prompt
    assert TOKENIZER.encode_prompt(prompt).count(TOKENIZER.percent_id) == 2
    assert "<obj>" in training_prompt(messages([("Name <obj> .", "A cup.")]))


@given(words)
def test_evaluation_prompt(question: str) -> None:
    prompt = evaluation_prompt(question)
    assert prompt == f"{V1.system} USER: <image>\n{question} (with grounding) ASSISTANT:"
    assert evaluation_prompt(f"{question} (with grounding)") == prompt
    assert evaluation_prompt(f"<image> {question} (with grounding)") == prompt


def test_evaluation_prompt_ends_at_the_first_answer_mark() -> None:
    assert evaluation_prompt("say ASSISTANT: now").endswith("USER: <image>\nsay ASSISTANT:")
    assert chat_prompt([], "say ASSISTANT: now").endswith("USER: <image>\nsay ASSISTANT: now ASSISTANT:")


@given(turns, words)
def test_chat_prompt_is_a_cut_training_prompt(pairs: list[tuple[str, str]], question: str) -> None:
    whole = messages([*pairs, (question, "x")])
    whole[0]["value"] = "<image> " + whole[0]["value"]
    trained = training_prompt(whole).removesuffix(" x</s>")
    assert chat_prompt(pairs, question, history="training") == trained
    assert chat_prompt(pairs, question) == trained.replace("</s>", "")


@given(turns, words, st.sampled_from(["", " %", " (with grounding)"]))
def test_marks_of_a_question_are_those_of_training(
    pairs: list[tuple[str, str]], question: str, end: str
) -> None:
    asked = f"Is {question} % next to 50% % of the %?{end}"
    whole = messages([*pairs, (asked.replace(" %", " <obj>"), "x")])
    whole[0]["value"] = "<image> " + whole[0]["value"]
    trained = training_prompt(whole, mark_objects=True).removesuffix(" x</s>")
    assert chat_prompt(pairs, tagged_marks(asked), history="training") == trained


@pytest.mark.parametrize("question", ["50% of it", "What %% is it", "100 %% ?", "(% of it)"])
def test_other_percent_signs_are_no_marks(question: str) -> None:
    assert tagged_marks(question) == question


def test_end_tags_in_chats() -> None:
    turns = [("one</s>", "two</s>three")]
    assert chat_prompt(turns, "four</s>").endswith("one ASSISTANT: twothreeUSER: four ASSISTANT:")
    assert chat_prompt(turns, "4</s>", history="training").endswith(
        "one ASSISTANT: twothree</s>USER: 4 ASSISTANT:"
    )


@given(turns)
def test_exactly_the_answers_are_supervised(pairs: list[tuple[str, str]]) -> None:
    prompt = training_prompt(messages([("<image> " + pairs[0][0], pairs[0][1]), *pairs[1:]]))
    found = training_ids(prompt, TOKENIZER, 10_000)
    assert not found.mismatch
    assert found.ids == TOKENIZER.encode_prompt(prompt)
    supervised = [
        i for i, label in zip(found.ids, found.labels, strict=True) if label != conversation.IGNORE_LABEL
    ]
    assert all(label in (i, -100) for i, label in zip(found.ids, found.labels, strict=True))
    answers = [answer for _, answer in pairs]
    wanted = [TOKENIZER.encode(f"ASSISTANT: {answer}</s>") for answer in answers]
    colon = len(TOKENIZER.encode("ASSISTANT:"))
    assert supervised == [i for ids in wanted for i in ids[colon:]]


@pytest.mark.parametrize("bad", ["a </s> b", "an <unk> b", "a ASSISTANT: b", "a</s></s>b"])
def test_messages_that_hide_the_rounds_are_ignored_whole(bad: str) -> None:
    found = training_ids(training_prompt(messages([("a", bad), ("c", "d")])), TOKENIZER, 10_000)
    assert found.mismatch
    assert set(found.labels) == {conversation.IGNORE_LABEL}
    assert len(found.labels) == len(found.ids)


def test_text_only_samples_are_cut_and_keep_the_tag_as_words() -> None:
    prompt = training_prompt(messages([("What does <image> mean?", "A tag.")]), normalise_image=False)
    whole = training_ids(prompt, TOKENIZER, 10_000, has_image=False)
    assert whole.ids == TOKENIZER.encode(prompt)
    assert training_ids(prompt, TOKENIZER, 10_000).ids.count(-200) == 1
    for length in (1, 5, len(whole.ids) - 2):
        cut = training_ids(prompt, TOKENIZER, length, has_image=False)
        assert cut.ids == whole.ids[:length]
        assert cut.labels == whole.labels[:length]
        assert not cut.mismatch


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 15))
def test_collate(lengths: list[int], max_length: int) -> None:
    samples = [
        conversation.TrainingIds(list(range(7, 7 + n)), [-100] * (n - 1) + [n], False) for n in lengths
    ]
    batch = collate(samples, 0, max_length)
    assert batch.input_ids.dtype == batch.labels.dtype == np.int32
    assert batch.input_ids.shape == (len(lengths), min(max(lengths), max_length))
    for row, sample in enumerate(samples):
        n = min(len(sample.ids), max_length)
        assert batch.input_ids[row, :n].tolist() == sample.ids[:n]
        assert batch.labels[row, :n].tolist() == sample.labels[:n]
        assert batch.attention_mask[row].sum() == n
        assert not batch.input_ids[row, n:].any()
        assert (batch.labels[row, n:] == -100).all()


def test_collate_of_nothing() -> None:
    with pytest.raises(ValueError, match="empty list of samples"):
        collate([], 0, 10)
