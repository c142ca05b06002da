"""Requests to an endpoint that answers well, late, wrongly, cut, with 429 and 500, or dies."""

import random
import threading
import time

import pytest

from lgjax.llm.client import Client, Stopped
from lgjax.llm.limits import Limits, estimate
from lgjax.llm.request import Cache, Failure, Message, Reply, Request
from tests.llm.endpoint import serve

FAULTS = ("429", "500", "503", "late", "cut", "html", "empty", "short")


def ask(text: str, **options) -> Request:
    return Request("a-model", (Message("system", "Say it again."), Message("user", text)), **options)


def echo(body: dict) -> str:
    return "you said " + body["messages"][-1]["content"]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Cache:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    return Cache(tmp_path / "cache")


def test_every_answer_arrives_once_whatever_goes_wrong(cache):
    def fault(body, times):
        rng = random.Random(body["messages"][-1]["content"])
        return rng.choice(FAULTS) if times < rng.randrange(3) else ""

    requests = [ask(f"number {i}") for i in range(40)]
    with serve(echo, fault, late=0.6) as endpoint:
        client = Client(cache, Limits(concurrency=16, timeout=0.4), endpoint.url)
        replies = client.complete([*requests, *requests])
        assert endpoint.most_at_once <= 16
    assert [r.text for r in replies if isinstance(r, Reply)] == [
        f"you said number {i}" for i in range(40)
    ] * 2
    assert client.spent.retries > 5
    with serve(lambda body: 1 / 0) as nobody:  # all of it comes from the cache
        again = Client(cache, Limits(), nobody.url)
        assert again.complete(requests) == replies[:40] and again.spent.cached == 40
        assert not nobody.asked


def test_it_waits_for_an_endpoint_that_dies_and_comes_back(cache):
    with serve(echo, late=0.0) as endpoint:
        endpoint.die()
        threading.Timer(0.8, endpoint.start).start()
        client = Client(cache, Limits(concurrency=4), endpoint.url)
        replies = client.complete([ask(f"number {i}") for i in range(8)])
    assert [r.text for r in replies if isinstance(r, Reply)] == [f"you said number {i}" for i in range(8)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("401", "status 401: as asked: 401; what has arrived is kept"),
        ("500", "status 500: as asked: 500"),
        ("late", "no answer in time"),
        ("cut", "cuts the connection"),
        ("html", "the answer is no JSON, 3 times"),
        ("empty", "the answer is no chat completion, 3 times"),
    ],
)
def test_a_lasting_fault_stops_with_one_line_and_keeps_what_has_arrived(cache, fault, words):
    requests = [ask(f"number {i}") for i in range(6)]
    with serve(
        echo, lambda body, _: fault if body["messages"][-1]["content"] == "number 3" else ""
    ) as endpoint:
        limits = Limits(concurrency=1, retries=0, timeout=0.3)
        with pytest.raises(Stopped, match=words) as stop:
            Client(cache, limits, endpoint.url).complete(requests)
        assert "\n" not in str(stop.value) and endpoint.url in str(stop.value)
        endpoint.fault = lambda body, _: ""
        client = Client(cache, limits, endpoint.url)
        assert len(client.complete(requests)) == 6
        assert client.spent.cached == 3 and set(endpoint.answered.values()) == {1}


def test_what_is_wrong_with_a_request_fails_it_alone(cache):
    faults = {"bad": "400", "endless": "short"}
    with serve(echo, lambda body, _: faults.get(body["messages"][-1]["content"], "")) as endpoint:
        client = Client(cache, Limits(retries=0), endpoint.url)
        good, bad, endless = client.complete([ask("good"), ask("bad"), ask("endless", max_tokens=8)])
    assert good == Reply("you said good", 10, 5)
    assert bad == Failure("refused by the endpoint: status 400: as asked: 400")
    assert endless == Failure("answer cut at 32 tokens")
    assert client.spent.completion_tokens == 4 * 5  # the cut ones are paid too


def test_what_was_kept_says_all_that_was_paid_for_it(cache):
    with serve(echo, lambda body, times: "short" if times < 2 else "") as endpoint:
        client = Client(cache, Limits(), endpoint.url)
        (reply,) = client.complete([ask("long")])
    assert reply == Reply("you said long", 3 * 10, 3 * 5)
    assert cache.total() == (1, client.spent.prompt_tokens, client.spent.completion_tokens)


def test_budgets_hold_and_the_same_requests_go_on(cache):
    requests = [ask("x" * 400 + str(i), max_tokens=20) for i in range(20)]
    with serve(echo) as endpoint:
        for limits in (
            Limits(budget_tokens=400, concurrency=3),
            Limits(budget_money=0.4, price_in=1000, price_out=1000, concurrency=3),
        ):
            client = Client(cache, limits, endpoint.url)
            with pytest.raises(
                Stopped, match=r"the budget of .* is spent: \d+ answers .*larger budget goes on"
            ):
                client.complete(requests)
            assert 0 < client.spent.requests < 20
            assert client.spent.prompt_tokens + client.spent.completion_tokens <= 400
        before = sum(endpoint.answered.values())
        client = Client(cache, Limits(price_in=2, price_out=4), endpoint.url)
        client.complete(requests)
        assert client.spent.requests == 20 - before and set(endpoint.answered.values()) == {1}
        assert client.spent.money == pytest.approx((20 - before) * (10 * 2 + 5 * 4) / 1e6)


def test_rates_pace_the_requests(cache):
    with serve(echo) as endpoint:
        requests = [ask(f"number {i}") for i in range(6)]
        Client(cache, Limits(requests_per_minute=600, concurrency=6), endpoint.url).complete(requests)
        assert endpoint.times[-1] - endpoint.times[0] > 0.45
        requests = [ask(f"text {i}", max_tokens=100 - ask(f"text {i}").num_tokens) for i in range(4)]
        begin = time.monotonic()
        Client(cache, Limits(tokens_per_minute=60_000), endpoint.url).complete(requests)
        assert time.monotonic() - begin > 0.3  # 100 tokens each, 1000 a second


def test_the_estimate_sends_nothing(cache):
    requests = [ask("one"), ask("one"), ask("two", max_tokens=100)]
    cache.put(requests[0].key, Reply("here", 1, 1))
    spent = estimate(requests, cache, Limits(price_out=10_000))
    assert (spent.requests, spent.cached, spent.completion_tokens, spent.money) == (1, 1, 100, 1.0)


def test_faulty_options_are_one_clear_line(cache, monkeypatch):
    with pytest.raises(ValueError, match="must begin with http"):
        Client(cache, Limits(), "localhost:8000")
    with pytest.raises(ValueError, match="concurrency 0 must be above 0"):
        Client(cache, Limits(concurrency=0))
    with pytest.raises(ValueError, match="needs the prices"):
        Client(cache, Limits(budget_money=1))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="set OPENAI_API_KEY"):
        Client(cache, Limits())
