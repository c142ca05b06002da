"""What is asked of a language model, what it answers, and the folder that keeps answers.

A request is known by the checksum of its body, in the cache as in batch files, so that the same question is
never paid for twice.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Message(NamedTuple):
    """One message of a conversation with a language model; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Request:
    """A conversation to be continued. `max_tokens`: the longest answer that is allowed at first."""

    model: str
    messages: tuple[Message, ...]
    temperature: float = 0.0
    max_tokens: int = 1024

    @functools.cached_property
    def body(self) -> dict[str, Any]:
        """The JSON body of POST /chat/completions."""
        return {
            "model": self.model,
            "messages": [message._asdict() for message in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    @functools.cached_property
    def key(self) -> str:
        """The checksum (SHA-256, hexadecimal) of the body."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()

    @property
    def num_tokens(self) -> int:
        """About how many tokens the messages have: one for each four characters, and four a message."""
        return sum(len(message.content) // 4 + 5 for message in self.messages)


class Reply(NamedTuple):
    """An answer, and the tokens that were paid for it."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Failure(NamedTuple):
    """Why a request has no answer and will get none when it is asked again."""

    reason: str


class Pending(NamedTuple):
    """A request that has been written down and waits for its answer."""


Outcome = Reply | Failure | Pending


@runtime_checkable
class LanguageModel(Protocol):
    """Something that answers requests."""

    def complete(self, requests: Sequence[Request]) -> list[Outcome]:
        """The outcome of each request, in their order; equal requests are asked once."""
        ...


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder with one file an answer; any number of processes may share it."""

    folder: Path

    def get(self, key: str) -> Reply | None:
        """The answer to the request with this key, if there is one; a damaged file is none."""
        try:
            return Reply(**json.loads(self._path(key).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer; a process that is killed leaves it whole or not at all."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(reply._asdict(), ensure_ascii=False), encoding="utf-8")
        unfinished.rename(path)

    def total(self) -> tuple[int, int, int]:
        """How many answers there are, and the tokens of their prompts and of themselves."""
        replies = [reply for path in self.folder.glob("*/*.json") if (reply := self.get(path.stem))]
        return len(replies), sum(r.prompt_tokens for r in replies), sum(r.completion_tokens for r in replies)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def reply_of(body: Any, request: Request | None = None) -> tuple[Reply, bool]:
    """Read the JSON of a chat completion: the answer, and whether it is whole (not cut for its length).

    Servers that count no tokens get the estimate of `request`.

    Raises:
        ValueError: it is no chat completion, or has no text.
    """
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        text = choice["message"]["content"]
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the answer is no chat completion") from None
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the answer has no text")
    guesses = (request.num_tokens if request else 0, len(text) // 4 + 1)
    prompt, completion = (
        count if isinstance(count, int) else guess for count, guess in zip(counts, guesses, strict=True)
    )
    return Reply(text, prompt, completion), choice.get("finish_reason") != "length"
