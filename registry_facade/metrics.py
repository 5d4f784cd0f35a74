"""What the facade counts. Labels come from closed sets: source names, outcomes."""

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from servicekit.metrics import Metrics


@dataclass(frozen=True)
class FacadeMetrics:
    """Collectors on one registry; make it with `on`."""

    received_bytes: Counter
    served_bytes: Counter
    blob_requests: Counter
    manifest_requests: Counter
    source_failures: Counter
    hedges: Counter
    slow_sources: Counter
    downloads: Gauge
    readers_waiting: Gauge
    first_byte_s: Histogram
    broken_off: Counter
    corrupt_entries: Counter
    stale_answers: Counter
    refusals: Counter

    @classmethod
    def on(cls, metrics: Metrics) -> "FacadeMetrics":
        return cls(
            metrics.counter("facade_received_bytes", "Bytes of blobs that came in, by source.", ["source"]),
            metrics.counter(
                "facade_served_bytes", "Bytes of blobs that went out, by where they lay.", ["source"]
            ),
            metrics.counter(
                "facade_blob_requests", "Requests for blobs, by where they were answered from.", ["source"]
            ),
            metrics.counter("facade_manifest_requests", "Requests for manifests, by outcome.", ["outcome"]),
            metrics.counter("facade_source_failures", "Requests to a source that failed.", ["source"]),
            metrics.counter(
                "facade_hedges",
                "Requests that let one wait, so that another source was asked too; who was first.",
                ["source", "served_by"],
            ),
            metrics.counter(
                "facade_slow_sources", "Blobs taken from a source that was too slow.", ["source"]
            ),
            metrics.gauge("facade_downloads_in_flight", "Blobs being downloaded."),
            metrics.gauge(
                "facade_readers_waiting", "Readers of blobs that wait for bytes which are on their way."
            ),
            metrics.histogram(
                "facade_blob_first_byte_seconds", "From request to the first byte of a blob.", ["source"]
            ),
            metrics.counter("facade_responses_broken_off", "Answers that could not be finished."),
            metrics.counter("facade_cache_entries_corrupt", "Cached blobs found to be corrupt."),
            metrics.counter("facade_stale_answers", "Tags answered from memory while the upstream failed."),
            metrics.counter("facade_refusals", "Requests for what the caller may not have.", ["reason"]),
        )
