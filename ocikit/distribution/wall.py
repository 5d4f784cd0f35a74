"""A wall around what others make us ask: nothing on a private network that was not configured.

Where a redirect, the realm of a token or a client's URL leads must lie on the public Internet; names are
judged by the addresses they resolve to, at the moment of connecting, so that a name cannot change its mind in
between. Configured hosts are free.
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


class WalledResolver(AbstractResolver):
    """Refuses names that lead to private addresses, unless they are in ``free``."""

    def __init__(self, free: Collection[str]) -> None:
        self._free = free
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if host not in self._free and any(is_private(item["host"]) for item in found):
            raise OSError(f"{host} leads to a private address and is not configured")
        return found

    async def close(self) -> None:
        await self._inner.close()


class WalledTransport(Transport):
    """A transport that reaches public addresses and the ``free`` hosts, nothing else."""

    def __init__(self, deadlines: Deadlines, free: Collection[str]) -> None:
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
        host = urlsplit(url).hostname or ""
        if host not in self._free and is_private(host):
            raise Denied(host, "", "it is a private address and not configured")
        async with super().send(method, url, headers=headers, data=data) as response:
            yield response
