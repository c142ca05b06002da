"""The options of a language model behind an endpoint, as a judge or reviewer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from lgjax.llm.client import Client, Limits
    from lgjax.llm.request import Cache, Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """Which language model is asked, and how much of it.

    Attributes:
        model: Name of the model, as its endpoint calls it; the key is taken from OPENAI_API_KEY.
        endpoint: Address of any endpoint that speaks OpenAI's chat completions; None for OpenAI's own.
        cache: Folder that keeps answers; what is there is not asked again.
        concurrency: Requests at a time.
        retries: Further attempts after a fault that may pass.
        requests_per_minute: Most requests in a minute; None for no limit.
        budget_tokens: Stop before more tokens than this are used.
        budget_money: Stop before more money than this is spent; it needs the prices.
        price_in: Money for a million tokens of what is asked.
        price_out: Money for a million tokens of answers.
    """

    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    endpoint: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    cache: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("~/.cache/lgjax/llm")
    concurrency: int = 8
    retries: int = 8
    requests_per_minute: float | None = None
    budget_tokens: int | None = None
    budget_money: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    @property
    def limits(self) -> Limits:
        """How much may be asked.

        Raises:
            ValueError: a number that makes no sense.
        """
        from lgjax.llm.client import Limits

        return Limits(
            concurrency=self.concurrency,
            retries=self.retries,
            requests_per_minute=self.requests_per_minute,
            budget_tokens=self.budget_tokens,
            budget_money=self.budget_money,
            price_in=self.price_in,
            price_out=self.price_out,
        )

    @property
    def kept(self) -> Cache:
        """Where answers are kept."""
        from lgjax.llm.request import Cache

        return Cache(self.cache.expanduser())

    def client(self) -> Client:
        """What asks the model; nothing is sent yet.

        Raises:
            ValueError: no key in the environment, or an option that makes no sense.
        """
        from lgjax.llm.client import Client

        return Client(self.kept, self.limits, self.endpoint)

    def plan(self, requests: Sequence[Request]) -> str:
        """What asking would take at most, in words; nothing is sent."""
        from lgjax.llm.client import estimate

        spent = estimate(requests, self.kept, self.limits)
        money = f", {spent.money:.2f} to pay" if self.price_in or self.price_out else ""
        return (
            f"{spent.requests:,} requests to {self.model} ({spent.cached:,} more are in {self.cache}): about "
            f"{spent.prompt_tokens:,} tokens asked, at most {spent.completion_tokens:,} answered{money}; "
            "nothing was sent"
        )
