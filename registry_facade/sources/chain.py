"""In which order the sources of a blob are asked, and which are not asked again."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence

from ocikit.blobs import BlobSource
from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, OciError
from registry_facade.errors import PullFailed

SIZE_S = 2.0
"""How long the size of a blob that no manifest has told is asked for, while its bytes are near."""


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """A source and how far it is believed: bytes of an untrusted one are shown to nobody unverified.

    ``hedged``: a trusted one is asked as well when it lets one wait, and instead when it is slow.
    ``streams``: how many ranges of a large blob are asked of it at a time.
    """

    source: BlobSource
    trusted: bool = True
    hedged: bool = False
    streams: int = 1


class Selection:
    """The standing of each origin in one download: absent, barred, or with so many failures in a row.

    The nearest origin with the fewest failures is next, one that was slow behind the others. Bytes received
    clear the failures of the origin that sent them, and let the others try again when it has none left to
    try: without any bytes, each origin is asked `ATTEMPTS` times, and one that is down is not asked again
    after every piece another has sent.
    """

    ATTEMPTS = 3

    def __init__(self, digest: Digest, origins: Sequence[Origin]) -> None:
        self._digest = digest
        self._origins = list(origins)
        self._failures = [0] * len(origins)
        self._errors: list[OciError | None] = [None] * len(origins)
        self._out = [False] * len(origins)
        self._slow = [False] * len(origins)
        self._has_given = [False] * len(origins)
        self._has_progressed = False

    def next(self) -> Origin:
        """Raises what the sources said when none is left to ask."""
        usable = self._usable()
        if not usable and self._has_progressed:
            self._has_progressed, self._failures = False, [0] * len(self._origins)
            usable = self._usable()
        if not usable:
            raise self._verdict()
        return self._origins[min(usable, key=lambda index: (self._failures[index], self._slow[index]))]

    def _usable(self) -> list[int]:
        return [
            index
            for index in range(len(self._origins))
            if not self._out[index] and self._failures[index] < self.ATTEMPTS
        ]

    def behind(self, origin: Origin) -> Origin | None:
        """A trusted origin to ask beside or instead of a hedged one that was not found slow before."""
        return self.instead_of(origin) if origin.hedged and not self.is_slow(origin) else None

    def instead_of(self, origin: Origin) -> Origin | None:
        """A trusted origin that an untrusted one can be left for."""
        if origin.trusted:
            return None
        for index in self._usable():
            if self._origins[index].trusted and not self._failures[index]:
                return self._origins[index]
        return None

    @property
    def streams(self) -> int:
        """How many ranges at a time the next origin wants to be asked for."""
        return self.next().streams if self._usable() else 1

    def is_slow(self, origin: Origin) -> bool:
        return self._slow[self._origins.index(origin)]

    def was_slow(self, origin: Origin) -> None:
        """It is asked only when the others fail."""
        self._slow[self._origins.index(origin)] = True

    async def trusted_size(self) -> int | None:
        """Asked of trusted sources when an untrusted one would say it first; None: nobody can say it soon."""
        if self.next().trusted:
            return None
        for origin in self._origins:
            if origin.trusted:
                with contextlib.suppress(OciError, TimeoutError):
                    async with asyncio.timeout(SIZE_S):
                        return (await origin.source.stat(self._digest)).size
        return None

    def failed(self, origin: Origin, error: OciError) -> None:
        """Retryable errors count; others, absence among them, end the asking."""
        index = self._origins.index(origin)
        self._errors[index] = error
        self._failures[index] += 1
        self._out[index] = self._out[index] or not error.retryable

    def bar(self, name: str, error: OciError) -> None:
        """Never asks the source ``name`` again: its bytes were wrong."""
        for index, origin in enumerate(self._origins):
            if origin.source.name == name:
                self._errors[index], self._out[index] = error, True

    def has_given(self, origin: Origin) -> bool:
        """Whether it is known to have this blob: to make one wait is then no reason to ask another too."""
        return self._has_given[self._origins.index(origin)]

    def progressed(self, origin: Origin) -> None:
        """Bytes came from ``origin``."""
        index = self._origins.index(origin)
        self._failures[index], self._has_given[index] = 0, True
        self._has_progressed = True

    @property
    def stalled(self) -> int:
        """How often the next origin failed since it last sent something."""
        return self._failures[self._origins.index(self.next())] if self._usable() else 0

    def _verdict(self) -> OciError:
        told = [error for error in self._errors if error is not None]
        telling = [error for error in told if not isinstance(error, BlobNotFound)]
        if not telling:
            return BlobNotFound(self._digest, "any source")
        if len(telling) == 1:
            return telling[0]
        return PullFailed(self._digest, [str(error) for error in telling])
