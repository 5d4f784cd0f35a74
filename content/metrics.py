"""This package's collectors. Labels come from closed sets."""

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from servicekit.metrics import Metrics


@dataclass(frozen=True, slots=True)
class StoreMetrics:
    """Requests to the object store, and bytes: sent, copied (inside the store), received."""

    seconds: Histogram
    bytes: Counter

    @classmethod
    def on(cls, metrics: Metrics) -> "StoreMetrics":
        return cls(
            metrics.histogram(
                "content_store_request_seconds", "Time of requests to the store.", ["operation", "outcome"]
            ),
            metrics.counter("content_store_bytes_total", "Bytes of object data.", ["direction"]),
        )


@dataclass(frozen=True, slots=True)
class JobMetrics:
    """Jobs by kind (backup, restore) and how they ended."""

    running: Gauge
    waiting: Gauge
    seconds: Histogram

    @classmethod
    def on(cls, metrics: Metrics) -> "JobMetrics":
        return cls(
            metrics.gauge("content_jobs_running", "Jobs at work.", ["kind"]),
            metrics.gauge("content_jobs_waiting", "Jobs in the queue.", ["kind"]),
            metrics.histogram("content_job_seconds", "Time of finished jobs.", ["kind", "outcome"]),
        )
