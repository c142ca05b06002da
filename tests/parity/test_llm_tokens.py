"""Ids, labels, decoding, stopping and collation against the original's; spec/language_model.md 18.2.

Each llm_tokens_*.json names its SentencePiece model by hash. It is looked for in the parity folder, in the
repository's own, and, for LLaMA's file, which may not be passed on, at the path in LGJAX_LLAMA_TOKENIZER.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from lgjax.text import conversation
from lgjax.text.tokenizer import IMAGE_TOKEN, Tokenizer
from tests.parity import cases

LLAMA_SHA256 = "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"
FILES = cases.files("llm_tokens_*.json")


@functools.cache
def read(path: Path) -> dict:
    return json.loads(path.read_text())


def items(kind: str) -> list:
    return [
        pytest.param(path, item, id=f"{path.stem}-{i}-{item.get('name', kind)}")
        for path in FILES
        for i, item in enumerate(read(path)[kind])
    ]


@functools.cache
def tokenizer_of(path: Path) -> Tokenizer:
    wanted = read(path)["tokenizer"]
    llama = os.environ.get("LGJAX_LLAMA_TOKENIZER")
    own = Path(__file__).with_name("data").glob("*.model")
    for model in [*cases.files("*.model"), *own, *([Path(llama)] if llama else [])]:
        if hashlib.sha256(model.read_bytes()).hexdigest() == wanted["sha256"]:
            by_id = sorted(wanted["added"], key=wanted["added"].__getitem__)
            return Tokenizer.from_model_file(model, by_id)
    if wanted["sha256"] == LLAMA_SHA256:
        pytest.skip(
            "set LGJAX_LLAMA_TOKENIZER to LLaMA's tokenizer.model to run the cases of the real tokenizer"
        )
    raise AssertionError(f"no *.model of {cases.DATA} has the hash that {path.name} names")


def longest(path: Path) -> int:
    return max(batch["model_max_length"] for batch in read(path)["collate"])


def training_ids(path: Path, case: dict) -> conversation.TrainingIds:
    has_image = case["kind"] != "train_text_only"
    return conversation.training_ids(case["prompt"], tokenizer_of(path), longest(path), has_image=has_image)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_special_ids(path: Path) -> None:
    tokenizer, wanted = tokenizer_of(path), read(path)["tokenizer"]
    for name in ("pad_id", "bos_id", "eos_id", "unk_id", "percent_id"):
        assert getattr(tokenizer, name) == wanted[name], name
    assert tokenizer.added == wanted["added"]
    assert (tokenizer.g_s_id, tokenizer.g_e_id, tokenizer.seg_id) == tuple(
        wanted["added"][token] for token in ("<g_s>", "<g_e>", "<seg>")
    )
    assert tokenizer.vocab_size == wanted["pieces"] + len(wanted["added"])
    assert read(path)["image_token_index"] == IMAGE_TOKEN
    assert read(path)["ignore_index"] == conversation.IGNORE_LABEL


@pytest.mark.parametrize(("path", "case"), items("cases"))
def test_ids_and_labels(path: Path, case: dict) -> None:
    if "labels" not in case:
        assert tokenizer_of(path).encode_prompt(case["prompt"]) == case["input_ids"]
        return
    found = training_ids(path, case)
    assert found.ids == case["input_ids"]
    assert found.labels == case["labels"]
    assert found.mismatch == case["mismatch"]


@pytest.mark.parametrize(("path", "case"), items("decode"))
def test_decode_and_stop(path: Path, case: dict) -> None:
    tokenizer = tokenizer_of(path)
    assert tokenizer.decode(case["ids"]) == case["text"]
    assert tokenizer.stop_length(case["ids"]) == (case["stops_after"] if case["stop"] else None)
    if case["stop"]:
        assert tokenizer.stop_length(case["ids"][: case["stops_after"] - 1]) is None


@pytest.mark.parametrize(("path", "batch"), items("collate"))
def test_collate(path: Path, batch: dict) -> None:
    named = {case["name"]: case for case in read(path)["cases"]}
    samples = [training_ids(path, named[name]) for name in batch["cases"]]
    found = conversation.collate(samples, tokenizer_of(path).pad_id, batch["model_max_length"])
    for name in ("input_ids", "labels", "attention_mask"):
        np.testing.assert_array_equal(getattr(found, name), np.array(batch[name]), err_msg=name)
