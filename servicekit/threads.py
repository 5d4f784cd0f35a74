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
    running = loop.run_in_executor(None, functools.partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:  # asked twice; the reason to stay is the same
                continue
        running.exception()  # seen: the cancellation is what is reported
        raise
