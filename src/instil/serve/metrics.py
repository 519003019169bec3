"""What the server tells Prometheus of itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "instil_requests", "Answers asked for, by how that ended", ["model", "outcome"], registry=registry
        )
        self.under_way = Gauge("instil_requests_under_way", "Answers being made or waited for", registry=registry)
        self.most = Gauge("instil_requests_most", "Answers that may be under way at once", registry=registry)
        self.prompt_tokens = Counter("instil_prompt_tokens", "Tokens of prompts", ["model"], registry=registry)
        self.new_tokens = Counter("instil_new_tokens", "Tokens of answers", ["model"], registry=registry)
        self.first = Histogram(
            "instil_first_token_seconds",
            "From a request to its first token",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "instil_answer_seconds", "From a request to its end", ["model"], buckets=SECONDS, registry=registry
        )

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)
