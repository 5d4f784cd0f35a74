"""What the facade counts of its peers."""

from dataclasses import dataclass

from prometheus_client import Counter

from servicekit.metrics import Metrics


@dataclass(frozen=True)
class PeerMetrics:
    """Collectors on one registry; make it with `on`."""

    failures: Counter
    served: Counter

    @classmethod
    def on(cls, metrics: Metrics) -> "PeerMetrics":
        return cls(
            metrics.counter("facade_peer_failures", "Peers that failed: unavailable, lied.", ["reason"]),
            metrics.counter("facade_peer_requests", "Requests of peers, by status.", ["status"]),
        )
