"""OpenAI's batch files: requests are written, uploaded by hand, and the results read the next time.

    folder/
      requests-<checksum>.jsonl       written here: {"custom_id", "method", "url", "body"} a line
      anything else.jsonl             results as they were downloaded, put here by hand

A request is written once: a later run does not ask again for what stands in a requests file, unless its
result says that it failed for a moment.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lgjax.llm.request import Cache, Failure, Outcome, Pending, Reply, Request, reply_of

PREFIX = "requests-"
MAX_LINES = 50_000  # of one file, OpenAI's limits
MAX_BYTES = 150_000_000
_URL = "/v1/chat/completions"


@dataclasses.dataclass
class BatchFiles:
    """A `LanguageModel` that answers from result files; `write` then writes down what is missing."""

    folder: Path
    cache: Cache
    missing: dict[str, Request] = dataclasses.field(default_factory=dict)

    def complete(self, requests: Sequence[Request]) -> list[Outcome]:
        """The outcome of each request, in their order: `Pending` where its result has not come yet.

        Raises:
            ValueError: a line of a file is no line of a batch file.
        """
        return [self._look_up(request) for request in requests]

    def _look_up(self, request: Request) -> Outcome:
        if (reply := self.cache.get(request.key)) is not None:
            return reply
        line = self._results.get(request.key)
        outcome = None if line is None else _outcome(line, request)
        if isinstance(outcome, Reply):
            self.cache.put(request.key, outcome)
        elif outcome is None and (line is not None or request.key not in self._written):
            self.missing[request.key] = request
        return outcome or Pending()

    @functools.cached_property
    def _written(self) -> set[str]:
        files = self.folder.glob(f"{PREFIX}*.jsonl")
        return {line["custom_id"] for file in files for line in _lines(file)}

    @functools.cached_property
    def _results(self) -> dict[str, dict[str, Any]]:
        files = [file for file in self.folder.glob("*.jsonl") if not file.name.startswith(PREFIX)]
        oldest_first = sorted(files, key=lambda file: (file.stat().st_mtime, file.name))
        return {line["custom_id"]: line for file in oldest_first for line in _lines(file)}

    def write(self) -> list[Path]:
        """Write what is missing, in files of at most the provider's size, each whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for lines in _packed(list(self.missing.values())):
            data = "".join(lines).encode()
            path = self.folder / f"{PREFIX}{hashlib.sha256(data).hexdigest()[:12]}.jsonl"
            unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            unfinished.write_bytes(data)
            unfinished.rename(path)
            paths.append(path)
        return paths


def _packed(requests: Sequence[Request]) -> Iterator[list[str]]:
    lines: list[str] = []
    size = 0
    for request in requests:
        line = {"custom_id": request.key, "method": "POST", "url": _URL, "body": request.body}
        text = json.dumps(line, ensure_ascii=False) + "\n"
        if lines and (len(lines) == MAX_LINES or size + len(text.encode()) > MAX_BYTES):
            yield lines
            lines, size = [], 0
        lines.append(text)
        size += len(text.encode())
    if lines:
        yield lines


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if not isinstance(line["custom_id"], str):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{file}: line {number} is no line of a batch file (no custom_id)") from None
        yield line


def _outcome(line: dict[str, Any], request: Request) -> Outcome | None:
    """What a result says; None for a fault that may pass, which is asked again."""
    response = line.get("response") or {}
    status = response.get("status_code")
    if line.get("error") or not isinstance(status, int) or status == 429 or status >= 500:
        return None
    if status != 200:
        return Failure(f"refused by the endpoint: status {status}")
    try:
        reply, whole = reply_of(response.get("body"), request)
    except ValueError:
        return None
    return reply if whole else Failure(f"answer cut at {request.max_tokens} tokens")
