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


@dataclass(frozen=True, slots=True)
class PeriodicMetrics:
    """Periodic backups; ``age`` is what the node's loss would cost of the workspace that is worst off."""

    workspaces: Gauge
    age: Gauge
    failures: Counter

    @classmethod
    def on(cls, metrics: Metrics) -> "PeriodicMetrics":
        return cls(
            metrics.gauge("content_periodic_workspaces", "Workspaces that are backed up periodically."),
            metrics.gauge(
                "content_periodic_oldest_seconds",
                "Time since the last periodic backup (or the node's start) where that is longest ago.",
            ),
            metrics.counter("content_periodic_failures_total", "Periodic backups that failed."),
        )


@dataclass(frozen=True, slots=True)
class IoMetrics:
    """Limits on the jobs' disk work; ``failures`` counts what was not limited although it should be."""

    in_force: Gauge
    failures: Counter
    pressure: Gauge
    pressure_files: Gauge
    held_share: Gauge
    held_bytes_s: Gauge

    @classmethod
    def on(cls, metrics: Metrics) -> "IoMetrics":
        return cls(
            metrics.gauge("content_io_limits_in_force", "Jobs in a cgroup whose limits were read back."),
            metrics.counter("content_io_limit_failures_total", "Jobs that ran without a limit.", ["step"]),
            metrics.gauge("content_io_pressure_ratio", "Share of time that a neighbour waited for the disk."),
            metrics.gauge("content_io_pressure_files", "Pressure files of neighbours that are followed."),
            metrics.gauge("content_io_held_share", "Share of time that reading is held to; 0 is no limit."),
            metrics.gauge("content_io_held_bytes_s", "What writing is held to; 0 is no limit."),
        )
