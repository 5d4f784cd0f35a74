"""Sources that are nearer than an upstream, may be absent at any time, and are believed by nobody.

A neighbour hears of every blob that came in, so that it can pass it on, and of every lie it told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ocikit.digest import Digest
from registry_facade.sources.chain import Origin


@dataclass(frozen=True, slots=True)
class Place:
    """A repository that has a blob, or should."""

    upstream: str
    repository: str

    def query(self) -> dict[str, str]:
        return {"upstream": self.upstream, "repository": self.repository}


class Neighbour(Protocol):
    """The notices return at once and never raise."""

    @property
    def name(self) -> str:
        """That of its sources."""

    @property
    def relays(self) -> bool:
        """Whether it may be asked on behalf of a peer."""

    def origin(self, place: Place | None) -> Origin:
        """For a blob of ``place``, as far as that is known; never a trusted one."""

    def stored(self, digest: Digest, source: str) -> None:
        """A verified blob lies in the cache; most of it came from ``source``."""

    def lied(self, digest: Digest) -> None:
        """What it gave for ``digest`` was not that."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """In the order they are asked."""

    members: Sequence[Neighbour] = ()

    def origins(self, place: Place | None, *, for_peer: bool = False) -> list[Origin]:
        return [member.origin(place) for member in self.members if member.relays or not for_peer]

    def stored(self, digest: Digest, source: str) -> None:
        for member in self.members:
            member.stored(digest, source)

    def lied(self, digest: Digest, source: str) -> None:
        for member in self.members:
            if member.name == source:
                member.lied(digest)


NO_NEIGHBOURS = Neighbours()
