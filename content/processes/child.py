"""``python -m content.processes.child FD``: does one task that comes over the socket FD, and ends.

It ends at once when the service is gone: nobody could hear of its result, and the next service may start
the same work. Whether it ends cleanly makes no difference to what is committed.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from prometheus_client import Counter, Histogram

from content import tasks
from content.errors import ContentError
from content.journal import JournalDirectory
from content.metrics import StoreMetrics
from content.objects.base import StoreProperties
from content.objects.opening import StoreOptions, open_store
from content.processes.channel import Channel
from content.progress import Progress
from content.rates import DiskPace, Way
from servicekit.logging import configure_logging

_PROGRESS_EVERY_S = 0.2
_ORPHANED = 70


class _Grants:
    """Answers to what was asked for."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[bool]] = {}

    async def ask(self, kind: str, **fields: Any) -> bool:
        """Returns when it is granted; whether neighbours need the disk."""
        number = next(self._numbers)
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[number] = granted
        self._channel.send(kind, number=number, **fields)
        try:
            return await granted
        finally:
            del self._waiting[number]

    def grant(self, number: int, *, disk_is_needed: bool) -> None:
        if (granted := self._waiting.get(number)) is not None and not granted.done():
            granted.set_result(disk_is_needed)


@dataclasses.dataclass(frozen=True, slots=True)
class _RemoteBucket:
    """A `servicekit.throttle.Bucket` that the service keeps."""

    grants: _Grants
    way: Way

    async def acquire(self, size_bytes: int) -> None:
        await self.grants.ask("ask", way=self.way, bytes=size_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class _RemoteTurns:
    """A `content.disk_time.DiskTurns` that the service keeps."""

    grants: _Grants

    async def report(self, waited_us: int) -> bool:
        return await self.grants.ask("waited", us=waited_us)


@dataclasses.dataclass(frozen=True, slots=True)
class _RemoteCollector:
    """As much of a Histogram or a Counter as is used here; the service has the real one."""

    channel: Channel
    name: str
    values: tuple[str, ...] = ()

    def labels(self, *values: str) -> "_RemoteCollector":
        return dataclasses.replace(self, values=values)

    def observe(self, value: float) -> None:
        self.channel.send("metric", name=self.name, labels=self.values, value=value)

    inc = observe


async def main(end: socket.socket) -> None:
    channel = await Channel.over(end)
    message = await channel.receive()
    if message is None:
        return
    grants = _Grants(channel)
    working = asyncio.create_task(_work(message, channel, grants))
    listening = asyncio.create_task(_listen(channel, grants, working))
    try:
        result = await working
    except asyncio.CancelledError:
        channel.send("failed", type="Cancelled", detail="cancelled", retryable=True)
    except ContentError as error:
        channel.send("failed", type=type(error).__name__, detail=str(error), retryable=error.retryable)
    else:
        channel.send("done", result=result)
    await channel.flush()
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening
    await channel.close()


async def _listen(channel: Channel, grants: _Grants, working: "asyncio.Task[Any]") -> None:
    while (message := await channel.receive()) is not None:
        if message["kind"] == "grant":
            grants.grant(message["number"], disk_is_needed=message["disk_is_needed"])
        elif message["kind"] == "cancel":
            working.cancel()
    os._exit(_ORPHANED)


async def _work(message: Mapping[str, Any], channel: Channel, grants: _Grants) -> Mapping[str, Any]:
    setup = message["setup"]
    options = StoreOptions(
        s3_endpoint=setup["s3_endpoint"],
        concurrency=setup["concurrency"],
        sent=_RemoteBucket(grants, "send"),
        received=_RemoteBucket(grants, "receive"),
        metrics=StoreMetrics(
            cast("Histogram", _RemoteCollector(channel, "seconds")),
            cast("Counter", _RemoteCollector(channel, "bytes")),
        ),
        known=StoreProperties(**setup["properties"]),
    )
    progress = Progress()
    telling = asyncio.create_task(_tell(progress, channel))
    try:
        async with open_store(setup["store"], options) as store:
            pace = DiskPace(
                _RemoteBucket(grants, "read"), _RemoteBucket(grants, "write"), _RemoteTurns(grants)
            )
            journals = JournalDirectory(Path(setup["state_dir"]))
            return await tasks.perform(message["task"], tasks.Tools(store, progress, pace, journals))
    finally:
        telling.cancel()
        channel.send("progress", **dataclasses.asdict(progress))


async def _tell(progress: Progress, channel: Channel) -> None:
    told = dataclasses.asdict(Progress())
    while True:
        if (now := dataclasses.asdict(progress)) != told:
            channel.send("progress", **now)
            told = now
        await asyncio.sleep(_PROGRESS_EVERY_S)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the service decides, and says so over the channel
    configure_logging()
    asyncio.run(main(socket.socket(fileno=int(sys.argv[1]))))
