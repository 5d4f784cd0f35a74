"""A wall around what others make us ask: nothing on a private network that was not configured.

Where a redirect, the realm of a token or a client's URL leads must lie on the public Internet; names are
judged by the addresses they resolve to, at the moment of connecting, so that a name cannot change its mind in
between. Free is what the owner names: a host, or better a host and a port.
"""

import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from ocikit.distribution.transport import Deadlines, Response, Transport
from ocikit.errors import Denied


def is_private(address: str) -> bool:
    """Whether an IP literal is anything but a public unicast address; False for names. Pure."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return not (mapped or parsed).is_global or parsed.is_multicast


Place = tuple[str, int]
"""Host and port."""


def place_of(url: str) -> Place:
    """Where an http or https URL leads. Raises ValueError for a port that is none. Pure."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def parse_place(text: str) -> Place | None:
    """``HOST`` or ``HOST:PORT``, port 443 unless said; None for what is neither. Pure."""
    try:
        parts = urlsplit(f"https://{text}")
        place = place_of(f"https://{text}")
    except ValueError:
        return None
    return place if place[0] and parts.netloc == text else None


def _is_free(host: str, port: int, free: Collection[str | Place]) -> bool:
    return host in free or (host, port) in free


class WalledResolver(AbstractResolver):
    """Refuses names that lead to private addresses, unless they are in ``free``."""

    def __init__(self, free: Collection[str | Place]) -> None:
        self._free = free
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not _is_free(host, port, self._free) and any(is_private(item["host"]) for item in found):
            raise OSError(f"{host} leads to a private address and is not configured")
        return found

    async def close(self) -> None:
        await self._inner.close()


class WalledTransport(Transport):
    """A transport that reaches public addresses and what is ``free``, nothing else."""

    def __init__(self, deadlines: Deadlines, free: Collection[str | Place]) -> None:
        super().__init__(deadlines, resolver=WalledResolver(free))
        self._free = free

    @contextlib.asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | AsyncIterable[bytes] | None = None,
    ) -> AsyncIterator[Response]:
        """As `Transport.send`. Raises Denied for an address behind the wall."""
        try:
            host, port = place_of(url)
        except ValueError as error:
            raise Denied(url[:100], "", "its address cannot be understood") from error
        if not _is_free(host, port, self._free) and is_private(host):
            raise Denied(host, "", "it is a private address and not configured")
        async with super().send(method, url, headers=headers, data=data) as response:
            yield response
