"""What the facade counts of pre-pulling."""

from dataclasses import dataclass

from prometheus_client import Counter

from servicekit.metrics import Metrics


@dataclass(frozen=True)
class WarmMetrics:
    """Collectors on one registry; make it with `on`."""

    images: Counter
    blobs: Counter
    fetched_bytes: Counter

    @classmethod
    def on(cls, metrics: Metrics) -> "WarmMetrics":
        return cls(
            metrics.counter("facade_warmed_images", "Images pre-pulled, by outcome.", ["outcome"]),
            metrics.counter("facade_warmed_blobs", "Blobs of pre-pulled images, by outcome.", ["outcome"]),
            metrics.counter("facade_warmed_bytes", "Bytes that were fetched by pre-pulling."),
        )
