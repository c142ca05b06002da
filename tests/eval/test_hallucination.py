"""POPE and CHAIR: against counting, on small files, and faults."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgjax.cli import main
from lgjax.eval import chair, pope
from tests.eval import bench_files as files

LABELS = st.sampled_from(["yes", "no"])
CLASSES = st.sampled_from(["cat", "dog", "cup", "tv"])


@given(st.lists(st.tuples(LABELS, LABELS)), st.randoms())
def test_pope_against_counting(pairs, random):
    scores = pope.score([answer for answer, _ in pairs], [label for _, label in pairs])
    mixed = random.sample(pairs, len(pairs))
    assert scores == pope.score([answer for answer, _ in mixed], [label for _, label in mixed])
    assert scores.count == len(pairs)
    assert scores.accuracy * len(pairs) == pytest.approx(sum(a == b for a, b in pairs))
    assert scores.yes_ratio * len(pairs) == pytest.approx(sum(a == "yes" for a, _ in pairs))
    shares = scores.precision, scores.recall
    assert 0 <= min(shares) <= scores.f1 + 1e-9 <= max(shares) + 2e-9 <= 1 + 2e-9


@given(st.lists(st.tuples(st.lists(CLASSES), st.sets(CLASSES)), min_size=1), st.randoms())
def test_chair_against_counting(rows, random):
    captions = [chair.caption(mentioned, there) for mentioned, there in rows]
    scores = chair.score(captions)
    wrong = [name not in there for mentioned, there in rows for name in mentioned]
    assert scores.chair_i == pytest.approx(sum(wrong) / len(wrong) if wrong else 0)
    bad = [any(name not in there for name in mentioned) for mentioned, there in rows]
    assert scores.chair_s == pytest.approx(sum(bad) / len(bad))
    assert chair.score(random.sample(captions, len(captions))) == scores


def run(tmp_path, *options) -> dict:
    main(["eval", *map(str, options), "--out", str(tmp_path / "out")])
    return json.loads((tmp_path / "out" / "scores.json").read_text())


def pope_files(tmp_path, answers, **changes):
    rows = [
        {"question_id": i, "image": "a.jpg", "text": "Is there a cat?", "label": label, "category": kind}
        for i, (label, kind) in enumerate([("yes", "random"), ("no", "random"), ("no", "popular")])
    ]
    rows[1].update(changes)
    given_ = [{"question_id": i, "text": text} for i, text in enumerate(answers)]
    return (
        *("--questions", files.write_lines(tmp_path / "q.jsonl", rows)),
        *("--predictions", files.write_lines(tmp_path / "a.jsonl", given_)),
    )


def test_pope_with_a_row_for_each_setting(tmp_path):
    options = pope_files(tmp_path, ["Yes.", "There is one.", "No, there is not."])
    rows = run(tmp_path, "pope", *options)["tables"]["Scores"]
    assert [row["questions"] for row in rows] == ["all", "random", "popular"]
    assert (rows[0]["TP"], rows[0]["FP"], rows[0]["TN"], rows[0]["FN"]) == (1, 1, 1, 0)
    assert rows[1]["accuracy"] == 0.5 and rows[2]["accuracy"] == 1


@pytest.mark.parametrize("label", ["Yes", None, 1])
def test_pope_needs_labels(label, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "pope", *pope_files(tmp_path, ["Yes"] * 3, label=label))
    assert re.search("q.jsonl, line 2: label must be yes or no, found", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def describe(tmp_path, text_of) -> tuple:
    rows = [{"question_id": i, "text": text_of(image)} for i, image in enumerate(files.COCO["images"])]
    return (
        *("chair", "--questions", files.questions(tmp_path), "--annotations", files.INSTANCES),
        *("--predictions", files.write_lines(tmp_path / "a.jsonl", rows)),
    )


def test_chair_of_true_and_of_false_descriptions(tmp_path):
    true = run(tmp_path, *describe(tmp_path, names))
    assert true["tables"]["Scores"][0]["CHAIRi"] == true["tables"]["Scores"][0]["CHAIRs"] == 0
    assert true["tables"]["Scores"][0]["mentions"] == 46
    false = run(tmp_path, *describe(tmp_path, lambda image: f"A zebra. {names(image)}"))
    (row,) = false["tables"]["Scores"]
    assert (row["CHAIRi"], row["CHAIRs"]) == (pytest.approx(6 / 52), 1)
    assert {r["hallucinated"] for r in false["tables"]["The worst"]} == {"zebra"}
    (zebra,) = [r for r in false["tables"]["Classes"] if r["class"] == "zebra"]
    assert zebra["share"] == 1


def names(image) -> str:
    """All annotated things, the crowd too."""
    some = [files.NAMES[a["category_id"]] for a in files.COCO["annotations"] if a["image_id"] == image["id"]]
    return " and ".join(f"a {name}" for name in some)


def test_what_captions_tell_is_there_too(tmp_path):
    """The captions of one picture tell of a pizza, a book and a glass of wine, of another of a plant."""
    told = ("--captions", files.CAPTIONS)
    options = describe(tmp_path, lambda image: "A plant." if image["id"] == 525891 else "Nothing.")
    alone = run(tmp_path, *options)["tables"]["Scores"][0]
    both = run(tmp_path, *options, *told)["tables"]["Scores"][0]
    assert (alone["CHAIRi"], both["CHAIRi"], both["mentions"]) == (1, 0, 1)
