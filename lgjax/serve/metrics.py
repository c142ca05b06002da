"""Numbers of a running server, in the form that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server; several servers in one process do not share them.

    Requests are counted where they are answered, so those that uvicorn refuses for want of room are not.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("lgjax_requests", "Requests by status", ["status"], registry=registry)
        self.waiting = Gauge("lgjax_waiting", "Questions in the queue", registry=registry)
        self.tokens = Counter("lgjax_tokens", "Generated tokens of finished answers", registry=registry)
        self.batches = Histogram(
            "lgjax_batch_questions", "Questions in a batch", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.seconds = Histogram(
            "lgjax_answer_seconds", "From question to finished answer", buckets=_SECONDS, registry=registry
        )

    def text(self) -> bytes:
        """All numbers as Prometheus reads them."""
        return generate_latest(self._registry)
