"""Judges: words, a language model behind an endpoint that misbehaves, what asking would cost."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from lgjax.cli import main
from lgjax.eval import llm_judge
from lgjax.eval.bench_answers import begin_of
from lgjax.eval.embedding_judge import EmbeddingJudge
from lgjax.eval.grounding_bench import Entity, Grounding, TaggedAnswer, match
from lgjax.eval.judge import WordJudge
from lgjax.eval.mentions import GROUPS, OTHER_THINGS, Lexicon
from lgjax.llm.client import Stopped
from lgjax.llm.embeddings import embed
from lgjax.text.coco_names import SYNONYMS
from tests.eval import bench_files as files
from tests.llm.endpoint import Endpoint, serve

LEXICON = Lexicon.of(SYNONYMS, groups=True)


@pytest.mark.parametrize(
    ("phrase", "classes"),
    [
        ("a man on a horse", {"person"}),
        ("a man's horse", {"horse"}),
        ("a man and his two dogs", {"person", "dog"}),
        ("a trio of individuals", {"person"}),
        ("an orange cat", {"cat"}),
        ("oranges", {"orange"}),
        ("the hot dog", {"hot dog"}),
        ("train tracks", set()),
        ("the second", set()),
        ("", set()),
        ("fruits", {"apple", "banana", "orange"}),
    ],
)
def test_what_a_phrase_is_about(phrase, classes):
    assert LEXICON.meant(phrase) == classes


def test_the_lists_of_words_name_classes_of_coco():
    assert all(set(members) <= SYNONYMS.keys() for members in GROUPS.values())
    lexicon = Lexicon.of(SYNONYMS)
    assert not any(lexicon.mentions(f"{name} there") for name in OTHER_THINGS)
    assert all(name in LEXICON.meant(f"a {name}") for name in SYNONYMS)


def test_captions_mention_what_they_say():
    text = "Two women in orange shirts walk their dogs past the bus stop; a remote area, no bear."
    found = [mention.classes for mention in Lexicon.of(SYNONYMS).mentions(text)]
    assert found == [("person",), ("dog",), ("bear",)]
    assert Lexicon.of(["Space Ship"]).mentions("two space ships")[0].classes == ("Space Ship",)


ENTITIES = (
    Entity(11, "person", (0, 0, 10, 10)),
    Entity(12, "person", (20, 0, 30, 10)),
    Entity(13, "cup", (40, 20, 50, 40)),
)
TEXT = "A man and the other one hold a cup."


def answer(question_id: str | int = 7) -> TaggedAnswer:
    """A man, right; the other one, right, and a box on nothing; a cup, on the first man."""
    boxes = ([[0, 0, 10, 10]], [[20, 0, 30, 10], [60, 60, 70, 70]], [[0, 0, 10, 10]])
    spans = ((0, 5), (10, 23), (29, 34))
    groundings = tuple(
        Grounding(TEXT[slice(*span)], np.asarray(box, float), span)
        for span, box in zip(spans, boxes, strict=True)
    )
    references = tuple(match(groundings, ENTITIES))
    return TaggedAnswer(question_id, "a.jpg", (40, 100), TEXT, ENTITIES, groundings, references)


def test_words_judge_the_class_alone():
    (verdicts,) = WordJudge(LEXICON).judge([answer()])
    assert verdicts == {(0, 11): True, (1, 12): False, (2, 11): False}


def test_the_prompt_shows_things_and_tags():
    text = llm_judge.prompt(answer())
    assert "1. person [0.000, 0.000, 0.100, 0.250]" in text and "3. cup [0.400, 0.500, 0.500, 1.000]" in text
    assert "(A man)[P1: 1] and (the other one)[P2: 2] hold (a cup)[P3: 1]." in text


def test_tags_of_phrases_within_phrases():
    inner = Grounding("man", np.asarray([[0.0, 0, 10, 10]]), (2, 5))
    bare = Grounding("", np.asarray([[0.0, 0, 10, 10]]), (5, 5))
    outer = answer().groundings[0]
    groundings = (outer, inner, bare)
    nested = TaggedAnswer(
        1, "a.jpg", (40, 100), TEXT, ENTITIES, groundings, tuple(match(groundings, ENTITIES))
    )
    assert "(A (man)[P2: 1])[P1: 1]()[P3: 1] and the" in llm_judge.prompt(nested)


def test_replies_are_read_line_by_line():
    reply = "Sure!\nP1 1 yes\n- P2 2: No\nP3 1 yes, no\nP3 9 yes\nP4 1 yes\nP2 1 yes\nP1 thing 1 maybe"
    assert llm_judge.parse(reply, answer()) == {(0, 11): True, (1, 12): False, (2, 11): True}
    assert llm_judge.parse("I cannot tell.", answer()) == {}


def judged(body: dict) -> str:
    """Every pair is right, but for those of things that are chairs."""
    text = body["messages"][-1]["content"]
    names = dict(re.findall(r"^(\d+)\. ([\w ]+) \[", text, re.MULTILINE))
    pairs = [(p, n) for p, found in re.findall(r"\)\[P(\d+): ([\d, ]+)\]", text) for n in found.split(", ")]
    return "\n".join(f"P{p} {n} {'no' if names[n] == 'chair' else 'yes'}" for p, n in pairs)


def command(tmp_path, *options: str) -> list[str]:
    predictions = files.write_predictions(tmp_path / "p.jsonl", files.predict(lambda box, _: [box]))
    return [
        *("eval", "grounding-bench", "--questions", str(files.questions(tmp_path))),
        *("--annotations", str(files.INSTANCES), "--predictions", str(predictions)),
        *("--judge.cache", str(tmp_path / "cache"), "--judge.model", "a-model", *options),
    ]


def test_a_model_judges_through_an_endpoint_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    out = tmp_path / "out"
    with serve(judged, lambda body, times: "" if times else "429") as endpoint:
        where = ("--judge.endpoint", endpoint.url, "--out", str(out))
        main(command(tmp_path, *where))
        assert sum(endpoint.answered.values()) == 6 and endpoint.at_once == 0
        first = json.loads((out / "scores.json").read_text())
        main(command(tmp_path, *where))
        assert sum(endpoint.asked.values()) == 12  # each refused once, answered once; then from the cache
    chairs = sum(
        files.NAMES[thing["category_id"]] == "chair"
        for image in files.COCO["images"]
        for thing in files.things(image)
    )
    row = first["tables"]["Scores"][0]
    assert row["precision"] == row["recall"] == pytest.approx((45 - chairs) / 45)
    assert first["settings"]["judge"] == "model a-model"
    printed = capsys.readouterr().out
    assert "6 answers (60 + 30 tokens)" in printed and "0 answers (0 + 0 tokens), 6 from the cache" in printed


def test_a_dry_run_says_what_it_would_cost_and_asks_nothing(tmp_path, capsys):
    with serve(judged) as endpoint:
        prices = ("--judge.price-in", "1000", "--judge.price-out", "2000", "--dry-run")
        main(command(tmp_path, "--judge.endpoint", endpoint.url, *prices))
        assert not endpoint.asked
    printed = capsys.readouterr().out.replace("\n", " ")
    found = re.search(
        r"6 requests to a-model .* about ([\d,]+) tokens asked, at most ([\d,]+) .*, ([\d.]+) to", printed
    )
    asked, answered, money = (float(number.replace(",", "")) for number in found.groups())
    assert asked > 6 * 300 and answered == 6 * 64 + 12 * 45
    assert money == pytest.approx((asked * 1000 + answered * 2000) / 1e6, abs=0.01)
    assert "nothing was sent" in printed


def test_two_judges_and_no_key(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with pytest.raises(SystemExit):
        main(command(tmp_path, "--verdicts", "v.jsonl"))
    assert "different judges" in capsys.readouterr().err
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(SystemExit):
        main(command(tmp_path))
    assert "set OPENAI_API_KEY" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("  The man is here", "The man"),
        (" In front there is a clothing iron", "a clothing iron"),
        (" a bowl of the fruit", "a bowl of the fruit"),
        (" the sky, small birds", "small birds"),
        (" Birds", "Birds"),
        (" a dog  in a hat", "in a hat"),
    ],
)
def test_where_a_phrase_of_a_record_begins(text, phrase):
    end = text.index(phrase) + len(phrase)
    assert text[begin_of(text, 0, end) : end] == phrase


NEAR = {"person": (1.0, 0.0), "cup": (0.0, 1.0), "the other one": (0.9, 0.1), "A man": (0.0, 1.0)}


def vectors(texts):
    found = np.asarray([NEAR[text] for text in texts])
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


@pytest.mark.parametrize(("threshold", "right"), [(0.9, True), (0.999, False)])
def test_an_embedding_decides_where_words_do_not(threshold, right):
    """The other one is near to a person; a man is a person by words, whatever the embedding says."""
    judge = EmbeddingJudge(WordJudge(LEXICON), vectors, "toy", threshold)
    (verdicts,) = judge.judge([answer()])
    assert verdicts == {(0, 11): True, (1, 12): right, (2, 11): False}


class Embeddings(Endpoint):
    """Vectors by NEAR, in the wrong order; `wrong` leaves one out."""

    wrong = False

    def handle(self, handler):
        texts = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))["input"]
        data = [{"index": i, "embedding": list(NEAR[text])} for i, text in enumerate(texts)]
        body = json.dumps({"data": data[::-1][self.wrong :], "model": "toy", "object": "list"}).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


def test_vectors_come_from_an_endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    endpoint = Embeddings(lambda body: "")
    try:
        found = embed(["the other one", "cup"], "toy", endpoint.url)
        np.testing.assert_allclose(found, vectors(["the other one", "cup"]))
        endpoint.wrong = True
        with pytest.raises(Stopped, match="1 vectors for 2 texts"):
            embed(["person", "cup"], "toy", endpoint.url)
    finally:
        endpoint.die()
    with pytest.raises(Stopped, match="cannot be reached"):
        embed(["cup"], "toy", "http://127.0.0.1:1/v1")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        embed(["cup"], "toy", endpoint.url)
