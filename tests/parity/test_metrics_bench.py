"""Worked examples of Grounding-Bench, LLaVA-Bench, POPE and CHAIR; spec/evaluation.md 1.5, 1.6, 6.2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from lgjax.data.boxes import box_giou, box_iou
from lgjax.eval import chair, chat_score, pope
from lgjax.eval import grounding_bench as bench
from tests.parity.cases import metric_cases


def of(metric: str) -> Callable:
    return pytest.mark.parametrize("case", metric_cases(metric), ids=lambda case: case["id"])


def assert_close(found: Any, want: Any, tolerance: float) -> None:
    """Every number of the expected tree within the tolerance, all else equal, nothing missing."""
    if isinstance(want, Mapping):
        assert set(found) == set(want)
        for key in want:
            assert_close(found[key], want[key], tolerance)
    elif isinstance(want, list):
        assert len(found) == len(want)
        for ours, theirs in zip(found, want, strict=True):
            assert_close(ours, theirs, tolerance)
    elif isinstance(want, int | float) and not isinstance(want, bool):
        assert found == pytest.approx(want, rel=0, abs=tolerance)
    else:
        assert found == want


@of("box_iou")
def test_box_iou(case):
    boxes = [np.asarray([case["inputs"][name]], np.float64) for name in ("a_xyxy", "b_xyxy")]
    assert_close(
        {"iou": box_iou(*boxes).item(), "giou": box_giou(*boxes).item()}, case["expected"], case["tolerance"]
    )


def scores(counts: bench.Counts) -> dict[str, float]:
    return {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}


@of("grounding_bench")
def test_grounding_bench(case):
    per_image, counted = [], []
    for image in case["inputs"]["images"]:
        entities = [bench.Entity(g["id"], g["category"], tuple(map(float, g["box"]))) for g in image["gt"]]
        groundings = [
            bench.Grounding(g["phrase"], np.asarray(g["boxes"], np.float64).reshape(-1, 4))
            for g in image["groundings"]
        ]
        verdicts = {(v["phrase_index"], v["gt_id"]): v["correct"] for v in image["verdicts"]}
        references = bench.match(groundings, entities, min_iou=case["inputs"]["iou_threshold"])
        counts = bench.count(references, entities, verdicts)
        matches = [
            [
                {"gt_id": r.entity and r.entity.id, "iou": r.iou, "correct": bench.is_right(r, verdicts)}
                for r in references
                if r.phrase == phrase
            ]
            for phrase in range(len(groundings))
        ]
        counted.append(counts)
        per_image.append(
            {"image_id": image["image_id"], "matches": matches} | dataclasses.asdict(counts) | scores(counts)
        )
    total = bench.micro(counted)
    found = {
        "per_image": per_image,
        "counts": dataclasses.asdict(total),
        "micro": scores(total),
        "macro": dataclasses.asdict(bench.macro(counted)),
    }
    assert_close(found, case["expected"], case["tolerance"])


@of("f1_from_pr")
def test_f1(case):
    f1 = [bench.f1(row["precision"], row["recall"]) for row in case["inputs"]["rows"]]
    assert_close(
        {"f1": f1, "f1_rounded_1": [round(value, 1) for value in f1]}, case["expected"], case["tolerance"]
    )


@of("review_score_parsing")
def test_parse(case):
    assert_close(
        {"scores": [list(chat_score.parse(review)) for review in case["inputs"]["reviews"]]},
        case["expected"],
        case["tolerance"],
    )


@of("llava_bench_relative")
def test_relative(case):
    pairs = [tuple(map(float, pair)) for pair in case["inputs"]["tuples_reference_model"]]
    found = dataclasses.asdict(chat_score.summarise(pairs, compat=True))
    assert_close({name: found[name] for name in case["expected"]}, case["expected"], case["tolerance"])


@of("pope")
def test_pope(case):
    parsed = [pope.parse(answer) for answer in case["inputs"]["answers"]]
    score = pope.score(parsed, case["inputs"]["labels"])
    found = {name: getattr(score, name) for name in case["expected"] if name != "parsed"}
    assert_close({"parsed": parsed, **found}, case["expected"], case["tolerance"])


@of("chair")
def test_chair(case):
    captions = [chair.caption(c["mentioned_objects"], c["gt_objects"]) for c in case["inputs"]["captions"]]
    score = chair.score(captions)
    per_caption = [
        {"hallucinated": list(c.hallucinated), "chair_i": c.chair_i, "chair_s": c.chair_s} for c in captions
    ]
    assert_close(
        {"per_caption": per_caption, **dataclasses.asdict(score)}, case["expected"], case["tolerance"]
    )
