"""Sources that are nearer than an upstream, may be absent at any time, and are believed by nobody.

A neighbour hears of every blob that came in, so that it can pass it on, and of every lie it told.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import SourceUnavailable
from registry_facade.sharing import Audience
from registry_facade.sources.chain import Origin


@dataclass(frozen=True, slots=True)
class Place:
    """A repository that has a blob, or should."""

    upstream: str
    repository: str

    def query(self) -> dict[str, str]:
        return {"upstream": self.upstream, "repository": self.repository}


async def as_promised(pieces: AsyncIterator[bytes], length: int, name: str) -> AsyncIterator[bytes]:
    """``length`` bytes. Raises SourceUnavailable for fewer, and for more, which might never end."""
    left = length
    async for data in pieces:
        left -= len(data)
        if left < 0:
            raise SourceUnavailable(name, "it sends more than it said")
        yield data
    if left:
        raise SourceUnavailable(name, f"it ended {left} bytes early")


class Neighbour(Protocol):
    """The notices never raise."""

    @property
    def name(self) -> str:
        """That of its sources."""

    @property
    def relays(self) -> bool:
        """Whether it may be asked on behalf of a peer."""

    @property
    def is_public(self) -> bool:
        """Whether what it is asked for, or given, may become known to the world."""

    def origin(self, place: Place | None) -> Origin:
        """For a blob of ``place``, as far as that is known; never a trusted one."""

    def stored(self, digest: Digest, source: str) -> None:
        """A verified blob lies in the cache; most of it came from ``source``."""

    def lied(self, digest: Digest) -> None:
        """What it gave for ``digest`` was not that."""

    async def described(self, layers: Sequence[Descriptor]) -> None:
        """A manifest was seen, which says something of ``layers``; soon done."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """In the order they are asked."""

    members: Sequence[Neighbour] = ()

    def origins(
        self, place: Place | None, audience: Audience = Audience.CLUSTER, *, for_peer: bool = False
    ) -> list[Origin]:
        return [member.origin(place) for member in self._within(audience) if member.relays or not for_peer]

    def _within(self, audience: Audience) -> Iterator[Neighbour]:
        for member in self.members:
            if audience >= (Audience.WORLD if member.is_public else Audience.CLUSTER):
                yield member

    def stored(self, digest: Digest, source: str, audience: Audience = Audience.CLUSTER) -> None:
        for member in self._within(audience):
            member.stored(digest, source)

    async def described(self, layers: Sequence[Descriptor]) -> None:
        """A manifest was seen, which says something of ``layers``."""
        for member in self.members:
            await member.described(layers)

    def lied(self, digest: Digest, source: str) -> None:
        for member in self.members:
            if member.name == source:
                member.lied(digest)


NO_NEIGHBOURS = Neighbours()
