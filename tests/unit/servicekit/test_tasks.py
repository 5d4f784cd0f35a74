import asyncio
import gc
import threading

import pytest
import structlog

from servicekit.tasks import BackgroundTasks
from servicekit.testing.fake_clock import settle
from servicekit.threads import in_thread


async def test_a_task_nobody_holds_is_finished_before_close_returns() -> None:
    go, done = asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        done.append(True)

    async with BackgroundTasks() as tasks:
        tasks.start(work(), name="work")
        gc.collect()
        go.set()
    assert done == [True]


async def test_what_outlasts_the_drain_is_cancelled_and_awaited() -> None:
    ended: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    async with BackgroundTasks(drain_s=0) as tasks:
        tasks.start(hang(), name="hang")
        await settle()
    assert ended == ["cleaned up"]


async def test_a_failure_is_logged_with_the_name_of_the_task() -> None:
    async def fail() -> None:
        raise LookupError("gone")

    with structlog.testing.capture_logs() as logs:
        async with BackgroundTasks() as tasks:
            tasks.start(fail(), name="announce")
    assert [(entry["event"], entry["task"], entry["error"]) for entry in logs] == [
        ("background_task_failed", "announce", "gone")
    ]


async def test_a_cancelled_caller_stays_until_its_thread_is_done() -> None:
    entered, go, left = threading.Event(), threading.Event(), []

    def work() -> None:
        entered.set()
        go.wait()
        left.append(True)

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(entered.wait)
    task.cancel()
    await settle()
    task.cancel()
    await settle()
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left == [True]
