"""How fast bytes may go: of the node, and of each job within it; changeable while they run."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from servicekit.clock import Clock, SystemClock
from servicekit.throttle import Bucket, Throttle

Way = Literal["send", "receive", "read", "write"]
WAYS: tuple[Way, ...] = get_args(Way)
_DISK: tuple[Way, ...] = ("read", "write")


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second to and from the store, from and to the disk; None is unlimited."""

    send: int | None = None
    receive: int | None = None
    read: int | None = None
    write: int | None = None


UNLIMITED = Rates()


@dataclass(frozen=True, slots=True)
class DiskPace:
    """What a job asks before it reads a tree, and before it writes one."""

    read: Bucket = dataclasses.field(default_factory=Throttle)
    write: Bucket = dataclasses.field(default_factory=Throttle)


class Buckets:
    """A token bucket for each way; those of a job are charged before the ``node``'s. For one event loop."""

    def __init__(
        self, rates: Rates = UNLIMITED, *, node: "Buckets | None" = None, clock: Clock = SystemClock()
    ) -> None:
        self._asked = rates
        self._squeeze: float | None = None
        self._buckets = {
            way: Throttle(getattr(rates, way), parent=node[way] if node else None, clock=clock)
            for way in WAYS
        }

    def __getitem__(self, way: Way) -> Throttle:
        return self._buckets[way]

    @property
    def rates(self) -> Rates:
        """As asked for; `squeeze` may hold the disk below that."""
        return self._asked

    @property
    def squeezed_bytes_s(self) -> float | None:
        """What `squeeze` holds the disk to; None when nothing does."""
        return self._squeeze

    @property
    def disk_bytes(self) -> int:
        """Read and written so far."""
        return sum(self._buckets[way].moved_bytes for way in _DISK)

    def change(self, rates: Rates) -> None:
        """Takes effect at once, also for whoever is waiting."""
        self._asked = rates
        for way in WAYS:
            self._apply(way)

    def squeeze(self, rate_bytes_s: float | None) -> None:
        """Holds reading and writing at or below ``rate_bytes_s`` each, until told otherwise."""
        self._squeeze = rate_bytes_s
        for way in _DISK:
            self._apply(way)

    def _apply(self, way: Way) -> None:
        limits = [getattr(self._asked, way), self._squeeze if way in _DISK else None]
        rate = min((limit for limit in limits if limit is not None), default=None)
        if rate != self._buckets[way].rate_bytes_s:
            self._buckets[way].set_rate(rate)
