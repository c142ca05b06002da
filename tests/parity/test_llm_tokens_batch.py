"""Rows of training batches hold the ids and labels of the original: conversations of `llm_tokens_*.json`.

Conversations go the whole way: file text -> record -> rounds -> row. Raw ones (Flickr, referring), whose
questions the pipeline writes itself, are compared from the rounds on.
"""

import numpy as np
import pytest

from lgjax.config import IGNORE_LABEL
from lgjax.data.batch import BatchConfig, SampleMaker
from lgjax.data.rounds import Round, render, rounds_of
from lgjax.data.schema import Object, Phrase, Record, Region, Turn
from lgjax.models.splice import plan_row
from lgjax.text.conversation import VISUAL_PROMPT_TAG
from lgjax.text.markup import parse_text
from tests.parity.test_llm_tokens import items, tokenizer_of

CONFIG = BatchConfig(length=600, phrases=8, objects=8, clip_side=28, num_patches=4, canvas=32, mask_side=32)
THING = Object(box=(1, 1, 9, 9))


def record_of(case: dict) -> Record:
    """The record that a source makes of the conversation; every phrase and region is of one object."""
    turns = [(m["from"], m["value"].replace("<image>", "")) for m in case["conversation"]]
    turns = turns[1:] if turns[0][0] == "gpt" else turns
    marked = [parse_text(text) for _, text in turns]
    text_only = case["kind"] == "train_text_only"
    return Record(
        id=case["name"],
        kind="chat",
        image=None if text_only else np.zeros((12, 12, 3), np.uint8),
        size=None if text_only else (12, 12),
        turns=tuple(Turn(who, found.text) for (who, _), found in zip(turns, marked, strict=True)),
        objects=(THING,),
        phrases=tuple(
            Phrase(turn=i, span=(p.start, p.end), objects=(0,))
            for i, found in enumerate(marked)
            for p in found.phrases
        ),
        regions=tuple(
            Region(i, 0) for i, (_, text) in enumerate(turns) for _ in range(text.count(VISUAL_PROMPT_TAG))
        ),
    )


def conversations(*kinds: str) -> list:
    return [param for param in items("cases") if param.values[1]["kind"] in kinds]


@pytest.mark.parametrize(("path", "case"), conversations("train", "train_visual_prompt", "train_text_only"))
def test_rows_of_conversations(path, case):
    tokenizer, record = tokenizer_of(path), record_of(case)
    maker = SampleMaker(CONFIG, tokenizer, grounded=True)
    if case["mismatch"]:
        with pytest.raises(ValueError, match="cannot be told apart"):
            maker(record, np.random.default_rng(0))
        return
    batch = maker(record, np.random.default_rng(0))
    plan, length = batch.language.plan, int(batch.language.plan.lengths[0])
    # only "<obj>" is a visual prompt here, while the original also takes words for one (quirks Q9, Q11)
    tight = any(f"t{VISUAL_PROMPT_TAG}" in m["value"] for m in case["conversation"])
    if tight:
        assert (plan.objects[0] >= 0).sum() == len(record.regions)
        return
    prompts = len(record.regions)
    want = plan_row(
        case["input_ids"],
        CONFIG.num_patches,
        tokenizer.percent_id if prompts else None,
        labels=case["labels"],
    )
    for name in ("tokens", "patches", "labels", "mask"):
        np.testing.assert_array_equal(getattr(plan, name)[0, :length], getattr(want, name), err_msg=name)
        assert len(np.unique(getattr(plan, name)[0, length:])) <= 1, name
    assert (plan.labels[0, length:] == IGNORE_LABEL).all()
    segs = np.flatnonzero(want.labels == tokenizer.seg_id)
    assert batch.grounding.seg_positions[batch.grounding.seg_mask].tolist() == segs.tolist()


@pytest.mark.parametrize(("path", "case"), conversations("train_raw"))
def test_prompts_of_flickr_and_referring(path, case):
    texts = [message["value"] for message in case["conversation"]]
    rounds = [Round(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)]
    assert render(rounds) == case["prompt"]


@pytest.mark.parametrize(
    ("path", "case"), [p for p in conversations("train_raw") if "(with grounding)" in p.values[1]["prompt"]]
)
def test_worked_caption_is_the_original_one(path, case):
    """The released question and markup give the ids of the released mapper's text."""
    question, answer = (message["value"] for message in case["conversation"])
    found = parse_text(answer)
    record = Record(
        id="caption",
        kind="caption",
        image=np.zeros((12, 12, 3), np.uint8),
        size=(12, 12),
        turns=(Turn("gpt", found.text),),
        objects=(THING,),
        phrases=tuple(Phrase(turn=0, span=(p.start, p.end), objects=(0,)) for p in found.phrases),
    )
    rounds = rounds_of(record, np.random.default_rng(0))
    assert rounds[0].question == question
    assert tokenizer_of(path).encode_prompt(render(rounds)) == case["input_ids"]
