"""Blocking work in threads, by callers that own what the thread is using."""

import asyncio
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like `asyncio.to_thread`, but a cancelled caller does not get away before the thread is done.

    A thread cannot be cancelled. A caller that left at once would close a file descriptor that the thread
    is still writing to, and the kernel may by then have given its number to somebody else's file. Keep the
    pieces of work short.
    """
    loop = asyncio.get_running_loop()
    return await to_its_end(loop.run_in_executor(None, functools.partial(function, *args, **kwargs)))


async def to_its_end(running: asyncio.Future[T], *, interrupt: Callable[[], object] | None = None) -> T:
    """The result of a thread's work; a cancelled caller waits for it all the same, after ``interrupt`` has
    asked it to be quick.
    """
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if interrupt is not None:
            interrupt()
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:  # asked twice; the reason to stay is the same
                continue
        if not running.cancelled():
            running.exception()  # seen: the cancellation is what is reported
        raise
