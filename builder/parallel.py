"""Several things at a time, and an orderly end when one of them fails."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def each(items: Sequence[T], work: Callable[[T], Awaitable[R]], *, jobs: int) -> Sequence[R]:
    """``work`` on every item, ``jobs`` at a time; results in the order of the items.

    After a failure nothing more is started, what is under way is finished, and the first error is raised:
    an hour of someone else's build is not thrown away for it. Cancelling cancels all.
    """
    results: dict[int, R] = {}
    errors: list[Exception] = []
    queue = iter(enumerate(items))

    async def worker() -> None:
        for at, item in queue:
            if errors:
                return
            try:
                results[at] = await work(item)
            except Exception as error:  # noqa: BLE001 (kept, and raised when the others are done)
                errors.append(error)

    async with asyncio.TaskGroup() as group:
        for _ in range(max(1, min(jobs, len(items)))):
            group.create_task(worker())
    if errors:
        raise errors[0]
    return [results[at] for at in range(len(items))]
