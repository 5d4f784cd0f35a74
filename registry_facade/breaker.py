"""A circuit breaker: who fails again and again is not asked for a while."""

import contextlib
from collections.abc import AsyncIterator

from ocikit.errors import OciError, SourceUnavailable
from servicekit.clock import Clock


class Breaker:
    """Opens after `THRESHOLD` failures in a row; after `PAUSE_S` one request may try again.

    Only failures that a later request could be spared count (``retryable`` ones).
    """

    THRESHOLD = 5
    PAUSE_S = 10.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._closed_until_s = 0.0

    @contextlib.asynccontextmanager
    async def guarding(self) -> AsyncIterator[None]:
        """Around one request. Raises SourceUnavailable instead of making it while the circuit is open."""
        if self._failures >= self.THRESHOLD:
            wait_s = self._closed_until_s - self._clock.monotonic()
            if wait_s > 0:
                raise SourceUnavailable(
                    "upstream", f"it failed {self._failures} times; next try in {wait_s:.0f} s"
                )
            self._closed_until_s = self._clock.monotonic() + self.PAUSE_S
        try:
            yield
        except OciError as error:
            if not error.retryable:
                self._failures = 0
                raise
            self._failures += 1
            if self._failures >= self.THRESHOLD:
                self._closed_until_s = self._clock.monotonic() + self.PAUSE_S
            raise
        self._failures = 0
