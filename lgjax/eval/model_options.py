"""The options of a language model behind an endpoint, as a judge or reviewer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lgjax.llm.limits import Limits, estimate
from lgjax.llm.request import Cache, Request

if TYPE_CHECKING:
    from lgjax.llm.client import Client


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which language model is asked, and how much of it.

    Attributes:
        model: Name of the model, as its endpoint calls it; the key is taken from OPENAI_API_KEY.
        endpoint: Address of any endpoint that speaks OpenAI's chat completions; None for OpenAI's own.
        cache: Folder that keeps answers; what is there is not asked again.
        limits: How fast and how much may be asked.
    """

    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    endpoint: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    cache: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("~/.cache/lgjax/llm")
    limits: Annotated[Limits, tyro.conf.arg(name="")] = Limits()  # noqa: RUF009

    @property
    def kept(self) -> Cache:
        """Where answers are kept."""
        return Cache(self.cache.expanduser())

    def client(self) -> Client:
        """What asks the model; nothing is sent yet.

        Raises:
            ValueError: no key in the environment, or an address that is none.
            ImportError: the client of OpenAI is not installed.
        """
        from lgjax.llm.client import Client

        return Client(self.kept, self.limits, self.endpoint)

    def plan(self, requests: Sequence[Request]) -> str:
        """What asking would take at most, in words; nothing is sent."""
        spent = estimate(requests, self.kept, self.limits)
        money = f", {spent.money:.2f} to pay" if self.limits.price_in or self.limits.price_out else ""
        return (
            f"{spent.requests:,} requests to {self.model} ({spent.cached:,} more are in {self.cache}): about "
            f"{spent.prompt_tokens:,} tokens asked, at most {spent.completion_tokens:,} answered{money}; "
            "nothing was sent"
        )
