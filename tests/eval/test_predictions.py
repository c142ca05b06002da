"""Predictions: there and back, every fault one line with its place, the original's records."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lgjax.data import masks
from lgjax.eval import predictions, records
from lgjax.eval.predictions import PhrasePrediction, Prediction
from lgjax.text.markup import filter_empty_boxes, format_record, unresize_boxes
from tests.parity.cases import metric_cases

HEIGHT, WIDTH = 6, 8


def bitmap(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.5


def prediction(**changes) -> Prediction:
    phrase = PhrasePrediction(
        "a dog",
        (2, 7),
        np.asarray([[0, 1.5, 8, 6], [1, 1, 2, 2]]),
        np.asarray([0.75, 0.25]),
        (masks.encode(bitmap(0)), masks.encode(bitmap(1))),
    )
    nothing = PhrasePrediction("", (7, 7), np.zeros((0, 4)), np.zeros(0), None)
    fields = {
        "question_id": 7,
        "image": "a.jpg",
        "size": (HEIGHT, WIDTH),
        "text": "I a dog.\u2028Is it?",
        "phrases": (phrase, nothing),
        "settings": {"threshold": 0.2},
        **changes,
    }
    return Prediction(**fields)


def test_there_and_back():
    back = predictions.from_line(predictions.to_line(prediction(extra={"category": "conv"})), "f, line 1")
    want = prediction()
    assert (back.question_id, back.image, back.size, back.text) == (7, "a.jpg", want.size, want.text)
    assert back.settings == want.settings and back.extra == {"category": "conv"} and back.record is None
    assert back.where == "f, line 1"
    for got, phrase in zip(back.phrases, want.phrases, strict=True):
        assert (got.text, got.span) == (phrase.text, phrase.span)
        np.testing.assert_array_equal(got.boxes, phrase.boxes)
        np.testing.assert_array_equal(got.scores, phrase.scores)
    np.testing.assert_array_equal(back.phrases[0].bitmaps(back.size)[1], bitmap(1))
    assert back.phrases[1].masks is None and back.phrases[1].bitmaps(back.size).shape == (0, HEIGHT, WIDTH)


def test_other_tools_read_the_masks():
    phrase = json.loads(predictions.to_line(prediction()))["phrases"][0]
    np.testing.assert_array_equal(coco_mask.decode(phrase["masks"][0]), bitmap(0))


def write(path, *lines: str):
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def test_a_file_and_a_folder_of_shards(tmp_path):
    lines = [predictions.to_line(prediction(question_id=i)) for i in range(5)]
    file = write(tmp_path / "p.jsonl", *lines)
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder / "shard-00001.jsonl", *lines[3:])
    write(folder / "shard-00000.jsonl", *lines[:3])
    (folder / "run.json").write_text("{}")
    for found in (predictions.read(file), predictions.read(folder)):
        assert [p.question_id for p in found] == [0, 1, 2, 3, 4]
        assert found[0].text == prediction().text  # U+2028 ends no line


BOX = [0.0, 1.5, 8.0, 6.0]
FAULTS = [
    ([], "must be an object"),
    (None, "must be an object"),
    ({"question_id": [1]}, "question_id must be"),
    ({"question_id": True}, "question_id must be"),
    ({"size": [6]}, "size must be 2 numbers"),
    ({"size": [6, 0]}, "size"),
    ({"size": [6.5, 8]}, "whole"),
    ({"text": None}, "text must be"),
    ({"phrases": {}}, "phrases must be a list"),
    ({"phrases": [None]}, "phrase 1 must be an object"),
    ({"settings": []}, "settings must be"),
    ({"setting": {}}, "'setting'"),
    ({"extra": 3}, "extra must be"),
    ({"record": {"text": ""}}, "record has no"),
    ({"phrases.0.span": [2, 90]}, "span .2, 90."),
    ({"phrases.0.span": [7, 2]}, "span"),
    ({"phrases.0.span": [0, 5]}, "span holds"),
    ({"phrases.0.boxes.0": [1, 2, 3]}, "4 numbers"),
    ({"phrases.0.boxes.0": [1, 2, 3, "4"]}, "must be numbers"),
    ({"phrases.0.boxes.0": [1, 2, 3, float("nan")]}, "finite"),
    ({"phrases.0.boxes.0": [1, 2, 3, float("inf")]}, "finite"),
    ({"phrases.0.boxes.0": [3, 2, 1, 4]}, "turned round"),
    ({"phrases.0.boxes.0": [0, 0, 9.5, 6]}, "outside of the picture of 8 x 6"),
    ({"phrases.0.boxes.0": [-2, 0, 3, 6]}, "outside"),
    ({"phrases.0.boxes": [BOX]}, "1 boxes, 2 scores, 2 masks"),
    ({"phrases.0.scores": [0.25, 0.75]}, "best first"),
    ({"phrases.0.scores": [1.5, 0.25]}, "within 0 and 1"),
    ({"phrases.0.masks.0": None}, "mask 1 must be an object"),
    ({"phrases.0.masks.1": masks.encode(np.ones((5, 5), bool))}, "mask 2 is 5 high and 5 wide"),
    ({"phrases.0.masks.1": {"size": [6, 8], "counts": "0000000"}}, "run-length"),
    ({"phrases.0.masks.1": {"size": [6, 8], "counts": "é~"}}, "run-length"),
    ({"phrases.0.masks.1": {"size": [6, 8], "counts": [48]}}, "must be a text"),
]


def faulty(changes) -> str:
    fields = json.loads(predictions.to_line(prediction()))
    if not isinstance(changes, dict):
        return json.dumps(changes)
    for path, value in changes.items():
        place = fields
        *parents, last = path.split(".")
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[int(last) if last.isdigit() else last] = value
    return json.dumps(fields)


@pytest.mark.parametrize(("changes", "message"), FAULTS, ids=lambda value: str(value)[:40])
def test_every_fault_is_one_line_with_its_place(changes, message, tmp_path):
    good = predictions.to_line(prediction(question_id="other"))
    path = write(tmp_path / "p.jsonl", good, faulty(changes))
    with pytest.raises(ValueError, match=message) as caught:
        predictions.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}, line 2") and "\n" not in text
    assert not any(word in text for word in ("NoneType", "dict", "indices", "subscript", "None"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 2 is blank"),
        ("{", "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is nested too deeply"),
        (
            predictions.to_line(prediction(question_id=1)),
            "line 2: question 1 was answered before, in .*line 1",
        ),
    ],
    ids=["blank", "json", "deep", "repeated"],
)
def test_faulty_lines(line, message, tmp_path):
    last = predictions.to_line(prediction(question_id=2))
    path = write(tmp_path / "p.jsonl", predictions.to_line(prediction(question_id=1)), line, last)
    with pytest.raises(ValueError, match=message):
        predictions.read(path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        predictions.read(tmp_path / "no.jsonl")
    with pytest.raises(FileNotFoundError, match="no predictions in the folder"):
        predictions.read(tmp_path)


class Question:
    def __init__(self, number, image="a.jpg"):
        self.id, self.image = number, image


def test_predictions_meet_their_questions():
    found = [prediction(question_id=2), prediction(question_id=1)]
    pairs = predictions.match(found, [Question(1), Question(2)])
    assert [(q.id, p and p.question_id) for q, p in pairs] == [(1, 1), (2, 2)]
    pairs = predictions.match(found, [Question(1), Question(3), Question(2)], missing=True)
    assert [p and p.question_id for _, p in pairs] == [1, None, 2]
    with pytest.raises(ValueError, match="1 of 3 questions have no prediction, first 3"):
        predictions.match(found, [Question(1), Question(3), Question(2)])
    placed = [prediction(question_id=2, where="f, line 9")]
    with pytest.raises(ValueError, match="f, line 9: question 2 is none of those asked"):
        predictions.match(placed, [Question(1)], missing=True)
    with pytest.raises(ValueError, match=r"f, line 9: .*'b.jpg'.*'a.jpg'"):
        predictions.match(placed, [Question(2, "b.jpg")])


def test_cut_is_a_higher_threshold():
    cut = predictions.cut(prediction(), 0.25)
    assert [len(p.boxes) for p in cut.phrases] == [1, 0] and len(cut.phrases[0].masks or ()) == 1
    assert cut.settings == {"threshold": 0.25}
    assert [len(p.boxes) for p in predictions.cut(prediction(), None).phrases] == [1, 0]
    assert [len(p.boxes) for p in predictions.cut(prediction(), 0.2).phrases] == [2, 0]
    with pytest.raises(ValueError, match=r"no threshold 0\.1 .* its threshold was 0\.2"):
        predictions.cut(prediction(), 0.1)
    with pytest.raises(ValueError, match="only the best query"):
        predictions.cut(prediction(settings={"threshold": None}), 0.1)


def record_line(record) -> str:
    return json.dumps(record._asdict())


@pytest.mark.parametrize("case", metric_cases("grounded_output_record"), ids=lambda case: case["id"])
def test_records_of_the_original(case, tmp_path):
    """The record is kept byte for byte, and read back it holds the original's boxes."""
    given_, want = case["inputs"], case["expected"]["record"]
    groups = [np.asarray(group, np.float32) for group in given_["boxes_padded_normalised_xyxy"]]
    text, groups = filter_empty_boxes(given_["text"], groups)
    groups = unresize_boxes(groups, given_["width"], given_["height"])
    record = format_record(text, groups, given_["question_id"])
    kept = predictions.from_line(predictions.to_line(prediction(record=record)), "f, line 1")
    assert records.record_of(kept)._asdict() == want
    (answer,) = records.read_records(write(tmp_path / "r.jsonl", json.dumps(want)))
    assert answer.question_id == want["question_id"] and answer.text == want["text"]
    assert len(answer.boxes) == len(case["expected"]["unpadded_boxes"])
    for boxes, unpadded in zip(answer.boxes, case["expected"]["unpadded_boxes"], strict=True):
        np.testing.assert_allclose(boxes, unpadded, atol=6e-4)


def test_the_record_of_another_programs_prediction():
    phrase = prediction().phrases[0]
    text = "Here a dog runs."
    placed = PhrasePrediction("a dog", (5, 10), phrase.boxes, phrase.scores, None)
    lost = PhrasePrediction("Here", (0, 4), np.zeros((0, 4)), np.zeros(0), None)
    record = records.record_of(prediction(text=text, phrases=(lost, placed)))
    assert record.boxes == ["[0.0,0.25,1.0,1.0;0.125,0.167,0.25,0.333]"]
    assert record.text_boxes == f" Here a dog{record.boxes[0]} runs."
    assert record.text == " Here a dog runs."


@settings(max_examples=30)
@given(st.lists(st.text("ab ", min_size=1, max_size=5), min_size=1, max_size=4), st.randoms())
def test_ends_of_phrases_in_records(tmp_path_factory, words, random):
    boxes = [f"[0.1,0.2,0.{random.randint(1, 9)},0.9]" for _ in words]
    plain = "".join(f" {word}" for word in words)
    boxed = "".join(f" {word}{box}" for word, box in zip(words, boxes, strict=True))
    line = json.dumps({"question_id": 1, "text": plain, "text_boxes": boxed, "boxes": boxes})
    (answer,) = records.read_records(write(tmp_path_factory.mktemp("r") / "r.jsonl", line))
    ends = np.cumsum([len(word) + 1 for word in words])
    assert list(answer.ends) == ends.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": ["[0.5,0.2,0.1,0.4]"]}, "turned round"),
        ({"boxes": ["[0.5,0.2,0.1]"]}, "4 numbers"),
        ({"boxes": ["[a,b,c,d]"]}, "x0,y0,x1,y1"),
        ({"boxes": ["[nan,0,1,1]"]}, "finite"),
        ({"boxes": [[0, 0, 1, 1]]}, "must be a text"),
        ({"boxes": ["[0,0,1,1]"]}, "not at all"),
        ({"text": "Another"}, "is not the text"),
        ({"boxes": None}, "must be a list"),
    ],
)
def test_faulty_records(changes, message, tmp_path):
    good = {"question_id": 1, "text": " A dog", "text_boxes": " A dog[0.1,0.2,0.3,0.4]"}
    good["boxes"] = ["[0.1,0.2,0.3,0.4]"]
    path = write(tmp_path / "r.jsonl", json.dumps(good), json.dumps({**good, "question_id": 2, **changes}))
    with pytest.raises(ValueError, match=message) as caught:
        records.read_records(path)
    assert str(caught.value).startswith(f"{path}, line 2")


def test_a_run_whose_threshold_is_no_number_is_not_cut():
    with pytest.raises(ValueError, match=r"^f, line 1: threshold of settings must be a number or null"):
        predictions.cut(prediction(settings={"threshold": "low"}, where="f, line 1"), 0.5)
