"""Tasks that outlive the call that started them, but not their owner.

The event loop keeps only weak references to tasks; a task nobody holds may vanish in mid-work.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Self

import structlog

_log = structlog.get_logger(__name__)


class BackgroundTasks:
    """Holds, names and finally drains detached tasks. Use as an async context manager.

    A task's failure is logged as ``background_task_failed``; it reaches nobody else.
    """

    def __init__(self, *, drain_s: float = 10.0) -> None:
        self._drain_s = drain_s
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning(
                "background_task_failed",
                task=task.get_name(),
                error=str(error),
                exc_type=type(error).__name__,
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits up to ``drain_s`` for what is running, then cancels the rest and waits for it to end."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self._drain_s)
        remaining = set(self._tasks)
        for task in remaining:
            task.cancel()
        await asyncio.gather(*remaining, return_exceptions=True)
