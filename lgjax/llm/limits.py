"""How fast and how much a language model may be asked, and what it has cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lgjax.llm.request import Cache, Request


@dataclasses.dataclass(frozen=True)
class Limits:
    """How fast and how much may be asked."""

    concurrency: int = 8
    """Requests at a time."""
    requests_per_minute: float | None = None
    """Most requests of a minute."""
    tokens_per_minute: float | None = None
    """Most tokens of a minute, prompts and answers together."""
    retries: int = 8
    """Further attempts after a fault that may pass (429, 5xx, no answer in time, a cut connection)."""
    timeout: float = 120.0
    """Seconds until a silent endpoint counts as a fault."""
    budget_tokens: int | None = None
    """Most tokens that this command may use, prompts and answers together."""
    budget_money: float | None = None
    """Most money that this command may spend; needs the prices."""
    price_in: float = 0.0
    """Price of a million tokens of prompts."""
    price_out: float = 0.0
    """Price of a million tokens of answers."""

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: a number that is too small, or a budget of money without prices.
        """
        for name, value in dataclasses.asdict(self).items():
            least = 0 if name in ("retries", "price_in", "price_out") else None
            if value is not None and (value < 0 or (least is None and value == 0)):
                raise ValueError(f"{name} {value} must be {'above 0' if least is None else '0 or more'}")
        if self.budget_money is not None and not (self.price_in or self.price_out):
            raise ValueError("a budget of money needs the prices of a million tokens (price_in, price_out)")

    def money(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What these tokens cost."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


@dataclasses.dataclass
class Spent:
    """What has been used. cached: answers that were there already and cost nothing more."""

    requests: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        money = f", {self.money:.2f} of money" if self.money else ""
        rest = f"{self.cached:,} from the cache, {self.retries:,} retries"
        return f"{self.requests:,} answers ({tokens}{money}), {rest}"


def estimate(requests: Sequence[Request], cache: Cache, limits: Limits) -> Spent:
    """What `Client.complete` would ask at most: each answer at its longest, no retries. Nothing is sent."""
    limits.check()
    unique = {request.key: request for request in requests}.values()
    missing = [request for request in unique if cache.get(request.key) is None]
    prompt = sum(request.num_tokens for request in missing)
    completion = sum(request.max_tokens for request in missing)
    return Spent(
        requests=len(missing),
        cached=len(unique) - len(missing),
        prompt_tokens=prompt,
        completion_tokens=completion,
        money=limits.money(prompt, completion),
    )
