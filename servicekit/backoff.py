"""The one retry loop.

Whether a failure may pass is decided where it is understood and said by the error (``retryable``, and
``retry_after_s`` where the peer named a time); this loop only obeys.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from servicekit.clock import Clock, SystemClock

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays with full jitter: attempt n waits up to ``first_s * factor**n``, capped."""

    attempts: int = 4
    first_s: float = 0.2
    factor: float = 2.0
    cap_s: float = 20.0

    def delay_s(self, attempt: int) -> float:
        ceiling = min(self.cap_s, self.first_s * self.factor**attempt)
        return random.uniform(ceiling / 2, ceiling)  # noqa: S311 (spreads load, protects nothing)


def is_retryable(error: BaseException) -> bool:
    return bool(getattr(error, "retryable", False))


async def retry(
    operation: Callable[[], Awaitable[T]],
    *,
    backoff: Backoff = Backoff(),
    clock: Clock = SystemClock(),
    on_retry: Callable[[Exception, int, float], None] | None = None,
) -> T:
    """Runs ``operation`` until it succeeds, fails for good, or the attempts are used up.

    The last error is raised unchanged. ``on_retry`` gets (error, attempt from 1, delay_s).
    """
    for attempt in range(backoff.attempts):
        try:
            return await operation()
        except Exception as error:
            if not is_retryable(error) or attempt + 1 == backoff.attempts:
                raise
            delay_s = max(
                backoff.delay_s(attempt), min(getattr(error, "retry_after_s", None) or 0.0, backoff.cap_s)
            )
            if on_retry is not None:
                on_retry(error, attempt + 1, delay_s)
            await clock.sleep(delay_s)
    raise ValueError("backoff.attempts must be at least 1")
