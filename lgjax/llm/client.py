"""Ask any endpoint that speaks OpenAI's chat completions: many at a time, paced, cached, within a budget.

The official client repeats what fails for a moment (429 with its Retry-After, 5xx, timeouts, cut connections)
with growing pauses; here stands what it does not know: what an answer must be, what it costs, when to stop.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from lgjax.llm.limits import Limits, Spent
from lgjax.llm.request import Cache, Failure, Outcome, Reply, Request, reply_of

try:
    import openai
except ImportError as error:
    raise ImportError(f'endpoints need the openai client: pip install "lgjax[annotate]" ({error})') from error

KEY_VARIABLE = "OPENAI_API_KEY"
_ATTEMPTS = 3  # for answers that arrive but are none, or are cut at their longest length
# faults of one request, which would be the same at the next attempt
_REFUSED = (openai.BadRequestError, openai.UnprocessableEntityError)


def check_key() -> None:
    """See that there is a key.

    Raises:
        ValueError: there is none in the environment.
    """
    if not os.environ.get(KEY_VARIABLE):
        raise ValueError(
            f"no key in the environment: set {KEY_VARIABLE} (to any word for a server that needs none)"
        )


class Stopped(RuntimeError):
    """The endpoint cannot be used, or the budget is spent; what has arrived is in the cache."""


class Client:
    """A `LanguageModel` behind an endpoint. `base_url` None is OpenAI's; the key is in OPENAI_API_KEY."""

    def __init__(self, cache: Cache, limits: Limits, base_url: str | None = None) -> None:
        """Prepare; nothing is sent.

        Raises:
            ValueError: see `Limits.check`; no key in the environment, or a `base_url` that is none.
        """
        limits.check()
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ValueError(f"the endpoint '{base_url}' must begin with http:// or https://")
        check_key()
        self.cache, self.limits, self.base_url = cache, limits, base_url
        self.spent = Spent()
        self._reserved = 0, 0  # tokens that requests under way may use: of prompts, of answers
        self._next_start = 0.0

    def complete(
        self, requests: Sequence[Request], progress: Callable[[], Any] = lambda: None
    ) -> list[Outcome]:
        """The outcome of each request, in their order; `progress` is called for each one that is settled.

        What the endpoint refuses for the sake of the request itself is a `Failure`; an answer that is still
        cut at four times its `max_tokens` too.

        Raises:
            Stopped: the endpoint refuses the key, does not answer or answers nonsense after all retries, or
                the budget is spent. Requests under way are awaited and kept; asked again, it goes on.
        """
        found: dict[str, Outcome] = {}
        missing = {}
        for request in requests:
            if (reply := self.cache.get(request.key)) is None:
                missing[request.key] = request
            elif request.key not in found:
                self.spent.cached += 1
                found[request.key] = reply
                progress()
        if missing:
            found |= asyncio.run(self._ask_all(list(missing.values()), progress))
        return [found[request.key] for request in requests]

    async def _ask_all(self, requests: Sequence[Request], progress: Callable[[], Any]) -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        stops: list[Stopped] = []
        gate = asyncio.Semaphore(self.limits.concurrency)

        async def settle(api: openai.AsyncOpenAI, request: Request) -> None:
            async with gate:
                if stops:
                    return
                try:
                    found[request.key] = await self._ask(api, request)
                except Stopped as stop:
                    stops.append(stop)
                else:
                    progress()

        options: Any = dict(max_retries=self.limits.retries, timeout=self.limits.timeout)
        async with openai.AsyncOpenAI(base_url=self.base_url, **options) as api:
            await asyncio.gather(*(settle(api, request) for request in requests))
        if stops:
            raise stops[0]
        return found

    async def _ask(self, api: openai.AsyncOpenAI, request: Request) -> Outcome:
        """Ask until the answer is whole; a cut one is asked for again with twice the length."""
        length, fault = request.max_tokens, ""
        prompt_tokens = completion_tokens = 0  # of the cut answers too, which are paid for as well
        for _ in range(_ATTEMPTS):
            try:
                reply, whole = await self._send(api, request, length)
            except _REFUSED as error:
                return Failure(f"refused by the endpoint: {fault_words(error)}")
            except openai.APIError as error:
                raise Stopped(f"{self._name}: {fault_words(error)}; what has arrived is kept") from error
            except ValueError as error:
                fault = str(error)
                continue
            prompt_tokens += reply.prompt_tokens
            completion_tokens += reply.completion_tokens
            if whole:
                reply = Reply(reply.text, prompt_tokens, completion_tokens)
                self.cache.put(request.key, reply)
                return reply
            fault, length = "", 2 * length
        if fault:
            raise Stopped(f"{self._name}: {fault}, {_ATTEMPTS} times; what has arrived is kept")
        return Failure(f"answer cut at {length // 2} tokens")

    async def _send(self, api: openai.AsyncOpenAI, request: Request, length: int) -> tuple[Reply, bool]:
        reserved = request.num_tokens, length
        self._check_budget(reserved)
        self._reserve(reserved, 1)
        try:
            await self._pace(sum(reserved))
            body: Any = {**request.body, "max_tokens": length}
            answer = await api.chat.completions.with_raw_response.create(**body)
            self.spent.retries += answer.retries_taken
            try:
                reply, whole = reply_of(json.loads(answer.text), request)
            except json.JSONDecodeError:
                raise ValueError("the answer is no JSON") from None
        finally:
            self._reserve(reserved, -1)
        self.spent.requests += 1
        self.spent.prompt_tokens += reply.prompt_tokens
        self.spent.completion_tokens += reply.completion_tokens
        self.spent.money += self.limits.money(reply.prompt_tokens, reply.completion_tokens)
        return reply, whole

    def _check_budget(self, reserved: tuple[int, int]) -> None:
        """Stop before a request that could go over the budget, together with those under way."""
        prompt, completion = (a + b for a, b in zip(self._reserved, reserved, strict=True))
        tokens = self.spent.prompt_tokens + self.spent.completion_tokens + prompt + completion
        money = self.spent.money + self.limits.money(prompt, completion)
        for what, budget, needed in (
            ("tokens", self.limits.budget_tokens, tokens),
            ("money", self.limits.budget_money, money),
        ):
            if budget is not None and needed > budget:
                raise Stopped(
                    f"the budget of {budget:,} ({what}) is spent: {self.spent}; what has arrived is kept, "
                    "the same command with a larger budget goes on"
                )

    def _reserve(self, tokens: tuple[int, int], sign: int) -> None:
        self._reserved = self._reserved[0] + sign * tokens[0], self._reserved[1] + sign * tokens[1]

    async def _pace(self, tokens: int) -> None:
        """Wait for the moment at which the rates allow another request."""
        requests, tokens_a_minute = self.limits.requests_per_minute, self.limits.tokens_per_minute
        pause = max(
            60 / requests if requests else 0.0, 60 * tokens / tokens_a_minute if tokens_a_minute else 0.0
        )
        now = asyncio.get_running_loop().time()
        start = max(now, self._next_start)
        self._next_start = start + pause
        await asyncio.sleep(start - now)

    @property
    def _name(self) -> str:
        return f"endpoint {self.base_url or 'of OpenAI'}"


def fault_words(error: openai.APIError) -> str:
    """The fault in one line."""
    if isinstance(error, openai.APITimeoutError):
        return "no answer in time"
    if isinstance(error, openai.APIConnectionError):
        return "cannot be reached, or cuts the connection"
    detail = error.body.get("message") if isinstance(error.body, dict) else None
    status = f"status {error.status_code}" if isinstance(error, openai.APIStatusError) else "fault"
    return " ".join(f"{status}: {detail or error.message}".split())[:300]
