"""How fast bytes may go: of the node, and of each job within it; changeable while they run."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from content.disk_time import DiskTurns, Undisturbed
from servicekit.clock import Clock, SystemClock
from servicekit.throttle import Bucket, Throttle

Way = Literal["send", "receive", "read", "write"]
WAYS: tuple[Way, ...] = get_args(Way)


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
    """What a job asks before it reads a tree, before it writes one, and for turns on the disk."""

    read: Bucket = dataclasses.field(default_factory=Throttle)
    write: Bucket = dataclasses.field(default_factory=Throttle)
    disk: DiskTurns = dataclasses.field(default_factory=Undisturbed)


@dataclass(frozen=True, slots=True)
class Hold:
    """What is left of the disk while neighbours need it: ``share`` of the time for reading, which all jobs
    have together, and bytes per second for writing, whose time nobody can tell (it goes through the page
    cache). None is unlimited.
    """

    share: float | None = None
    write_bytes_s: float | None = None


class Buckets:
    """A token bucket for each way; those of a job are charged before the ``node``'s. For one event loop.

    ``disk`` counts microseconds.
    """

    def __init__(
        self, rates: Rates = UNLIMITED, *, node: "Buckets | None" = None, clock: Clock = SystemClock()
    ) -> None:
        self._asked = rates
        self._hold = Hold()
        self._node = node
        self.disk: Throttle = node.disk if node else Throttle(clock=clock)
        self._buckets = {
            way: Throttle(getattr(rates, way), parent=node[way] if node else None, clock=clock)
            for way in WAYS
        }

    def __getitem__(self, way: Way) -> Throttle:
        return self._buckets[way]

    @property
    def rates(self) -> Rates:
        """As asked for; `hold` may keep the disk below that."""
        return self._asked

    @property
    def held(self) -> Hold:
        """What `hold` keeps the node to."""
        return self._hold if self._node is None else self._node.held

    def change(self, rates: Rates) -> None:
        """Takes effect at once, also for whoever is waiting."""
        self._asked = rates
        for way in WAYS:
            self._apply(way)

    def hold(self, hold: Hold) -> None:
        """Until told otherwise; takes effect at once, also for whoever is waiting."""
        self._hold = hold
        rate = None if hold.share is None else hold.share * 1e6
        if rate != self.disk.rate_bytes_s:
            self.disk.set_rate(rate)
        self._apply("write")

    def _apply(self, way: Way) -> None:
        limits = [getattr(self._asked, way), self._hold.write_bytes_s if way == "write" else None]
        rate = min((limit for limit in limits if limit is not None), default=None)
        if rate != self._buckets[way].rate_bytes_s:
            self._buckets[way].set_rate(rate)
