"""What the server counts, as Prometheus reads it."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .requests import Job

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server, in a registry of its own: two servers in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: Any = {"registry": self.registry}
        self.requests = Counter("llada_requests", "Requests by endpoint and status.", ["endpoint", "status"], **made)
        self.cancelled = Counter("llada_requests_cancelled", "Requests whose client left.", **made)
        self.in_flight = Gauge("llada_requests_in_flight", "Requests waiting or being answered.", **made)
        self.prompt_tokens = Counter("llada_prompt_tokens", "Tokens of prompts.", **made)
        self.tokens = Counter("llada_generated_tokens", "Tokens of answers.", **made)
        self.passes = Counter("llada_forward_passes", "Passes of the model, counted once per answer.", **made)
        self.seconds = Histogram("llada_request_seconds", "From request to end of answer.", buckets=SECONDS, **made)
        self.first = Histogram("llada_first_block_seconds", "From request to first block.", buckets=SECONDS, **made)

    def answered(self, job: Job, seconds: float) -> None:
        """Count a finished answer."""
        self.prompt_tokens.inc(job.num_prompt_tokens)
        self.tokens.inc(job.num_tokens)
        self.passes.inc(job.num_passes)
        self.seconds.observe(seconds)
        if job.first_at is not None:
            self.first.observe(job.first_at - job.began)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)
