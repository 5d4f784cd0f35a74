"""How long a thread waits for the disk, and its rests while neighbours need it.

Bytes say little about what reading takes from others: a thousand small files cost a disk with a head more
than one large one, and a disk in the network something else again. Time is what all disks have the same of.
So a thread that reads a tree tells every 20 ms how much of them it waited, and where the disk is to be used
for a share of the time only, the answer comes after the rest.
"""

import asyncio
import concurrent.futures
import contextlib
import resource
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
_EVERY_S = 0.02


class DiskTurns(Protocol):
    """Who shares the disk out."""

    async def report(self, waited_us: int) -> bool:
        """Returns when the disk may be used again; whether neighbours need it now."""


class Undisturbed:
    """There are no neighbours."""

    async def report(self, waited_us: int) -> bool:  # noqa: ARG002 (as of the protocol)
        return False


class DiskTime:
    """For one thread, beside the event loop that this is made on: `begin`, then `look` after each step.

    Counted is the time between looks that the thread was off the processor, less `apart`; but nothing when
    it has had nothing read meanwhile, because then all was in the page cache and it waited for its turn on a
    busy machine. `release` is for the event loop.
    """

    def __init__(self, turns: DiskTurns) -> None:
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._answer: concurrent.futures.Future[bool] | None = None
        self._releasing = threading.Lock()
        self._is_released = False
        self._is_needed = False
        self._apart_s = 0.0
        self._mark()

    @property
    def is_needed(self) -> bool:
        """By neighbours, as of the last answer. For any thread."""
        return self._is_needed

    def begin(self) -> None:
        """Finds out before the first step whether neighbours need the disk."""
        self._report(0)
        self._take_answer()
        self._mark()

    def look(self) -> bool:
        """Rests when it must; whether neighbours need the disk, so that nothing should be read ahead."""
        now_s = time.perf_counter()
        if now_s - self._looked_s >= _EVERY_S:
            waited_s = self._waited_s(now_s)
            self._take_answer()
            self._report(int(waited_s * 1e6))
            if self._is_needed:
                self._take_answer()
            self._mark()
        return self._is_needed

    def paced(self, items: Iterable[T]) -> Iterator[T]:
        """Begins, and looks after each of ``items``."""
        self.begin()
        for item in items:
            yield item
            self.look()

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What is waited for in the block is not the disk."""
        started_s = _off_processor_s()
        try:
            yield
        finally:
            self._apart_s += _off_processor_s() - started_s

    def release(self) -> None:
        """No more rests; one under way ends."""
        with self._releasing:
            self._is_released = True
            if (answer := self._answer) is not None:
                answer.cancel()

    def _mark(self) -> None:
        self._looked_s = time.perf_counter()
        self._cpu_s = time.thread_time()
        self._inputs = inputs()
        self._apart_s = 0.0

    def _waited_s(self, now_s: float) -> float:
        if inputs() == self._inputs:
            return 0.0
        used_s = time.thread_time() - self._cpu_s
        return max(0.0, now_s - self._looked_s - used_s - self._apart_s)

    def _report(self, waited_us: int) -> None:
        with self._releasing:
            if not self._is_released:
                self._answer = asyncio.run_coroutine_threadsafe(self._turns.report(waited_us), self._loop)

    def _take_answer(self) -> None:
        if self._answer is not None:
            with contextlib.suppress(concurrent.futures.CancelledError):
                self._is_needed = self._answer.result()
            self._answer = None


def inputs() -> int:
    """How much this thread has had the disk read, in the kernel's units."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


def _off_processor_s() -> float:
    return time.perf_counter() - time.thread_time()
