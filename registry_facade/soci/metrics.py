"""What the facade counts of SOCI."""

from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from servicekit.metrics import Metrics


@dataclass(frozen=True)
class SociMetrics:
    """Collectors on one registry; make it with `on`."""

    layers: Counter
    waiting: Gauge

    @classmethod
    def on(cls, metrics: Metrics) -> "SociMetrics":
        return cls(
            metrics.counter(
                "facade_soci_layers", "Gzip layers that came to be indexed, by outcome.", ["outcome"]
            ),
            metrics.gauge("facade_soci_layers_waiting", "Layers that wait to be indexed."),
        )
