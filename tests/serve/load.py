"""Many clients at once, some of them bad or impatient, against `lgjax serve` with the untrained model.

    python -m tests.serve.load --clients 50 --minutes 5

Every answer is known beforehand and differs from all others, so a wrong, lost or mixed-up one is seen. Six
times a burst of questions comes that is more than the queue can hold: some of these are refused with 429 and
told when to come again, the others are answered.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import random
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from lgjax.serve.limits import Limits
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


BURSTS = 6
BURST = 2 * Limits().waiting  # questions, of which the queue holds a half


class Client(threading.Thread):
    """Asks until the time is over, and counts what came back.

    everything: the texts of all clients' answers; `seconds`: of answered questions; `faults`: what was wrong,
    mixed up (another client's answer) or lost (no answer at all).
    """

    def __init__(self, address: str, number: int, end: float, everything: set[str]) -> None:
        super().__init__(daemon=True)
        self._random = random.Random(number)
        self._http = httpx.Client(base_url=address, timeout=300, limits=httpx.Limits())
        self._end = end
        self._everything = everything
        self.counts: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []
        self.faults: list[tuple[str, str]] = []

    def run(self) -> None:
        while time.monotonic() < self._end:
            kind = self._random.choices(["good", "stream", "bad", "leave"], [5, 3, 1, 1])[0]
            try:
                getattr(self, f"_{kind}")()
            except Exception as error:
                self.faults.append(("lost", f"{kind}: {error!r}"))

    def _question(self) -> tuple[dict, dict, str, str]:
        """Message, options, the text to come and its phrase."""
        thing = f"the {' '.join(self._random.choices(WORDS, k=4))} {self._random.choice(THINGS)}"
        rest = " ".join(self._random.choices(WORDS, k=5))
        options = {"answer": f"<g_s> {thing} <g_e> <seg> is {rest}", "threshold": None}
        self._everything.add(f"{thing} is {rest}")
        return ask("What is it?", seed=self._random.randrange(6)), options, f"{thing} is {rest}", thing

    def _post(self, message: dict, options: dict) -> httpx.Response:
        while True:
            start = time.monotonic()
            reply = self._http.post("/v1/chat/completions", json={"messages": [message], **options})
            if reply.status_code != 429:
                self.seconds += [time.monotonic() - start] if reply.status_code == 200 else []
                return reply
            time.sleep(min(self._refusal(reply), 5) * self._random.uniform(0.5, 1.5))

    def _refusal(self, reply: httpx.Response) -> int:
        """Seconds after which a full queue wants to be asked again."""
        self.counts["busy"] += 1
        seconds = int(reply.headers["retry-after"])
        if seconds < 1 or f"try again in {seconds} s" not in reply.json()["error"]["message"]:
            self.faults.append(("wrong", f"busy: {reply.headers} {reply.text}"))
        return seconds

    def _good(self) -> None:
        message, options, text, phrase = self._question()
        self._compare(self._post(message, options).json(), text, phrase, "good")

    def _compare(self, reply: dict, text: str, phrase: str, kind: str) -> None:
        answer = reply["choices"][0]["message"]
        self._check(answer["content"], text, [p["text"] for p in answer["phrases"]] == [phrase], kind)

    def burst(self) -> None:
        """Ask more at once than the queue holds; nobody comes again."""
        asked = [self._question() for _ in range(BURST)]
        bodies = [{"messages": [message], **options} for message, options, _, _ in asked]
        with concurrent.futures.ThreadPoolExecutor(BURST) as pool:
            replies = [pool.submit(self._http.post, "/v1/chat/completions", json=body) for body in bodies]
        for (_, _, text, phrase), reply in zip(asked, replies, strict=True):
            try:
                if reply.result().status_code == 429:
                    self._refusal(reply.result())
                else:
                    self._compare(reply.result().json(), text, phrase, "burst")
            except Exception as error:
                self.faults.append(("lost", f"burst: {error!r}"))

    def _stream(self) -> None:
        message, options, text, phrase = self._question()
        lines = self._post(message, {**options, "stream": True}).text.split("\n\n")
        deltas = [json.loads(line[6:])["choices"] for line in lines if line.startswith("data: {")]
        heard = "".join(choice["delta"].get("content", "") for delta in deltas for choice in delta)
        names = [p["text"] for p in deltas[-1][0]["delta"]["phrases"]]
        self._check(heard, text, names == [phrase] and "data: [DONE]" in lines, "stream")

    def _bad(self) -> None:
        status, extra, options = self._random.choice(BAD)
        reply = self._post(ask("What is it?", **extra), options)
        self._check(str(reply.status_code), str(status), bool(reply.json()["error"]["message"]), "bad")

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

    def _check(self, heard: str, wanted: str, right: bool, kind: str) -> None:
        self.counts[kind] += 1
        if heard != wanted or not right:
            fault = "mixed" if heard != wanted and heard in self._everything else "wrong"
            self.faults.append((fault, f"{kind}: {heard!r} instead of {wanted!r}"))


def memory_mib(process: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").split("\n")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def run(clients: int, minutes: float) -> dict:
    """Return counts, faults, latencies in seconds, and memory in MiB after a third of the time and later.

    Counted are wrong, mixed (up) and lost answers; of these faults the first twenty are told.
    """
    everything: set[str] = set()
    with command() as (server, address):
        warm = Client(address, 10**6, 0, everything)
        warm.burst()  # compiled before the clock starts
        start = time.monotonic()
        threads = [Client(address, number, start + 60 * minutes, everything) for number in range(clients)]
        for thread in threads:
            thread.start()
        crowd = Client(address, 10**6 + 1, 0, everything)
        memory = []
        for number in range(BURSTS):
            time.sleep(max(0, start + 60 * minutes * number / BURSTS - time.monotonic()))
            memory.append(memory_mib(server.pid))
            crowd.burst()
        for thread in threads:
            thread.join(60 * minutes + 300)
        for _ in range(100):  # places of those who left are given back
            if (waiting := httpx.get(f"{address}/healthz").json()["waiting"]) == 0:
                break
            time.sleep(0.1)
        memory.append(memory_mib(server.pid))
    everybody = [*threads, crowd]
    seconds = np.asarray([second for thread in threads for second in thread.seconds])
    faults = [fault for client in everybody for fault in client.faults]
    kinds = collections.Counter(kind for kind, _ in faults)
    return {
        "counts": dict(sum((client.counts for client in everybody), collections.Counter())),
        **{kind: kinds[kind] for kind in ("wrong", "mixed", "lost")},
        "faults": faults[:20],
        "unfinished": sum(thread.is_alive() for thread in threads),
        "still_waiting": waiting,
        "p50": round(float(np.quantile(seconds, 0.5)), 2),
        "p95": round(float(np.quantile(seconds, 0.95)), 2),
        "memory_mib": [round(memory[BURSTS // 3]), round(max(memory))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    options = parser.parse_args()
    print(json.dumps(run(options.clients, options.minutes), indent=1))


if __name__ == "__main__":
    main()
