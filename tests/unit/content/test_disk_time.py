import asyncio
import os
import time
from pathlib import Path

import pytest

from content.disk_time import DiskTime, inputs


class _Turns:
    """Notes what is reported; answers once ``may_go``."""

    def __init__(self, *, needed: bool, may_go: bool = True) -> None:
        self.reports_us: list[int] = []
        self.asked = asyncio.Event()
        self.may_go = asyncio.Event()
        self._needed = needed
        if may_go:
            self.may_go.set()

    async def report(self, waited_us: int) -> bool:
        self.reports_us.append(waited_us)
        self.asked.set()
        await self.may_go.wait()
        return self._needed


def _cold_reads(file: Path) -> bytes:
    """From the disk, as far as the file system lets go of what it has."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


async def test_what_a_thread_waits_for_the_disk_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))
    os.sync()
    before = inputs()
    _cold_reads(file)
    if inputs() == before:
        pytest.skip("no disk lies under the tests' files")
    turns = _Turns(needed=False)
    disk = DiskTime(turns)

    def work() -> None:
        disk.begin()
        while not any(turns.reports_us):  # the test's own timeout ends it
            _cold_reads(file)
            assert not disk.look()

    await asyncio.to_thread(work)
    assert turns.reports_us[0] == 0


async def test_a_thread_that_has_nothing_read_owes_nothing() -> None:
    turns = _Turns(needed=False)
    disk = DiskTime(turns)

    def work() -> None:
        disk.begin()
        while len(turns.reports_us) < 4:
            disk.look()

    await asyncio.to_thread(work)
    assert set(turns.reports_us) == {0}


async def test_what_is_waited_for_apart_is_not_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))
    os.sync()
    turns = _Turns(needed=False)
    disk = DiskTime(turns)
    loop = asyncio.get_running_loop()

    def off_processor_s() -> float:
        return time.perf_counter() - time.thread_time()

    def work() -> float:
        """What may be counted at the most, in seconds."""
        started_s = off_processor_s()
        disk.begin()
        _cold_reads(file)
        with disk.apart():
            before_s = off_processor_s()
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result()
            apart_s = off_processor_s() - before_s
        disk.look()
        return off_processor_s() - started_s - apart_s

    most_s = await asyncio.to_thread(work)
    assert sum(turns.reports_us) <= most_s * 1e6


async def test_the_first_answer_is_there_before_the_first_step_and_holds() -> None:
    turns = _Turns(needed=True, may_go=False)
    disk = DiskTime(turns)
    steps: list[int] = []

    def work() -> None:
        for step in disk.paced(range(2)):
            assert disk.is_needed
            steps.append(step)

    working = asyncio.create_task(asyncio.to_thread(work))
    await turns.asked.wait()
    assert steps == []
    turns.may_go.set()
    await working
    assert steps == [0, 1]


async def test_while_neighbours_need_the_disk_each_report_is_rested_on() -> None:
    turns = _Turns(needed=True)
    disk = DiskTime(turns)
    rested = asyncio.Event()

    def work() -> None:
        disk.begin()
        loop.call_soon_threadsafe(turns.may_go.clear)
        while not rested.is_set():
            disk.look()

    loop = asyncio.get_running_loop()
    working = asyncio.create_task(asyncio.to_thread(work))
    async with asyncio.timeout(30):
        while turns.may_go.is_set() or len(turns.reports_us) < 2:
            await asyncio.sleep(0)
    reported = len(turns.reports_us)
    rested.set()
    turns.may_go.set()
    await working
    assert len(turns.reports_us) <= reported + 1


async def test_release_ends_a_rest_and_all_later_ones() -> None:
    turns = _Turns(needed=True, may_go=False)
    disk = DiskTime(turns)
    working = asyncio.create_task(asyncio.to_thread(lambda: list(disk.paced(range(3)))))
    await turns.asked.wait()
    disk.release()
    assert await working == [0, 1, 2]
