"""Referring, phrase grounding, COCO, panoptic quality, grounded captions and mask codes, case by case."""

import numpy as np
import pytest

from lgjax.data import masks
from lgjax.eval import captions, flickr, refer, referring, rle, segmentation
from lgjax.infer.select import select_queries
from tests.parity.cases import metric_cases


def found(metric):
    """A test of each case of this metric."""
    return pytest.mark.parametrize("case", metric_cases(metric), ids=lambda case: case["id"])


def close(got, case, *keys):
    """Numbers, in lists and dictionaries of the same shape, within the tolerance of the case."""
    want = case["expected"]
    for key in keys:
        want = want[key]
    assert got == approx(want, case["tolerance"]), keys


def approx(want, tolerance):
    if isinstance(want, dict):
        return {key: approx(value, tolerance) for key, value in want.items()}
    if isinstance(want, list):
        return [approx(value, tolerance) for value in want]
    exact = isinstance(want, str | bool) or want is None
    return want if exact else pytest.approx(want, rel=0, abs=max(tolerance, 1e-12))


def bitmap(rows):
    return np.asarray([[cell == "1" for cell in row] for row in rows], bool)


def code(rows):
    return masks.encode(bitmap(rows))


def box(numbers):
    return None if numbers is None else np.asarray(numbers, float)


def boxes(rows):
    return np.asarray(rows, float).reshape(-1, 4)


@found("rec_accuracy")
def test_rec(case):
    samples = case["inputs"]["samples"]
    predicted, targets = [box(s["pred_xyxy"]) for s in samples], [box(s["gt_xyxy"]) for s in samples]
    close(referring.box_overlaps(predicted, targets)[0].tolist(), case, "iou")
    scores = referring.box_scores(predicted, targets)
    close(scores.accuracy, case, "acc_at_0_5_ge")
    close(scores.accuracy_strict, case, "acc_at_0_5_gt")
    close(scores.accuracy_giou, case, "acc_at_0_5_using_giou")
    close(scores.mean_iou, case, "mean_box_iou")


@found("res")
def test_res(case):
    samples, want = case["inputs"]["samples"], case["expected"]
    predicted, targets = [code(s["pred"]) for s in samples], [code(s["gt"]) for s in samples]
    counts, _ = referring.mask_counts(predicted, targets)
    rows = zip(counts.intersections.tolist(), counts.unions.tolist(), counts.ious.tolist(), strict=True)
    close([dict(intersection=i, union=u, iou=iou) for i, u, iou in rows], case, "per_sample")
    scores = referring.mask_scores(predicted, targets)
    close(scores.ciou, case, "ciou")
    close(scores.miou, case, "miou")
    for limit, share in scores.precision.items():
        close(share, case, f"pr@{limit}")
    assert {f"pr@{limit}" for limit in scores.precision} == {key for key in want if key.startswith("pr@")}
    close(scores.precision_strict, case, "mask_pr_at_0_5_strict")
    close(scores.ciou, case, "lisa_ciou")
    # theirs adds 1e-5 to every union that is not empty
    theirs = np.where(counts.unions == 0, 1, counts.intersections / (counts.unions + 1e-5))
    close(float(theirs.mean()), case, "lisa_giou")


@found("in_training_accuracy")
def test_training_accuracy(case):
    phrases = case["inputs"]["phrases"]
    total, correct = referring.training_accuracy(
        [box(p["pred_xyxy"]) for p in phrases], [boxes(p["gt_xyxy"]) for p in phrases]
    )
    assert (total, correct) == (case["expected"]["num_total"], case["expected"]["num_correct"])
    close(correct / total, case, "accuracy")


@found("in_training_ciou")
def test_training_masks(case):
    samples = case["inputs"]["samples"]
    out = referring.training_masks(
        [(s["height"], s["width"]) for s in samples],
        np.asarray([s["intersection_px_1024"] for s in samples], float),
        np.asarray([s["union_px_1024"] for s in samples], float),
    )
    rows = zip(out.scales.tolist(), out.intersections.tolist(), out.unions.tolist(), strict=True)
    close([dict(scale_factor=s, intersection=i, union=u) for s, i, u in rows], case, "per_sample")
    close(out.ciou, case, "ciou")
    close(out.miou, case, "miou")


@found("refer_split_index")
def test_splits_of_refer(case):
    refs = case["inputs"]["refs"]
    for split, want in case["expected"].items():
        kept = refer.refs_of_split(refs, split)
        samples = sum(len(ref["sentences"]) for ref in kept)
        assert {"ref_ids": [ref["ref_id"] for ref in kept], "n_samples": samples} == want, split


@found("flickr30k_recall")
def test_flickr_recall(case):
    phrases = [
        flickr.GroundedPhrase(tuple(p["types"]), boxes(p["gt_boxes"]), boxes(p["pred_boxes"]))
        for p in case["inputs"]["phrases"]
    ]
    close(flickr.recall(phrases, "any"), case, "any_box")
    close(flickr.recall(phrases, "merged"), case, "merged_box")


@found("flickr30k_sentence_parse")
def test_flickr_sentence(case):
    sentence = flickr.parse_sentence(case["inputs"]["line"])
    phrases = [
        dict(first_word_index=p.first_word, phrase=p.text, phrase_id=p.chain, phrase_type=list(p.types))
        for p in sentence.phrases
    ]
    assert {"sentence": sentence.text, "phrases": phrases} == case["expected"]["parsed"]
    assert [sentence.text[slice(*p.span)] for p in sentence.phrases] == [p.text for p in sentence.phrases]


@found("gcg")
def test_grounded_captions(case):
    inputs = case["inputs"]
    ious = rle.ious([*map(code, inputs["gt_masks"])], [*map(code, inputs["pred_masks"])])
    close(ious.tolist(), case, "iou_matrix")
    close(captions.image_miou(ious), case, "image_miou")
    similar = np.asarray(inputs["text_similarity_gt_by_pred"], float)
    for rule, name in (("released", "original"), ("skip", "skip")):
        matches = captions.phrase_matches(ious, similar, rule)
        assert [list(pair) for pair in matches] == case["expected"][f"matches_{name}_rule"]
        close(len(matches) / len(ious), case, f"mask_recall_{name}_rule")


@found("rle")
def test_codes(case):
    want, mask = case["expected"], bitmap(case["inputs"]["mask_rows"])
    assert masks.encode(mask) == {"size": want["size"], "counts": want["compressed_counts"]}
    for counts in (want["compressed_counts"], want["uncompressed_counts"]):
        whole = {"size": want["size"], "counts": counts}
        np.testing.assert_array_equal(masks.decode(whole, (want["size"][1], want["size"][0])), mask)
    assert rle.area(masks.encode(mask)) == want["area"]
    x0, y0, x1, y1 = masks.box_of(mask).tolist()
    assert [x0, y0, x1 - x0, y1 - y0] == want["bbox_xywh"]


@found("rle_iou")
def test_overlap_of_codes(case):
    inputs = case["inputs"]
    detections, targets = [*map(code, inputs["dt_masks"])], [*map(code, inputs["gt_masks"])]
    crowds = [bool(flag) for flag in inputs["gt_iscrowd"]]
    close(rle.ious(detections, targets, crowds).tolist(), case, "iou_dt_by_gt")


@found("coco_ap")
def test_coco_ap(case):
    inputs = case["inputs"]
    for kind in inputs["iou_types"]:
        close(segmentation.coco_ap(inputs["ground_truth"], inputs["detections"], kind), case, kind)


@found("panoptic_quality")
def test_panoptic_quality(case):
    inputs = case["inputs"]
    target, predicted = [
        segmentation.Segments(
            np.asarray(side["map"]), {int(n): name for n, name in side["segments"].items()}, inputs["void_id"]
        )
        for side in (inputs["gt"], inputs["pred"])
    ]
    qualities = segmentation.panoptic_quality([(target, predicted)])
    got = {
        name: {key: getattr(one, key) for key in ("tp", "fp", "fn", "sq", "rq", "pq")}
        for name, one in qualities.items()
    }
    close(got, case, "per_category")
    close(segmentation.mean_quality(qualities), case, "mean_pq")


@found("query_selection")
def test_query_selection(case):
    logits = np.asarray(case["inputs"]["logits_query_by_phrase"], float)
    grown = np.exp(logits - logits.max(0))
    probabilities = grown / grown.sum(0)
    close(probabilities.tolist(), case, "probabilities")
    kept = select_queries(probabilities, case["inputs"]["matching_threshold"])
    assert [queries.tolist() for queries in kept] == case["expected"]["selected_queries"]
    best = select_queries(probabilities, None)
    assert [int(queries[0]) for queries in best] == case["expected"]["argmax_query"]
