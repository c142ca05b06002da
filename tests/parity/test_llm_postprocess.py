"""The original's own post-processing of answers, to the character; spec/language_model.md 13."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from lgjax.text import markup
from tests.parity import cases

FILES = cases.files("llm_postprocess*.json")
CASES = [
    pytest.param(case, id=f"{path.stem}-{case['name']}")
    for path in FILES
    for case in json.loads(path.read_text())["cases"]
]


def groups(boxes: list) -> list[np.ndarray]:
    return [np.array(group, np.float32).reshape(-1, 4) for group in boxes]


def assert_groups(found: list[np.ndarray], stored: list) -> None:
    assert len(found) == len(stored)
    for ours, theirs in zip(found, groups(stored), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@functools.cache
def mask_numbers(count: int, start: int) -> np.ndarray:
    """One mask for each box, told apart by its value."""
    return np.arange(start, start + count, dtype=np.int32)[:, None, None] * np.ones((1, 2, 3), np.int32)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_colours(path) -> None:
    assert [list(colour) for colour in markup.COLOURS] == json.loads(path.read_text())["colors"]


@pytest.mark.parametrize("case", CASES)
def test_evaluator(case: dict) -> None:
    text, kept = markup.filter_empty_boxes(case["text"], groups(case["boxes"]))
    assert text == case["filter_empty_box"]["text"]
    assert_groups(kept, case["filter_empty_box"]["boxes"])
    unresized = markup.unresize_boxes(kept, case["width"], case["height"])
    assert_groups(unresized, case["unresized"])
    wanted = case["formatting"]
    if "raises" in wanted:
        assert markup.format_record(text, unresized, 7) == (7, text, text, [])
    else:
        assert markup.format_record(text, unresized, wanted["question_id"])._asdict() == wanted


@pytest.mark.parametrize("case", CASES)
def test_demo(case: dict) -> None:
    boxes = groups(case["boxes"])
    masks = [mask_numbers(len(group), 10 * i) for i, group in enumerate(boxes)]
    wanted = case["demo_filter"]
    text, kept, kept_masks = markup.filter_empty_box_masks(case["text"], boxes, masks)
    assert text == wanted["text"]
    assert_groups(kept, wanted["boxes"])
    assert [len(group) for group in kept_masks] == wanted["n_masks"]
    for group, group_masks in zip(kept, kept_masks, strict=True):
        for box, mask in zip(group, group_masks, strict=True):
            source, row = divmod(int(mask[0, 0]), 10)
            np.testing.assert_array_equal(boxes[source][row], box)
    html = markup.demo_html(text)
    if isinstance(case["demo_html"], dict):
        assert html == text
        assert markup.demo_history(html) == text
    else:
        assert html == case["demo_html"]
        assert markup.demo_history(html) == case["demo_history"]
