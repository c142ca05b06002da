"""The annotator behind a language model: ask, read, and ask once more where the answer cannot be taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lgjax.annotate import prompts
from lgjax.annotate.reply import read_links
from lgjax.annotate.task import Marked, Task
from lgjax.llm.request import Failure, LanguageModel, Message, Outcome, Pending, Reply, Request


@dataclasses.dataclass(frozen=True)
class Asking:
    """An `Annotator` that asks `language_model`, an endpoint or batch files, for the model named `model`."""

    language_model: LanguageModel
    model: str

    @property
    def identity(self) -> dict[str, Any]:
        """The model and the version of the prompts."""
        return {"annotator": "language model", "model": self.model, "prompts": prompts.VERSION}

    def annotate(self, tasks: Sequence[Task]) -> list[Marked]:
        """The links of each text.

        Raises:
            Stopped: see `lgjax.llm.client.Client`.
        """
        first = self._ask([prompts.annotation(task) for task in tasks])
        marked = [_read(task, outcome) for task, outcome in zip(tasks, first, strict=True)]
        wrong = [(i, one.text) for i, one in enumerate(first) if isinstance(one, Reply) and marked[i].fault]
        second = self._ask([prompts.repair(tasks[i], text, marked[i].fault) for i, text in wrong])
        for (i, _), outcome in zip(wrong, second, strict=True):
            again = _read(tasks[i], outcome)
            marked[i] = dataclasses.replace(again, repaired=not again.fault and not again.pending)
        return marked

    def _ask(self, conversations: Sequence[tuple[Message, ...]]) -> list[Outcome]:
        return self.language_model.complete([request_of(self.model, c) for c in conversations])


def request_of(model: str, messages: tuple[Message, ...]) -> Request:
    """Ask for an answer that has room for the last text, its brackets and their labels."""
    return Request(model, messages, max_tokens=512 + len(messages[-1].content))


def _read(task: Task, outcome: Outcome) -> Marked:
    if isinstance(outcome, Pending):
        return Marked(pending=True)
    if isinstance(outcome, Failure):
        return Marked(fault=outcome.reason)
    try:
        return Marked(links=read_links(task, outcome.text))
    except ValueError as error:
        return Marked(fault=str(error))
