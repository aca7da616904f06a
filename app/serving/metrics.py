"""Counts requests and batches for Prometheus."""

from typing import Any

import prometheus_client as prometheus

from app.serving.batching import Batcher

SECONDS = (.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30)  # fmt: skip


class Metrics:
    """Counts requests and their times, and what the batcher does."""

    def __init__(self, batcher: Batcher) -> None:
        self._registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self._registry)
        ours: dict[str, Any] = {"namespace": "scaleproof", "registry": self._registry}
        labels = ["kind", "code"]
        self._requests = prometheus.Counter(
            "requests", "Requests that were answered.", labels, **ours
        )
        self._errors = prometheus.Counter("errors", "Answers that were errors.", labels, **ours)
        self._seconds = prometheus.Histogram(
            "request_seconds", "Seconds from a request's headers to its answer.", ["kind"],
            buckets=SECONDS, **ours,
        )  # fmt: skip
        self.instances = prometheus.Counter("instances", "Instances that were answered.", **ours)
        batch = prometheus.Histogram(
            "batch_size", "Instances computed at once.", buckets=[2**k for k in range(11)], **ours
        )
        batcher.on_batch = batch.observe
        queue = prometheus.Gauge("queue_length", "Instances that wait.", **ours)
        queue.set_function(lambda: batcher.waiting)
        running = prometheus.Gauge("batches_running", "Batches that are computed now.", **ours)
        running.set_function(lambda: batcher.running)

    def count(self, kind: str, code: int, seconds: float) -> None:
        """Counts an answer."""
        self._requests.labels(kind, code).inc()
        self._seconds.labels(kind).observe(seconds)
        if code >= 400:
            self._errors.labels(kind, code).inc()

    def text(self) -> bytes:
        """Returns all metrics, as Prometheus reads them."""
        return prometheus.generate_latest(self._registry)
