"""Which facades there are: a fixed list, or the addresses behind a name (a headless service)."""

import asyncio
import socket
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

import structlog

from servicekit.clock import Clock, SystemClock

_FRESH_S = 10.0
_LOOKUP_S = 1.0
_DNS = "dns+"

_log = structlog.get_logger(__name__)


def is_peer_address(text: str) -> bool:
    """``http://HOST:PORT``, or ``dns+http://NAME:PORT`` for every address that NAME has."""
    parts = urlsplit(text.removeprefix(_DNS))
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.path in {"", "/"}


class Membership:
    """``own`` is how the others address this facade; it is a member whether or not it is listed.

    One event loop. A name that cannot be looked up keeps the addresses it had.
    """

    def __init__(self, addresses: Sequence[str], own: str, *, clock: Clock = SystemClock()) -> None:
        self.own = own.rstrip("/")
        self._fixed = [item.rstrip("/") for item in addresses if not item.startswith(_DNS)]
        self._names = [item.removeprefix(_DNS).rstrip("/") for item in addresses if item.startswith(_DNS)]
        self._found: dict[str, frozenset[str]] = {}
        self._fresh_until_s = 0.0
        self._clock = clock
        self._turn = asyncio.Lock()

    async def members(self) -> Collection[str]:
        """Everybody, this facade too. Never raises."""
        if self._names and self._clock.monotonic() >= self._fresh_until_s:
            async with self._turn:
                if self._clock.monotonic() >= self._fresh_until_s:
                    await asyncio.gather(*map(self._look_up, self._names))
                    self._fresh_until_s = self._clock.monotonic() + _FRESH_S
        return frozenset(self._fixed).union({self.own}, *self._found.values())

    async def _look_up(self, name: str) -> None:
        parts = urlsplit(name)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(_LOOKUP_S):
                found = await asyncio.get_running_loop().getaddrinfo(
                    parts.hostname, port, type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError) as error:
            _log.warning("peers_not_found", name=name, reason=str(error) or "timed out")
            return
        self._found[name] = frozenset(_url(parts.scheme, entry[4][0], port) for entry in found)


def _url(scheme: str, address: object, port: int) -> str:
    host = f"[{address}]" if ":" in str(address) else address
    return f"{scheme}://{host}:{port}"
