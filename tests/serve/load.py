"""Many clients at once, some of them bad or impatient, against `lgjax serve` with the untrained model.

    python -m tests.serve.load --clients 50 --minutes 5

Every answer is known beforehand and differs from all others, so a wrong, lost or mixed-up one is seen.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from tests.serve.server import ask, command, data_url

WORDS = ["red", "blue", "old", "small", "big", "round", "wooden", "happy", "quiet", "tall", "green", "short"]
THINGS = ["cat", "dog", "man", "horse", "tree", "car", "boat", "house", "ball", "chair"]
BAD = [
    (400, {"url": data_url(b"broken")}, {}),
    (400, {"url": "https://example.org/a.png"}, {}),
    (400, {"regions": [{"type": "click", "x": 1, "y": 1}]}, {}),
    (413, {}, {"max_tokens": 100_000}),
    (422, {}, {"temperature": "warm"}),
]


class Client(threading.Thread):
    """Asks until the time is over, and counts what came back."""

    def __init__(self, address: str, number: int, end: float) -> None:
        super().__init__(daemon=True)
        self._random = random.Random(number)
        self._http = httpx.Client(base_url=address, timeout=300)
        self._end = end
        self.counts: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self._end:
            kind = self._random.choices(["good", "stream", "bad", "leave"], [5, 3, 1, 1])[0]
            try:
                getattr(self, f"_{kind}")()
            except Exception as error:
                self.wrong.append(f"{kind}: {error!r}")

    def _question(self) -> tuple[dict, dict, str, str]:
        """Message, options, the text to come and its phrase."""
        thing = f"the {' '.join(self._random.choices(WORDS, k=4))} {self._random.choice(THINGS)}"
        rest = " ".join(self._random.choices(WORDS, k=5))
        options = {"answer": f"<g_s> {thing} <g_e> <seg> is {rest}", "threshold": None}
        return ask("What is it?", seed=self._random.randrange(6)), options, f"{thing} is {rest}", thing

    def _post(self, message: dict, options: dict, **more) -> httpx.Response:
        while True:
            start = time.monotonic()
            reply = self._http.post("/v1/chat/completions", json={"messages": [message], **options}, **more)
            if reply.status_code != 429:
                self.seconds += [time.monotonic() - start] if reply.status_code == 200 else []
                return reply
            self.counts["busy"] += 1
            time.sleep(min(int(reply.headers["retry-after"]), 5) * self._random.uniform(0.5, 1.5))

    def _good(self) -> None:
        message, options, text, phrase = self._question()
        answer = self._post(message, options).json()["choices"][0]["message"]
        self._check(answer["content"] == text and [p["text"] for p in answer["phrases"]] == [phrase], "good")

    def _stream(self) -> None:
        message, options, text, phrase = self._question()
        lines = self._post(message, {**options, "stream": True}).text.split("\n\n")
        deltas = [json.loads(line[6:])["choices"] for line in lines if line.startswith("data: {")]
        heard = "".join(choice["delta"].get("content", "") for delta in deltas for choice in delta)
        names = [p["text"] for p in deltas[-1][0]["delta"]["phrases"]]
        self._check(heard == text and names == [phrase] and "data: [DONE]" in lines, "stream")

    def _bad(self) -> None:
        status, extra, options = self._random.choice(BAD)
        reply = self._post(ask("What is it?", **extra), options)
        self._check(reply.status_code == status and bool(reply.json()["error"]["message"]), "bad")

    def _leave(self) -> None:
        message, options, _, _ = self._question()
        body = {"messages": [message], **options, "stream": self._random.random() < 0.5}
        try:
            with httpx.stream(
                "POST",
                f"{self._http.base_url}/v1/chat/completions".replace("//v1", "/v1"),
                json=body,
                timeout=self._random.uniform(0.05, 3),
            ) as reply:
                for _ in zip(range(self._random.randrange(3)), reply.iter_raw(), strict=False):
                    pass
        except httpx.TimeoutException:
            pass
        self.counts["left"] += 1

    def _check(self, right: bool, kind: str) -> None:
        self.counts[kind] += 1
        if not right:
            self.wrong.append(kind)


def memory_mib(process: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").split("\n")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def run(clients: int, minutes: float) -> dict:
    """Return counts, latencies in seconds and memory in MiB after a third of the time and at the end."""
    with command() as (server, address):
        warm = Client(address, 10**6, 0)
        warm._good()  # compiled before the clock starts
        end = time.monotonic() + 60 * minutes
        threads = [Client(address, number, end) for number in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(20 * minutes)
        early = memory_mib(server.pid)
        for thread in threads:
            thread.join(60 * minutes + 300)
        seconds = np.asarray([second for thread in threads for second in thread.seconds])
        for _ in range(100):  # places of those who left are given back
            if (waiting := httpx.get(f"{address}/healthz").json()["waiting"]) == 0:
                break
            time.sleep(0.1)
        return {
            "counts": dict(sum((thread.counts for thread in threads), collections.Counter())),
            "wrong": [fault for thread in threads for fault in thread.wrong],
            "unfinished": sum(thread.is_alive() for thread in threads),
            "still_waiting": waiting,
            "p50": round(float(np.quantile(seconds, 0.5)), 2),
            "p95": round(float(np.quantile(seconds, 0.95)), 2),
            "memory_mib": [round(early), round(memory_mib(server.pid))],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    options = parser.parse_args()
    print(json.dumps(run(options.clients, options.minutes), indent=1))


if __name__ == "__main__":
    main()
