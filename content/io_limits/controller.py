"""Slows the node's own disk work while the neighbours wait for the disk, and only then.

Reading is held to a share of the disk's time. A look that finds neighbours waiting longer than the target
lowers it in proportion, so that one look is enough when the waiting is this node's doing, and never below the
floor (a backup must end); each look that does not raises it, until no limit is needed any more. Writing is
held in bytes, halved and raised likewise. On an idle node there is no limit.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from content.io_limits import pressure
from content.metrics import IoMetrics
from content.rates import Buckets, Hold
from servicekit.clock import Clock, SystemClock

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Law:
    """``target`` is the share of time that a neighbour may wait. Limits end when reading has all the time,
    and when writing is above ``ceiling_bytes_s``.
    """

    target: float = 0.1
    floor_share: float = 0.1
    floor_bytes_s: int = 8 << 20
    ceiling_bytes_s: int = 1 << 30
    fall: float = 0.5
    rise: float = 1.12
    step_share: float = 0.01
    step_bytes_s: int = 512 << 10
    every_s: float = 0.25


def next_share(law: Law, share: float | None, waiting: float) -> float | None:
    """The share of the disk's time until the next look; None is no limit."""
    if waiting > law.target:
        return max(law.floor_share, (1.0 if share is None else share) * law.target / waiting)
    if share is None:
        return None
    grown = share * law.rise + law.step_share
    return None if grown > 1.0 else grown


def next_rate(law: Law, rate: float | None, moved_bytes_s: float, waiting: float) -> float | None:
    """The rate of writing until the next look; None is no limit. ``moved_bytes_s`` was since the last."""
    if waiting > law.target:
        used = moved_bytes_s if rate is None else min(rate, moved_bytes_s)
        return max(law.floor_bytes_s, used * law.fall)
    if rate is None:
        return None
    grown = rate * law.rise + law.step_bytes_s
    return None if grown > law.ceiling_bytes_s else grown


class PressureController:
    """Follows the pressure files that match ``patterns`` and holds ``node``; `run` until cancelled."""

    def __init__(
        self,
        patterns: Sequence[str],
        node: Buckets,
        law: Law,
        metrics: IoMetrics,
        *,
        clock: Clock = SystemClock(),
    ) -> None:
        self._patterns = patterns
        self._node = node
        self.law = law
        self._metrics = metrics
        self._clock = clock
        self._hold = Hold()

    async def run(self) -> None:
        """Without a file to follow nothing is limited, and a metric says so."""
        before = await asyncio.to_thread(pressure.read, self._patterns)
        moved = self._node["write"].moved_bytes
        try:
            while True:
                await self._clock.sleep(self.law.every_s)
                now = await asyncio.to_thread(pressure.read, self._patterns)
                elapsed_s = (now.at_ns - before.at_ns) / 1e9
                waiting = pressure.share(before, now)
                written_bytes_s = (self._node["write"].moved_bytes - moved) / elapsed_s
                self._follow(
                    Hold(
                        next_share(self.law, self._hold.share, waiting),
                        next_rate(self.law, self._hold.write_bytes_s, written_bytes_s, waiting),
                    )
                )
                self._metrics.pressure.set(waiting)
                self._metrics.pressure_files.set(len(now.stalled_us))
                before, moved = now, self._node["write"].moved_bytes
        finally:
            self._node.hold(Hold())

    def _follow(self, hold: Hold) -> None:
        if (hold == Hold()) != (self._hold == Hold()):
            _log.info("disk_work_released" if hold == Hold() else "disk_work_held")
        self._hold = hold
        self._node.hold(hold)
        self._metrics.held_share.set(hold.share or 0)
        self._metrics.held_bytes_s.set(hold.write_bytes_s or 0)
