"""Extractor processes, which check and write windows of small members while this process fetches them.

Threads would not do: creating small files is a row of short system calls, and around each of them a thread
gives the interpreter's lock away and queues for it again, which costs more than the calls.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Self, TypeVar, cast

from content.archive.extract import HandedOver, TreeWriter
from content.errors import ContentError
from content.selection import MAX_HELD_BYTES, Window
from content.windows import Setup, write_window

T = TypeVar("T")
WORTHWHILE_WINDOWS = 8
"""Fewer are written sooner than a process is started."""


class ExtractorDied(ContentError):
    retryable = True

    def __init__(self, status: int | None) -> None:
        super().__init__(f"a process that writes the restored files ended with status {status}")


class Extractors:
    """Writes windows into ``tree``, as many at a time as there are processes; with none, in a thread.

    An async context manager. `hand_over` when all is written, before `TreeWriter.finish`.
    """

    def __init__(self, tree: TreeWriter, archive: str, *, processes: int) -> None:
        self._tree = tree
        self._archive = archive
        self._count = processes
        self._all: list[_Extractor] = []
        self._idle: asyncio.Queue[_Extractor] = asyncio.Queue()
        self._here = asyncio.Lock()

    async def __aenter__(self) -> Self:
        for _ in range(self._count):
            extractor = await asyncio.to_thread(_Extractor, self._tree, self._archive)
            self._all.append(extractor)
            self._idle.put_nowait(extractor)
        return self

    async def __aexit__(self, *_: object) -> None:
        for extractor in self._all:
            await asyncio.to_thread(extractor.close)

    @property
    def pids(self) -> list[int]:
        return [extractor.pid for extractor in self._all]

    async def write(self, data: bytes | bytearray, window: Window) -> None:
        """Returns when ``data``, which is the window's, is written. Raises as `content.windows.write_window`,
        and ExtractorDied.
        """
        if not self._count:
            async with self._here:
                await asyncio.to_thread(write_window, data, window, self._tree, self._archive)
            return
        extractor = await self._idle.get()
        try:
            await _to_its_end(lambda: extractor.write(data, window))
        finally:
            self._idle.put_nowait(extractor)

    async def hand_over(self) -> None:
        """Gives ``tree`` what the processes left for its `finish`."""
        for extractor in self._all:
            self._tree.take_over(await _to_its_end(extractor.hand_over))


class _Extractor:
    """One process; blocking, used by one thread at a time."""

    def __init__(self, tree: TreeWriter, archive: str) -> None:
        self._memory = os.memfd_create("lapstrake-window", os.MFD_CLOEXEC)
        ours, theirs = socket.socketpair()
        try:
            os.ftruncate(self._memory, MAX_HELD_BYTES)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "content.processes.extractor", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), self._memory, tree.root],
            )
            self._channel = Connection(ours.detach())
        finally:
            ours.close()
            theirs.close()
        self._channel.send(Setup(tree.root, self._memory, tree.limits, tree.where, archive, tree.ids))

    @property
    def pid(self) -> int:
        return self._process.pid

    def write(self, data: bytes | bytearray, window: Window) -> None:
        os.pwrite(self._memory, data, 0)
        answer = self._ask(window)
        if isinstance(answer, ContentError):
            raise answer

    def hand_over(self) -> HandedOver:
        return cast("HandedOver", self._ask(None))

    def _ask(self, question: Window | None) -> object:
        try:
            self._channel.send(question)
            return self._channel.recv()
        except (EOFError, ConnectionError):
            raise ExtractorDied(self._process.wait()) from None

    def close(self) -> None:
        self._channel.close()
        self._process.wait()
        os.close(self._memory)


async def _to_its_end(work: Callable[[], T]) -> T:
    """Runs ``work`` in a thread and, when cancelled, waits for it all the same: its data is in use."""
    working = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if not working.cancelled():
            working.exception()
        raise
