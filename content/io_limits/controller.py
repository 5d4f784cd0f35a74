"""Slows the node's own disk work while the neighbours wait for the disk, and only then.

Additive-multiplicative: halved at each look that finds them waiting longer than the target, never below the
floor (a backup must end); growing again at each look that does not, until no limit is needed any more. On an
idle node there is none.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from content.io_limits import pressure
from content.metrics import IoMetrics
from content.rates import Buckets
from servicekit.clock import Clock, SystemClock

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Law:
    """``target`` is the share of time that a neighbour may wait; above ``ceiling_bytes_s`` limits end."""

    target: float = 0.1
    floor_bytes_s: int = 8 << 20
    ceiling_bytes_s: int = 1 << 30
    fall: float = 0.5
    rise: float = 1.25
    step_bytes_s: int = 1 << 20
    every_s: float = 0.5


def next_rate(law: Law, rate: float | None, moved_bytes_s: float, waiting: float) -> float | None:
    """The rate until the next look; None is no limit. ``moved_bytes_s`` is what was used since the last."""
    if waiting > law.target:
        used = moved_bytes_s if rate is None else min(rate, moved_bytes_s)
        return max(law.floor_bytes_s, used * law.fall)
    if rate is None:
        return None
    grown = rate * law.rise + law.step_bytes_s
    return None if grown > law.ceiling_bytes_s else grown


class PressureController:
    """Follows the pressure files that match ``patterns`` and squeezes ``node``; `run` until cancelled."""

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
        self._rate: float | None = None

    async def run(self) -> None:
        """Without a file to follow nothing is limited, and a metric says so."""
        before = await asyncio.to_thread(pressure.read, self._patterns)
        moved = self._node.disk_bytes
        try:
            while True:
                await self._clock.sleep(self.law.every_s)
                now = await asyncio.to_thread(pressure.read, self._patterns)
                elapsed_s = (now.at_ns - before.at_ns) / 1e9
                waiting = pressure.share(before, now)
                used_bytes_s = (self._node.disk_bytes - moved) / elapsed_s
                self._follow(next_rate(self.law, self._rate, used_bytes_s, waiting))
                self._metrics.pressure.set(waiting)
                self._metrics.pressure_files.set(len(now.stalled_us))
                before, moved = now, self._node.disk_bytes
        finally:
            self._node.squeeze(None)

    def _follow(self, rate: float | None) -> None:
        if (rate is None) != (self._rate is None):
            _log.info("disk_work_squeezed" if rate is not None else "disk_work_released", rate_bytes_s=rate)
        self._rate = rate
        self._node.squeeze(rate)
        self._metrics.squeezed.set(rate or 0)
