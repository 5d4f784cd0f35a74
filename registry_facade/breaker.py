"""A circuit breaker: who fails again and again is not asked for a while."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ocikit.blobs import BlobReader, BlobSource
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import OciError, SourceUnavailable
from ocikit.ranges import ByteRange
from servicekit.clock import Clock


class Breaker:
    """Opens after `THRESHOLD` failures in a row; after `PAUSE_S` one request may try again.

    Only failures that a later request could be spared count (``retryable`` ones).
    """

    THRESHOLD = 5
    PAUSE_S = 10.0

    def __init__(self, clock: Clock, name: str = "upstream") -> None:
        self._clock = clock
        self._name = name
        self._failures = 0
        self._closed_until_s = 0.0

    @contextlib.asynccontextmanager
    async def guarding(self) -> AsyncIterator[None]:
        """Around one request. Raises SourceUnavailable instead of making it while the circuit is open."""
        if self._failures >= self.THRESHOLD:
            wait_s = self._closed_until_s - self._clock.monotonic()
            if wait_s > 0:
                raise SourceUnavailable(
                    self._name, f"it failed {self._failures} times; next try in {wait_s:.0f} s"
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


@dataclass(frozen=True, slots=True)
class Guarded:
    """A source behind a breaker, which judges by whether it answers at all, not by how a body goes on."""

    source: BlobSource
    breaker: Breaker

    @property
    def name(self) -> str:
        return self.source.name

    async def stat(self, digest: Digest) -> Descriptor:
        async with self.breaker.guarding():
            return await self.source.stat(digest)

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        async with contextlib.AsyncExitStack() as stack:
            async with self.breaker.guarding():
                reader = await stack.enter_async_context(self.source.open(digest, byte_range))
            yield reader


def _conforms(source: Guarded) -> BlobSource:
    return source
