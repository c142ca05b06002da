"""Requests as OpenAI's batch files, and results read back."""

import json

import pytest

from lgjax.llm import batch_files
from lgjax.llm.batch_files import BatchFiles
from lgjax.llm.request import Cache, Failure, Pending, Reply
from tests.llm.test_client import ask


def result(request, text: str = "fine", status: int = 200, reason: str = "stop") -> str:
    body = {
        "choices": [{"message": {"content": text}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 3},
    }
    return json.dumps(
        {"custom_id": request.key, "response": {"status_code": status, "body": body}, "error": None}
    )


def lines_of(paths) -> list[dict]:
    return [json.loads(line) for path in paths for line in path.read_text().split("\n") if line]


def test_written_once_then_read_whatever_the_order(tmp_path):
    requests = [ask(f"number {i}") for i in range(6)]

    def model() -> BatchFiles:
        return BatchFiles(tmp_path / "batch", Cache(tmp_path / "cache"))

    first = model()
    assert first.complete([*requests, *requests]) == [Pending()] * 12
    written = lines_of(first.write())
    assert [line["custom_id"] for line in written] == [request.key for request in requests]
    assert written[2] == {
        "custom_id": requests[2].key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": requests[2].body,
    }
    waiting = model()
    assert waiting.complete(requests) == [Pending()] * 6 and waiting.write() == []
    results = [
        result(requests[5], "five \u2028 here"),
        result(requests[1], status=500),
        result(requests[0], "zero"),
        result(requests[2], status=400),
        result(requests[3], reason="length"),
    ]
    (tmp_path / "batch" / "batch_output.jsonl").write_text("\n".join(results) + "\n", encoding="utf-8")
    then = model()
    assert then.complete(requests) == [
        Reply("zero", 3, 2),
        Pending(),
        Failure("refused by the endpoint: status 400"),
        Failure("answer cut at 1024 tokens"),
        Pending(),
        Reply("five \u2028 here", 3, 3),
    ]
    assert [line["custom_id"] for line in lines_of(then.write())] == [
        requests[1].key
    ]  # it failed for a moment


def test_files_keep_to_the_size_of_the_provider(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_files, "MAX_LINES", 4)
    model = BatchFiles(tmp_path, Cache(tmp_path / "cache"))
    model.complete([ask(f"number {i}") for i in range(10)])
    assert sorted(len(lines_of([path])) for path in model.write()) == [2, 4, 4]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_foreign_line_is_named(tmp_path):
    (tmp_path / "out.jsonl").write_text('{"custom_id": "a"}\n[1]\n')
    with pytest.raises(ValueError, match=r"out.jsonl: line 2 is no line of a batch file"):
        BatchFiles(tmp_path, Cache(tmp_path / "cache")).complete([ask("a")])
