"""Watches the free space under the workspaces; a node that runs short says so and stops periodic work."""

import asyncio
import os
from pathlib import Path

import structlog
from prometheus_client import Gauge

from servicekit.clock import Clock, SystemClock
from servicekit.metrics import Metrics
from servicekit.units import format_size
from servicekit.web import Readiness

TOPIC = "disk"
_EVERY_S = 5.0
_log = structlog.get_logger(__name__)


class DiskGuard:
    """`check` looks once, `watch` until cancelled. ``readiness`` is refused under `TOPIC` below the mark."""

    def __init__(
        self,
        root: Path,
        min_free_bytes: int,
        readiness: Readiness,
        metrics: Metrics,
        *,
        clock: Clock = SystemClock(),
    ) -> None:
        self._root = root
        self._min_free_bytes = min_free_bytes
        self._readiness = readiness
        self._clock = clock
        self._free: Gauge = metrics.gauge("content_free_bytes", "Free space under the workspaces.")

    async def check(self) -> None:
        """A file system that cannot be asked counts as full."""
        try:
            status = await asyncio.to_thread(os.statvfs, self._root)
            free_bytes = status.f_bavail * status.f_frsize
        except OSError as error:
            self._readiness.refuse(TOPIC, f"{self._root}: {error.strerror}")
            return
        self._free.set(free_bytes)
        was_short = TOPIC in self._readiness.reasons
        if free_bytes < self._min_free_bytes:
            wanted = format_size(self._min_free_bytes)
            self._readiness.refuse(TOPIC, f"{format_size(free_bytes)} free, {wanted} wanted")
        else:
            self._readiness.accept(TOPIC)
        if was_short != (TOPIC in self._readiness.reasons):
            _log.warning("disk_space_changed", free_bytes=free_bytes, short=not was_short)

    async def watch(self) -> None:
        while True:
            await self.check()
            await self._clock.sleep(_EVERY_S)
