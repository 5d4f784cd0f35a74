"""What the facade counts of IPFS."""

from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from servicekit.metrics import Metrics


@dataclass(frozen=True)
class IpfsMetrics:
    """Collectors on one registry; make it with `on`."""

    unmapped: Counter
    announced: Counter
    announced_bytes: Counter
    waiting: Gauge
    unpinned: Counter
    swarm_peers: Gauge
    occupied_bytes: Gauge
    budget_bytes: Gauge

    @classmethod
    def on(cls, metrics: Metrics) -> "IpfsMetrics":
        return cls(
            metrics.counter(
                "facade_ipfs_unmapped", "CIDs that were given up: lied, absent, refused.", ["reason"]
            ),
            metrics.counter("facade_ipfs_announced", "Blobs offered to IPFS, by outcome.", ["outcome"]),
            metrics.counter("facade_ipfs_announced_bytes", "Bytes of blobs that were added to IPFS."),
            metrics.gauge("facade_ipfs_announcements_waiting", "Blobs that wait to be added to IPFS."),
            metrics.counter("facade_ipfs_unpinned", "Layers that were unpinned to keep to the budget."),
            metrics.gauge("facade_ipfs_swarm_peers", "Other nodes that the IPFS node is connected with."),
            metrics.gauge("facade_ipfs_occupied_bytes", "Bytes in the repository of the IPFS node."),
            metrics.gauge(
                "facade_ipfs_budget_bytes", "Bytes that may be in the repository of the IPFS node."
            ),
        )
