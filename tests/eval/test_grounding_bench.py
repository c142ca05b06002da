"""Grounding-Bench: properties of the counts, predictors of known figures, thresholds, records, faults."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.cli import main
from lgjax.eval import grounding_bench as bench
from lgjax.eval.predictions import cut
from lgjax.eval.records import record_of
from tests.eval import bench_files as files

NUMBERS = st.integers(0, 8)
BOXES = st.tuples(NUMBERS, NUMBERS, st.integers(1, 8), st.integers(1, 8)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)
ENTITIES = st.lists(BOXES, max_size=6).map(
    lambda boxes: [bench.Entity(i, "cat", box) for i, box in enumerate(boxes)]
)
GROUNDINGS = st.lists(st.lists(BOXES, max_size=4), max_size=4).map(
    lambda lists: [bench.Grounding("a cat", np.asarray(b, np.float64).reshape(-1, 4)) for b in lists]
)


def overlap(a, b) -> float:
    """IoU of boxes with whole coordinates, by counting cells."""
    cells = [
        {(x, y) for x in range(int(box[0]), int(box[2])) for y in range(int(box[1]), int(box[3]))}
        for box in (a, b)
    ]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


def all_right(references) -> dict:
    return {(r.phrase, r.entity.id): True for r in references if r.entity is not None}


@settings(max_examples=50)
@given(GROUNDINGS, ENTITIES, st.randoms())
def test_counts_against_counting(groundings, entities, random):
    references = bench.match(groundings, entities)
    verdicts = {pair: random.random() < 0.6 for pair in all_right(references)}
    counts = bench.count(references, entities, verdicts)
    right, found = 0, set()
    for index, grounding in enumerate(groundings):
        for box in grounding.boxes:
            ious = [overlap(box, entity.box) for entity in entities]
            if ious and max(ious) >= 0.5 and verdicts.get((index, ious.index(max(ious)))):
                right += 1
                found.add(ious.index(max(ious)))
    boxes = sum(len(grounding.boxes) for grounding in groundings)
    assert dataclasses.astuple(counts) == (boxes, len(entities), right, len(found))
    shares = counts.precision, counts.recall
    assert 0 <= min(shares) <= counts.f1 + 1e-9 <= max(shares) + 2e-9 <= 1 + 2e-9


@settings(max_examples=50)
@given(GROUNDINGS, ENTITIES, st.randoms())
def test_order_does_not_matter(groundings, entities, random):
    """Of phrases, of their boxes, and (with all verdicts right) of answers."""
    mixed = [
        dataclasses.replace(g, boxes=g.boxes[random.sample(range(len(g.boxes)), len(g.boxes))])
        for g in random.sample(groundings, len(groundings))
    ]
    totals = []
    for some in (groundings, mixed):
        references = bench.match(some, entities)
        totals.append(bench.count(references, entities, all_right(references)))
    assert totals[0] == totals[1]
    counts = [totals[0], bench.Counts(3, 4, 2, 1), bench.Counts(0, 2, 0, 0)]
    other = random.sample(counts, len(counts))
    assert bench.micro(other) == bench.micro(counts)
    assert dataclasses.astuple(bench.macro(other)) == pytest.approx(dataclasses.astuple(bench.macro(counts)))


@settings(max_examples=50)
@given(GROUNDINGS, ENTITIES.filter(bool), st.data())
def test_a_right_box_more_never_lowers_recall(groundings, entities, data):
    entity = data.draw(st.sampled_from(entities))
    more = [*groundings, bench.Grounding("it", np.asarray([entity.box]))]
    before, after = (bench.match(some, entities) for some in (groundings, more))
    verdicts = all_right(after)
    lower, higher = (bench.count(some, entities, verdicts) for some in (before, after))
    assert higher.recall >= lower.recall and higher.precision >= lower.precision
    assert higher.tp_pred == lower.tp_pred + 1


@settings(max_examples=50)
@given(GROUNDINGS, ENTITIES)
def test_deduplication_keeps_the_best_box_of_each_entity(groundings, entities):
    every = bench.match(groundings, entities)
    kept = bench.match(groundings, entities, deduplicate=True)
    verdicts = all_right(every)
    full, once = (bench.count(some, entities, verdicts) for some in (every, kept))
    assert once.tp_gt == full.tp_gt and once.tp_pred == len(set(verdicts))
    assert full.n_pred - once.n_pred == full.tp_pred - once.tp_pred
    best = {}
    for r in every:
        if r.entity:
            best[r.phrase, r.entity.id] = max(r.iou, best.get((r.phrase, r.entity.id), 0))
    assert {(r.phrase, r.entity.id): r.iou for r in kept if r.entity} == best


def run(tmp_path, *options, predictions=None):
    out = tmp_path / "out"
    given_ = () if predictions is None else ("--predictions", str(predictions))
    main(
        [
            *("eval", "grounding-bench", "--questions", str(files.questions(tmp_path))),
            *("--annotations", str(files.INSTANCES), "--out", str(out), *given_, *map(str, options)),
        ]
    )
    return json.loads((out / "scores.json").read_text())


def micro(scores, table="Scores") -> tuple:
    row = scores["tables"][table][0]
    return row["precision"], row["recall"], row["F1"]


def test_a_perfect_predictor_has_all_and_a_blind_one_nothing(tmp_path):
    path = tmp_path / "p.jsonl"
    scores = run(tmp_path, predictions=files.write_predictions(path, files.predict(lambda box, _: [box])))
    assert micro(scores) == (1, 1, 1) and scores["tables"]["Scores"][2]["F1"] == 1
    (counts,) = scores["tables"]["Counts"]
    things = [thing for image in files.COCO["images"] for thing in files.things(image)]
    assert counts["entities"] == counts["boxes"] == len(things) == 45  # of 46, one is a crowd
    assert all(row["recall"] == row["precision"] == 1 for row in scores["tables"]["Categories"])
    assert sum(row["entities"] for row in scores["tables"]["Categories"]) == 45
    assert scores["settings"]["model"] == "toy" and scores["settings"]["threshold"] == 0.2
    scores = run(tmp_path, predictions=files.write_predictions(path, files.predict(lambda box, _: [])))
    assert micro(scores) == (0, 0, 0) and scores["tables"]["Counts"][0]["entities"] == 45


def test_a_guessing_predictor_is_near_the_floor(tmp_path):
    path = files.write_predictions(tmp_path / "p.jsonl", files.predict(files.guess(0)))
    precision, recall, f1 = micro(run(tmp_path, predictions=path))
    assert max(precision, recall, f1) < 0.1


def test_the_wrong_things_are_wrong_even_in_perfect_boxes(tmp_path):
    predictions = files.predict(lambda box, _: [box])
    for number, prediction in enumerate(predictions):
        phrases = tuple(dataclasses.replace(p, text="x" * len(p.text)) for p in prediction.phrases)
        text = prediction.text
        for phrase in phrases:
            text = text[: phrase.span[0]] + phrase.text + text[phrase.span[1] :]
        predictions[number] = dataclasses.replace(prediction, phrases=phrases, text=text)
    path = files.write_predictions(tmp_path / "p.jsonl", predictions)
    assert micro(run(tmp_path, predictions=path)) == (0, 0, 0)


def test_thresholds_are_runs_without_the_boxes_below(tmp_path):
    rng = np.random.default_rng(1)

    def boxes(box, image):
        return [box, files.guess(int(rng.integers(1e6)))(box, image)[0]]

    predictions = files.predict(boxes, lambda n: sorted(rng.uniform(0.2, 1, n).round(3), reverse=True))
    path = files.write_predictions(tmp_path / "p.jsonl", predictions)
    levels = (0.2, 0.5, 0.8)
    swept = run(tmp_path, "--thresholds", *levels, predictions=path)["tables"]
    for level, row in zip(levels, swept["Thresholds"], strict=True):
        single = files.write_predictions(tmp_path / "one.jsonl", [cut(p, level) for p in predictions])
        alone = run(tmp_path, predictions=single)
        assert (row["precision"], row["recall"], row["F1"]) == micro(alone)
        assert row["boxes"] == alone["tables"]["Counts"][0]["boxes"]
    assert len({row["boxes"] for row in swept["Thresholds"]}) == 3


def test_records_of_the_original_are_scored_too(tmp_path, capsys):
    shifted = files.predict(lambda box, image: [box, [0, 0, image["width"], image["height"]]])
    records = [json.dumps(record_of(prediction)._asdict()) for prediction in shifted]
    path = files.write_lines(tmp_path / "records.jsonl", records)
    of_records = run(tmp_path, "--records", path)
    of_predictions = run(tmp_path, predictions=files.write_predictions(tmp_path / "p.jsonl", shifted))
    assert micro(of_records) == micro(of_predictions) and micro(of_records)[1] == 1
    with pytest.raises(SystemExit):
        run(tmp_path, "--records", path, "--thresholds", "0.5")
    assert "has no scores" in capsys.readouterr().err


def test_verdicts_are_kept_and_can_be_given_again(tmp_path, capsys):
    path = files.write_predictions(tmp_path / "p.jsonl", files.predict(lambda box, _: [box]))
    run(tmp_path, predictions=path)
    kept = [
        json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().split("\n") if line
    ]
    assert len(kept) == 45 and all(verdict["correct"] for verdict in kept)
    kept[0]["correct"] = False
    file = files.write_lines(tmp_path / "v.jsonl", kept[:-1])  # one is wrong, one is not judged
    capsys.readouterr()
    scores = run(tmp_path, "--verdicts", file, predictions=path)
    assert micro(scores)[:2] == pytest.approx((43 / 45, 43 / 45))
    assert "1 pairs of phrase and entity have no verdict" in capsys.readouterr().out
    assert scores["settings"]["judge"] == "verdict file"


def test_only_the_questions_of_a_category_count(tmp_path, capsys):
    predictions = files.predict(lambda box, _: [box])
    other = dataclasses.replace(predictions[0], question_id="other", phrases=())
    path = files.write_predictions(tmp_path / "p.jsonl", [*predictions, other])
    assert micro(run(tmp_path, predictions=path)) == (1, 1, 1)
    precision, recall, _ = micro(run(tmp_path, "--category", "all", predictions=path))
    assert precision == 1 and recall < 1
    assert micro(run(tmp_path, "--category", "conv", predictions=path)) == (0, 0, 0)
    assert run(tmp_path, "--limit", 2, predictions=path)["tables"]["Counts"][0]["entities"] == 23


def test_the_worst_answers_are_drawn(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for image in files.COCO["images"]:
        PIL.Image.new("RGB", (image["width"], image["height"])).save(photos / image["file_name"])
    path = files.write_predictions(tmp_path / "p.jsonl", files.predict(files.guess(2)))
    run(tmp_path, "--images", photos, predictions=path)
    drawn = sorted((tmp_path / "out" / "worst").glob("*.png"))
    assert len(drawn) == 6
    with PIL.Image.open(drawn[0]) as picture:
        assert len(picture.getcolors(10**6)) > 10
    page = (tmp_path / "out" / "report.md").read_text()
    assert "not found: " in page and "stop sign" in page


def spoiled(change):
    """The lines of good predictions, one of which is changed."""
    lines = [json.loads(line) for line in map(files.to_line, files.predict(lambda box, _: [box]))]
    change(lines)
    return lines


def set_box(box):
    def change(lines):
        lines[1]["phrases"][0]["boxes"] = [box]

    return change


def set_field(name, value):
    def change(lines):
        lines[1][name] = value

    return change


def add(row):
    return lambda lines: lines.insert(1, row)


RLE = {"size": [5, 5], "counts": "0i0"}
OTHER = files.COCO["images"][2]["file_name"]
FAULTS = {
    "NaN": (set_box([0, 0, float("nan"), 5]), "line 2: phrase 1: boxes must be finite"),
    "outside": (set_box([0, 0, 9999, 5]), "line 2: phrase 1: box .* lies outside"),
    "round": (set_box([9, 9, 5, 5]), "line 2: phrase 1: boxes: box .* turned round"),
    "mask": (
        lambda lines: lines[1]["phrases"][0].update(masks=[RLE]),
        "line 2: phrase 1: mask 1 is 5 high and 5 wide",
    ),
    "twice": (set_field("question_id", 0), "line 2: question 0 was answered before, in .*line 1"),
    "unknown": (set_field("question_id", 99), "line 2: question 99 is none of those asked"),
    "picture": (set_field("image", OTHER), f"line 2: question 1 is about the picture .*, but .*{OTHER}"),
    "size": (
        set_field("size", [1000, 1000]),
        "line 2: the picture is 1000 x 1000 pixels, but in .*640 x 427",
    ),
    "blank": (add(""), "line 2 is blank"),
    "list": (add([1, 2]), "line 2 must be an object"),
    "missing": (lambda lines: lines.pop(), "1 of 6 questions have no answer, first 5"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_predictions_end_with_one_line(fault, tmp_path, capsys):
    change, message = FAULTS[fault]
    path = files.write_lines(tmp_path / "p.jsonl", spoiled(change))
    with pytest.raises(SystemExit):
        run(tmp_path, predictions=path)
    one_line(capsys, message)
    assert not (tmp_path / "out").exists()


def one_line(capsys, message) -> None:
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and not any(word in error for word in ("NoneType", "indices", "Traceback"))
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("", "questions.jsonl, line 1 is blank"),
        ([], "line 1 must be an object"),
        ({"question_id": 1}, "line 1 has no image, text"),
        ({"question_id": 0, "image": "x.jpg", "text": ""}, "line 2: question 0 stands in .*line 1 already"),
        ({"question_id": 9, "image": "000000000001.jpg", "text": "", "category": "detail"}, "is not in"),
    ],
)
def test_faulty_questions(row, message, tmp_path, capsys):
    good = files.questions(tmp_path).read_text()
    path = files.write_lines(tmp_path / "questions.jsonl", [row, *good.split("\n")[:-1]])
    predictions = files.predict(lambda box, _: [box])
    if isinstance(row, dict) and row.get("question_id") == 9:
        predictions.append(dataclasses.replace(predictions[0], question_id=9, image="000000000001.jpg"))
    found = files.write_predictions(tmp_path / "p.jsonl", predictions)
    options = ["--questions", str(path), "--annotations", str(files.INSTANCES), "--predictions", str(found)]
    with pytest.raises(SystemExit):
        main(["eval", "grounding-bench", *options])
    one_line(capsys, message)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("[0.5,0.2,0.1,0.4]", "line 1: .*turned round"),
        ("[nan,0,1,1]", "line 1: .*finite"),
        ("[12.0,15.0,200.0,300.0]", "line 1: box .*lies outside"),
        ("[1.1,0.1,1.3,0.2]", "line 1: box .*lies outside"),
    ],
)
def test_faulty_records(box, message, tmp_path, capsys):
    records = [record_of(p)._asdict() for p in files.predict(lambda box, _: [box])]
    first = records[0]["boxes"][0]
    records[0]["boxes"][0] = box
    records[0]["text_boxes"] = records[0]["text_boxes"].replace(first, box, 1)
    path = files.write_lines(tmp_path / "r.jsonl", records)
    with pytest.raises(SystemExit):
        run(tmp_path, "--records", path)
    one_line(capsys, message)


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        ({"question_id": 0, "phrase_index": -1, "gt_id": 1, "correct": True}, "line 1: phrase_index must"),
        (
            {"question_id": 0, "phrase_index": 0, "gt_id": 1, "correct": True},
            "line 1: gt_id 1 is no annotation",
        ),
        ({"question_id": 77, "phrase_index": 0, "gt_id": 1, "correct": True}, "question 77 is none of those"),
        ({"question_id": 0, "phrase_index": 0, "gt_id": 1, "correct": 1}, "line 1: correct must be true or"),
        ({"question_id": 0}, "line 1 has no phrase_index, gt_id, correct"),
        ([], "line 1 must be an object"),
    ],
)
def test_faulty_verdicts(verdict, message, tmp_path, capsys):
    predictions = files.write_predictions(tmp_path / "p.jsonl", files.predict(lambda box, _: [box]))
    path = files.write_lines(tmp_path / "v.jsonl", [verdict])
    with pytest.raises(SystemExit):
        run(tmp_path, "--verdicts", path, predictions=predictions)
    one_line(capsys, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--thresholds", "0.1"), "line 1: --thresholds 0.1 is below 0.2"),
        (("--thresholds", "1.5"), "within 0 and 1"),
        (("--min-iou", "0"), "--min-iou 0.0 must be above 0"),
        (("--category", "poem"), "no question is of the category 'poem'; there are conv, detail"),
        (("--records", "r.jsonl"), "give one of them"),
        (("--dry-run",), "name one with --judge.model"),
        (("--limit", "0"), "--limit 0 must be at least 1"),
    ],
)
def test_options_that_make_no_sense(options, message, tmp_path, capsys):
    path = files.write_predictions(tmp_path / "p.jsonl", files.predict(lambda box, _: [box]))
    with pytest.raises(SystemExit):
        run(tmp_path, *options, predictions=path)
    one_line(capsys, message)


def test_a_checkpoint_is_asked_only_what_counts(tmp_path, monkeypatch, capsys):
    photos = tmp_path / "val2014"
    photos.mkdir()
    for image in files.COCO["images"]:
        PIL.Image.new("RGB", (image["width"], image["height"])).save(
            photos / f"COCO_val2014_{image['file_name']}"
        )
    seen = []

    def predictions_for(running, questions, **options):
        seen.extend(questions)
        return list(zip(questions, files.predict(lambda box, _: [box]), strict=True))

    monkeypatch.setattr("lgjax.eval.run.predictions_for", predictions_for)
    assert micro(run(tmp_path, "--checkpoint", "model", "--images", tmp_path)) == (1, 1, 1)
    assert [question.id for question in seen] == list(range(6))
    assert {question.text for question in seen} == {"Describe it."}
    assert all(question.path.is_file() and question.extra == {"category": "detail"} for question in seen)
    with pytest.raises(SystemExit):
        run(tmp_path, "--checkpoint", "model")
    one_line(capsys, "--checkpoint needs --images DIR")


def test_faulty_annotations_and_missing_pictures(tmp_path, capsys):
    path = files.write_predictions(tmp_path / "p.jsonl", files.predict(lambda box, _: [box]))
    with pytest.raises(SystemExit):
        run(tmp_path, "--images", tmp_path, predictions=path)
    one_line(capsys, "questions.jsonl, line 1: there is no picture .*000000000544.jpg")
    for change, message in (
        ({"category_id": 999}, "annotation .* is of no category of the file"),
        ({"bbox": [1, 2, float("nan"), 4]}, "picture '.*' has an annotation without a box"),
    ):
        coco = {**files.COCO, "annotations": [{**files.COCO["annotations"][0], **change}]}
        (tmp_path / "coco.json").write_text(json.dumps(coco))
        with pytest.raises(SystemExit):
            run(tmp_path, "--annotations", tmp_path / "coco.json", predictions=path)
        one_line(capsys, message)


def test_nothing_to_score_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path)
    one_line(capsys, "name either a checkpoint .* or predictions")
