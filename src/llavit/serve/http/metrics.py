"""Prometheus metrics of one server: what its engine counts, and how its requests went."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from llavit.serve.engine import Engine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class EngineCollector(Collector):
    """Reads the counters of an engine when somebody asks for them."""

    COUNTERS = (
        ("requests", "Requests that the engine took."),
        ("cancelled", "Of those, cancelled: their client went away."),
        ("failed", "Of those, ended by an exception."),
        ("timed_out", "Of those, cut by the timeout."),
        ("prompt_tokens", "Tokens of prompts, visual ones among them."),
        ("cached_tokens", "Of those, tokens that the image cache spared."),
        ("generated_tokens", "Tokens of answers."),
        ("image_cache_hits", "Images of prompts that were not computed again."),
        ("image_cache_misses", "Images of prompts that were computed."),
        ("image_cache_evictions", "Entries that were dropped for lack of room."),
        ("steps", "Decode steps; each gives one token to each running request."),
    )
    GAUGES = (
        ("running", "Requests that are being answered."),
        ("waiting", "Requests in the queue."),
        ("image_cache_entries", "Entries of the image cache."),
        ("image_cache_bytes", "Size of the image cache."),
        ("image_cache_limit", "Greatest size of the image cache, in bytes."),
    )

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Give the counters as they are now."""
        stats = self._engine.stats()
        for name, about in self.COUNTERS:
            yield CounterMetricFamily(f"llavit_engine_{name}", about, value=getattr(stats, name))
        for name, about in self.GAUGES:
            yield GaugeMetricFamily(f"llavit_engine_{name}", about, value=getattr(stats, name))


class Metrics:
    """The metrics of one app.

    Args:
        engine: whose counters are told.

    Attributes:
        requests: answers by path and status.
        duration: seconds from a request's head to the end of its answer, by path.
        first_token: seconds from a chat request in the engine to its first token.
    """

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        self.requests = Counter(
            "llavit_http_requests",
            "Answers by path and status; 499: the client went away.",
            ["path", "status"],
            registry=self.registry,
        )
        self.duration = Histogram(
            "llavit_http_request_seconds",
            "From a request's head to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "llavit_time_to_first_token_seconds",
            "From a chat request's arrival in the engine to its first token.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
