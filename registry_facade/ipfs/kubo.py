"""What streams to and from a Kubo node: ``add`` and ``cat`` of its RPC.

Reference: https://docs.ipfs.tech/reference/kubo/rpc/. Every call has a deadline by phase. A node that
answers with an error, or not at all, is a SourceUnavailable; which of the two matters to `source`, so a
silent node is a `content.Silent`.
"""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any
from urllib.parse import urlencode

from ocikit.cid import CHUNK_BYTES, MAX_LINKS, is_cid
from ocikit.distribution.transport import Deadlines, Response, Transport
from ocikit.errors import SourceUnavailable
from registry_facade.ipfs.content import Content, Refused, Silent, translated, unavailable_pieces

NAME = "ipfs"
READ_DEADLINES = Deadlines(connect_s=1.0, first_byte_s=2.0, idle_s=5.0)
"""For a `Transport` to a Kubo node: what is slower than this, the next source serves."""
ADD_IDLE_S = 30.0
"""How long a node may take no data, or no decision at the end, before an add is given up."""
ADD_DEADLINES = Deadlines(connect_s=1.0, first_byte_s=ADD_IDLE_S, idle_s=ADD_IDLE_S)
"""For a `Transport` that blobs are added by: while a node collects garbage, adding waits."""
_ANSWER_BYTES = 1 << 20
_IMPORT = {
    "cid-version": "1",
    "raw-leaves": "true",
    "hash": "sha2-256",
    "chunker": f"size-{CHUNK_BYTES}",
    "max-file-links": str(MAX_LINKS),
    "trickle": "false",
    "inline": "false",
    "fast-provide-root": "true",
    "progress": "false",
    "quieter": "true",
}
"""All that decides on a CID, so that no node's own configuration does."""


class Kubo:
    """One node. Safe for concurrent use; the transport is its owner's."""

    def __init__(self, transport: Transport, api_url: str) -> None:
        self._transport = transport
        self._base = f"{api_url.rstrip('/')}/api/v0"

    async def add(self, pieces: AsyncIterable[bytes], *, pin_name: str) -> str:
        """Stores and pins a file; returns its CID. An error out of ``pieces`` leaves nothing pinned."""
        boundary = secrets.token_hex(16)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ADD_IDLE_S) as deadline:

                async def body() -> AsyncIterator[bytes]:
                    async for data in _multipart(pieces, boundary):
                        deadline.reschedule(loop.time() + ADD_IDLE_S)
                        yield data

                params = {**_IMPORT, "pin": "true", "pin-name": pin_name}
                async with self._call("add", params, headers=headers, data=body()) as response:
                    return _added(await response.read(_ANSWER_BYTES))
        except TimeoutError as error:
            raise Silent(NAME, f"took no data for {ADD_IDLE_S:.0f} s") from error

    @contextlib.asynccontextmanager
    async def cat(self, cid: str, start: int = 0, length: int | None = None) -> AsyncIterator[Content]:
        """The bytes of a file from ``start`` on. Raises on entering when the first byte does not come."""
        params = {"arg": cid, "offset": str(start), **({} if length is None else {"length": str(length)})}
        async with self._call("cat", params) as response:
            told = response.headers.get("X-Content-Length", "")
            if not told.isdigit():
                raise Refused(NAME, f"no length of {cid}")
            yield Content(int(told), unavailable_pieces(response, NAME))

    async def size(self, cid: str) -> int:
        """The size of a file, from its root block."""
        async with self._call("files/stat", {"arg": f"/ipfs/{cid}"}) as response:
            size = _document(await response.read(_ANSWER_BYTES)).get("Size")
        if not isinstance(size, int) or size < 0:
            raise Refused(NAME, f"no size of {cid}")
        return size

    async def is_alive(self) -> bool:
        """Whether the node answers anything at all."""
        try:
            async with self._call("version", {}):
                return True
        except SourceUnavailable:
            return False

    async def unpin(self, cid: str) -> None:
        """Lets the node's garbage collection have ``cid``; not pinned is success."""
        try:
            async with self._call("pin/rm", {"arg": cid}) as response:
                await response.read(_ANSWER_BYTES)
        except Refused as error:
            if "not pinned" not in str(error):
                raise

    @contextlib.asynccontextmanager
    async def _call(
        self,
        command: str,
        params: dict[str, str],
        *,
        headers: dict[str, str] | None = None,
        data: AsyncIterable[bytes] | None = None,
    ) -> AsyncIterator[Response]:
        url = f"{self._base}/{command}?{urlencode(params)}"
        with translated(NAME):
            async with self._transport.send("POST", url, headers=headers, data=data) as response:
                if response.status != 200:
                    raise Refused(NAME, _reason(await response.error_text(), response.status))
                yield response


async def _multipart(pieces: AsyncIterable[bytes], boundary: str) -> AsyncIterator[bytes]:
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="blob"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    yield head.encode()
    async for data in pieces:
        yield data
    yield f"\r\n--{boundary}--\r\n".encode()


def _added(answer: bytes) -> str:
    """The last line names the file; an import that broke off has none."""
    lines = answer.splitlines()
    cid = _document(lines[-1]).get("Hash") if lines else None
    if not isinstance(cid, str) or not is_cid(cid):
        raise Refused(NAME, "added, but told no CID")
    return cid


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise Refused(NAME, "its answer is not JSON") from error
    return document if isinstance(document, dict) else {}


def _reason(text: str, status: int) -> str:
    try:
        message = json.loads(text).get("Message")
    except (ValueError, AttributeError):
        message = None
    return str(message)[:200] if message else f"status {status}"
