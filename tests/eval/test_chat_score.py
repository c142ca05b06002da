"""LLaVA-Bench: asking for reviews, reading them back, both summaries, faults."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgjax.cli import main
from lgjax.eval import chat_score
from tests.eval.bench_files import write_lines
from tests.llm.endpoint import serve

SCORES = st.tuples(st.integers(1, 10), st.integers(1, 10)).map(lambda pair: (float(pair[0]), float(pair[1])))


@given(SCORES, st.text())
def test_scores_on_the_first_line_are_found(pair, text):
    for line in ("{:g} {:g}", "{:g},{:g}"):
        assert chat_score.parse(line.format(*pair) + "\n" + text) == pair


@given(st.text())
def test_any_review_can_be_read(text):
    found = chat_score.parse(text)
    assert found == chat_score.FAILED or np.isfinite(found).all()


@given(st.lists(st.one_of(SCORES, st.just(chat_score.FAILED)), min_size=1))
def test_summaries(pairs):
    good = [pair for pair in pairs if pair != chat_score.FAILED]
    default = chat_score.summarise(pairs)
    assert default == chat_score.Summary(**{**vars(chat_score.summarise(good)), "failed": default.failed})
    assert (default.reviews, default.failed) == (len(good), len(pairs) - len(good))
    compat = chat_score.summarise(pairs, compat=True)
    means = np.mean(pairs, 0)
    assert (compat.mean_reference, compat.mean_model) == pytest.approx(means, abs=6e-4)
    if good:
        assert default.relative == pytest.approx(100 * np.divide(*np.mean(good, 0)[::-1]), abs=0.15, rel=1e-3)
    else:
        assert default.relative is None


CATEGORIES = ("conv", "detail", "complex")
REVIEWS = {"conv": "8 6\nGood.", "detail": "8, 9\nBoth.", "complex": "10,5\nNo."}


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[str]:
    """The options of a review of six answers about two pictures."""
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    rows = [
        {"question_id": 3 * p + k, "image": f"{p:012d}.jpg", "text": f"{name}?", "category": name}
        for p in range(2)
        for k, name in enumerate(CATEGORIES)
    ]
    contexts = [
        {
            "image": f"COCO_val2014_{p:012d}.jpg",
            "captions": ["A cat."],
            "instances": [{"category": "cat", "bbox": [0.1, 0.2, 0.3, 0.4]}],
        }
        for p in range(2)
    ]
    answers = [{"question_id": row["question_id"], "text": f"  answer {row['question_id']}"} for row in rows]
    best = [{**row, "text": f"best {row['question_id']}"} for row in answers]
    names = {"questions": rows, "context": contexts, "predictions": answers, "reference": best}
    options = ["eval", "chat-score", "--reviewer.cache", str(tmp_path / "cache"), "--reviewer.model", "m"]
    for name, lines in names.items():
        options += [f"--{name}", str(write_lines(tmp_path / f"{name}.jsonl", lines))]
    return options


def reviewer(body: dict) -> str:
    assert body["temperature"] == 0.2 and body["max_tokens"] == 1024
    text = body["messages"][-1]["content"]
    number = re.search(r"best (\d)", text)[1]
    assert (
        text.index(f"best {number}") < text.index(f"  answer {number}")
        and "cat: [0.1, 0.2, 0.3, 0.4]" in text
    )
    return REVIEWS[re.search(r"(\w+)\?", text)[1]]


def rows_of(folder) -> dict:
    rows = json.loads((folder / "scores.json").read_text())["tables"]["Scores"]
    return {row["questions"]: row for row in rows}


def test_reviews_are_asked_for_kept_and_summed_up(asked, tmp_path, capsys):
    out = tmp_path / "out"
    with serve(reviewer) as endpoint:
        main([*asked, "--reviewer.endpoint", endpoint.url, "--out", str(out)])
        assert sum(endpoint.answered.values()) == 6
    rows = rows_of(out)
    assert rows["all"]["relative %"] == "61.1" and rows["all"]["failed"] == 2  # (6 + 5) / (8 + 10)
    assert rows["conv"]["relative %"] == "75.0" and rows["detail"]["relative %"] is None
    kept = [json.loads(line) for line in (out / "reviews.jsonl").read_text().split("\n") if line]
    assert [row["tuple"] for row in kept[:3]] == [[8, 6], [-1, -1], [10, 5]]
    assert set(kept[0]) >= {"id", "question_id", "answer1_id", "answer2_id", "category", "content", "tuple"}
    again = ["eval", "chat-score", "--reviews", str(out / "reviews.jsonl"), "--out", str(tmp_path / "again")]
    main(again)
    assert rows_of(tmp_path / "again") == rows
    main([*again, "--compat"])
    assert rows_of(tmp_path / "again")["all"]["relative %"] == "58.8"  # (12 - 2 + 10) / (16 - 2 + 20)
    main([*again, "--compat", "--ignore", "1", "--ignore", "4"])
    assert rows_of(tmp_path / "again")["all"]["relative %"] == "61.1"


def test_rules_of_your_own_and_a_dry_run(asked, tmp_path, capsys):
    rules = {name: {"role": "Assistant", "prompt": f"RULE {name}"} for name in CATEGORIES}
    (tmp_path / "rule.json").write_text(json.dumps(rules))
    seen = []
    with serve(lambda body: seen.append(body["messages"][-1]["content"]) or "9 9") as endpoint:
        options = [*asked, "--rules", str(tmp_path / "rule.json"), "--reviewer.endpoint", endpoint.url]
        main([*options, "--dry-run"])
        assert not seen and "6 requests to m" in capsys.readouterr().out
        main([*options, "--limit", "2"])
    assert len(seen) == 2 and all("Assistant 1" in text and "RULE " in text for text in seen)


def spoil(path, number: int, change: dict | str) -> None:
    lines = path.read_text().split("\n")
    lines[number] = change if isinstance(change, str) else json.dumps({**json.loads(lines[number]), **change})
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("file", "number", "change", "message"),
    [
        (
            "questions",
            0,
            {"image": "000000000009.jpg"},
            "questions.jsonl, line 1: no context for the picture",
        ),
        ("questions", 1, {"category": "poem"}, "line 2: no rule for the category 'poem'"),
        ("context", 1, {"image": "000000000000.jpg"}, "context.jsonl, line 2: a second line for the picture"),
        ("context", 1, {"instances": [{"category": "cat", "bbox": [1]}]}, "line 2: bbox must be 4 numbers"),
        ("context", 1, {"captions": [3]}, "line 2: captions must be a text"),
        ("reference", 2, {"question_id": 77}, "reference.jsonl, line 3: question 77 is none of those asked"),
        ("predictions", 2, {"text": None}, "predictions.jsonl, line 3: text must be a text"),
        ("predictions", 2, {"question_id": 1}, "line 3: question 1 was answered before, in .*line 2"),
        ("predictions", 2, "", "line 3 is blank"),
        ("predictions", 2, "[]", "line 3 must be an object"),
        ("predictions", 2, {"image": "b.jpg"}, "line 3: question 2 is about the picture .*'b.jpg'"),
    ],
)
def test_faulty_files(file, number, change, message, asked, tmp_path, capsys):
    spoil(tmp_path / f"{file}.jsonl", number, change)
    with pytest.raises(SystemExit):
        main([*asked, "--dry-run"])
    error = capsys.readouterr().err.strip()
    assert re.search(message, error) and "\n" not in error


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1}, "line 2 has neither tuple nor content"),
        ({"question_id": 0, "tuple": [1, 2]}, "line 2: question 0 was reviewed before, in .*line 1"),
        ({"question_id": 1, "tuple": [1]}, "line 2: tuple must be 2 numbers"),
        ({"question_id": 1, "tuple": [-1, 5]}, "line 2: tuple must be two scores, or -1 and -1"),
        ([], "line 2 must be an object"),
    ],
)
def test_faulty_reviews(row, message, tmp_path, capsys):
    path = write_lines(tmp_path / "r.jsonl", [{"question_id": 0, "content": "8 9\n"}, row])
    with pytest.raises(SystemExit):
        main(["eval", "chat-score", "--reviews", str(path)])
    error = capsys.readouterr().err.strip()
    assert re.search(message, error) and "\n" not in error


def test_options_that_do_not_fit(tmp_path, capsys):
    path = str(write_lines(tmp_path / "r.jsonl", [{"question_id": 0, "content": "8 9\n"}]))
    for options, message in (
        ((), "name --questions, --context"),
        (("--reviews", path, "--dry-run"), "leave out what asks for reviews"),
        (("--reviews", path, "--ignore", "5"), "no review of question '5'"),
    ):
        with pytest.raises(SystemExit):
            main(["eval", "chat-score", *options])
        assert message in capsys.readouterr().err
