"""Several workers on one stream of items; the first failure ends the others and is the one that is raised."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, concurrency: int) -> None:
    """Does ``work`` for every item, at most ``concurrency`` at a time; items are taken as they are needed."""
    shared = iter(items)

    async def worker() -> None:
        for item in shared:  # each worker takes the next one
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
