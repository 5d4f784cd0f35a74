"""Prometheus with an injected registry, so that nothing is counted in a module global.

Each package declares its collectors in its own ``metrics.py`` as a dataclass built on a `Metrics`; labels
come from closed sets (route patterns, source names, outcomes), never from digests or names of people.
"""

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Makes collectors on one registry and renders it. Safe for concurrent use."""

    def __init__(self, registry: CollectorRegistry | None = None, *, process: bool = False) -> None:
        self.registry = registry or CollectorRegistry()
        if process:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS_S
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


def merged(expositions: Mapping[str, bytes], label: str) -> bytes:
    """Several processes' expositions as one: each sample says by ``label`` whose it is.

    Nothing is added up: a counter that begins again with its process is then seen as just that.
    """
    families: dict[str, list[str]] = {}
    for owner, exposition in expositions.items():
        mark, lines = f'{label}="{owner}"', families.setdefault("", [])
        for line in exposition.decode().splitlines():
            if line.startswith("# HELP "):
                lines = families.setdefault(line, [])
            elif line.startswith("#"):
                if not lines:
                    lines.append(line)
            else:
                lines.append(_marked(line, mark))
    return "".join(
        f"{line}\n" for head, lines in families.items() for line in (head, *lines) if line
    ).encode()


def _marked(sample: str, mark: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace:
        return f"{name}{{{mark},{rest}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{mark}}} {value}"
