"""Extractor processes, which check and write windows of small members while this process fetches them.

Threads would not do: creating small files is a row of short system calls, and around each of them a thread
gives the interpreter's lock away and queues for it again, which costs more than the calls.
"""

import asyncio
import contextlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Self, cast

from content.archive.extract import HandedOver, TreeWriter
from content.errors import ContentError
from content.selection import MAX_HELD_BYTES, Window
from content.windows import Setup, write_window
from servicekit.threads import in_thread

WORTHWHILE_WINDOWS = 8
"""Fewer are written sooner than a process is started."""


class ExtractorDied(ContentError):
    retryable = True

    def __init__(self, status: int | None) -> None:
        super().__init__(f"a process that writes the restored files ended with status {status}")


class Extractors:
    """Writes windows into ``tree``, as many at a time as there are processes; with none, in a thread. As many
    as ``windows`` are being fetched or written at a time.

    An async context manager. `hand_over` when all is written, before `TreeWriter.finish`.
    """

    def __init__(self, tree: TreeWriter, archive: str, *, processes: int, windows: int) -> None:
        self._tree = tree
        self._archive = archive
        self._count = processes
        self._windows = windows
        self._all: list[_Extractor] = []
        self._idle: asyncio.Queue[_Extractor] = asyncio.Queue()
        self._rooms: asyncio.Queue[int] = asyncio.Queue()
        self._here = asyncio.Lock()

    async def __aenter__(self) -> Self:
        file = os.memfd_create("lapstrake-windows", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, self._windows * MAX_HELD_BYTES)
            self._memory = mmap.mmap(file, 0)
            for number in range(self._windows):
                self._rooms.put_nowait(number * MAX_HELD_BYTES)
            for _ in range(self._count):
                extractor = await in_thread(_Extractor, self._tree, self._archive, file)
                self._all.append(extractor)
                self._idle.put_nowait(extractor)
        finally:
            os.close(file)
        return self

    async def __aexit__(self, *_: object) -> None:
        for extractor in self._all:
            await in_thread(extractor.close)
        with contextlib.suppress(BufferError):  # an error that is being raised may refer to it, and frees it
            self._memory.close()

    @property
    def pids(self) -> list[int]:
        return [extractor.pid for extractor in self._all]

    async def write(self, window: Window, fetch: Callable[[memoryview], Awaitable[None]]) -> None:
        """Lets ``fetch`` fill the memory for the window, and returns when it is written. Raises as ``fetch``
        and `content.windows.write_window`, and ExtractorDied.
        """
        room = await self._rooms.get()
        try:
            with memoryview(self._memory) as memory, memory[room : room + window.span.length] as data:
                await fetch(data)
                await self._write(room, data, window)
        finally:
            self._rooms.put_nowait(room)

    async def _write(self, room: int, data: memoryview, window: Window) -> None:
        if not self._count:
            async with self._here:
                await in_thread(write_window, data, window, self._tree, self._archive)
            return
        extractor = await self._idle.get()
        try:
            await in_thread(extractor.write, room, window)
        finally:
            self._idle.put_nowait(extractor)

    async def hand_over(self) -> None:
        """Gives ``tree`` what the processes left for its `finish`."""
        for extractor in self._all:
            self._tree.take_over(await in_thread(extractor.hand_over))


class _Extractor:
    """One process; blocking, used by one thread at a time."""

    def __init__(self, tree: TreeWriter, archive: str, memory: int) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "content.processes.extractor", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), memory, tree.root],
            )
            self._channel = Connection(ours.detach())
        finally:
            ours.close()
            theirs.close()
        self._channel.send(Setup(tree.root, memory, tree.limits, tree.where, archive, tree.ids))

    @property
    def pid(self) -> int:
        return self._process.pid

    def write(self, room: int, window: Window) -> None:
        answer = self._ask((room, window))
        if isinstance(answer, ContentError):
            raise answer

    def hand_over(self) -> HandedOver:
        return cast("HandedOver", self._ask(None))

    def _ask(self, question: tuple[int, Window] | None) -> object:
        try:
            self._channel.send(question)
            return self._channel.recv()
        except (EOFError, ConnectionError):
            raise ExtractorDied(self._process.wait()) from None

    def close(self) -> None:
        self._channel.close()
        self._process.wait()
