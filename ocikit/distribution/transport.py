"""HTTP as the registry client needs it, and the one place where aiohttp's client errors are understood.

No total timeout: a 10 GB layer takes what it takes. Each phase has its own deadline instead. Encodings are
refused and never undone behind our back, because a blob is named by its bytes as they are on the wire.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from multidict import CIMultiDictProxy

from ocikit.errors import ConnectFailed, ReadFailed, TimedOut, TransportError
from servicekit.redact import redact_url

USER_AGENT = "lapstrake/0.1"
_ERROR_BODY_BYTES = 64 * 1024
_REASON_CHARS = 200
"""A parser may quote all that it did not understand, which is what the peer sent."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds per phase: to connect, to the first byte of the answer, between two pieces of a body."""

    connect_s: float = 10.0
    first_byte_s: float = 60.0
    idle_s: float = 60.0


class Response:
    """An answer whose body has not been read yet; close it through `Transport.send`'s context."""

    def __init__(self, raw: aiohttp.ClientResponse, url: str) -> None:
        self._raw = raw
        self.url = url
        self.status = raw.status
        self.headers: CIMultiDictProxy[str] = raw.headers

    async def read(self, limit_bytes: int) -> bytes:
        """At most ``limit_bytes`` + 1 bytes of the body, so that too much can be told."""
        data = bytearray()
        async for piece in self.pieces():
            data += piece
            if len(data) > limit_bytes:
                break
        return bytes(data[: limit_bytes + 1])

    async def error_text(self) -> str:
        """The body of an error answer, bounded, never raising."""
        try:
            return (await self.read(_ERROR_BODY_BYTES)).decode(errors="replace")
        except TransportError:
            return ""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises ReadFailed or TimedOut; ends early never."""
        with _foreign_errors(self.url, "between two pieces of the body"):
            async for piece in self._raw.content.iter_any():
                yield piece


class Transport:
    """One connection pool. Use as an async context manager; safe for concurrent use on one loop.

    ``max_connections`` is per host. ``tls`` None means the system's trust.
    """

    def __init__(
        self,
        deadlines: Deadlines = Deadlines(),
        *,
        max_connections: int = 32,
        tls: ssl.SSLContext | None = None,
        resolver: aiohttp.abc.AbstractResolver | None = None,
    ) -> None:
        self._deadlines = deadlines
        self._max_connections = max_connections
        self._tls = tls
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=self._max_connections,
            ssl=self._tls if self._tls is not None else True,
            resolver=self._resolver,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._deadlines.connect_s, sock_read=self._deadlines.idle_s
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            read_bufsize=1 << 18,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @contextlib.asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | AsyncIterable[bytes] | None = None,
    ) -> AsyncIterator[Response]:
        """One request, no redirects followed. Raises ConnectFailed, TimedOut or ReadFailed."""
        if self._session is None:
            raise RuntimeError("Transport.send outside its context")
        with _foreign_errors(url, "waiting for the answer"):
            async with asyncio.timeout(None if data is not None else self._deadlines.first_byte_s):
                raw = await self._session.request(
                    method, url, headers=headers, data=_body(data), allow_redirects=False
                )
        try:
            yield Response(raw, redact_url(url))
        finally:
            if raw.content.at_eof():
                raw.release()
            else:
                raw.close()


def _body(data: bytes | AsyncIterable[bytes] | None) -> Any:
    return data


@contextlib.contextmanager
def _foreign_errors(url: str, phase: str) -> Iterator[None]:
    shown = redact_url(url)
    try:
        yield
    except TimeoutError as error:  # aiohttp's timeouts are TimeoutErrors too
        raise TimedOut(shown, phase) from error
    except aiohttp.ClientConnectorCertificateError as error:  # the only one without an os_error
        reason = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        raise ConnectFailed(f"{error.host}:{error.port}", f"its certificate is refused: {reason}") from error
    except aiohttp.ClientConnectorError as error:
        reason = os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
        raise ConnectFailed(f"{error.host}:{error.port}", reason) from error
    except aiohttp.ClientPayloadError as error:
        raise ReadFailed(shown, "the body ended early") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ReadFailed(shown, str(error)[:_REASON_CHARS] or type(error).__name__) from error
