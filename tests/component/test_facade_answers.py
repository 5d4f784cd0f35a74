"""Answers made beforehand: the same bytes aiohttp would send, and no way to slip a header in."""

import asyncio
from pathlib import Path

import pytest

from ocikit.digest import Digest
from ocikit.media_types import OCI_MANIFEST
from registry_facade.responses import ready_head
from tests.support.facade import running_facade
from tests.support.scripted_registry import scripted_registry

MANIFEST = b'{"schemaVersion": 2, "mediaType": "%s", "config": %s, "layers": []}' % (
    OCI_MANIFEST.encode(),
    b'{"mediaType": "application/vnd.oci.empty.v1+json", "digest": "sha256:%s", "size": 2}' % (b"4" * 64),
)


@pytest.mark.parametrize("text", ["a\r\nX: y", "a\nX: y", "a\rb"], ids=repr)
def test_line_breaks_in_a_header_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        ready_head(Digest.of(b""), text, 0, "")


async def exchange(address: str, request: str) -> tuple[str, dict[str, str], bytes]:
    """One request as written, over a socket of its own; the answer up to the end of the connection."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.replace("\n", "\r\n").encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = await reader.readexactly(int(headers["Content-Length"]))
    if headers.get("Connection") == "close":
        assert await reader.read() == b""
    writer.close()
    return status, headers, body


async def test_ready_answer_equals_the_one_made_for_a_connection_that_closes(tmp_path: Path) -> None:
    async with scripted_registry() as upstream:
        digest, blob = upstream.add_manifest(MANIFEST, "v1"), upstream.add_blob(b"a layer")
        async with running_facade(tmp_path, upstreams={"hub.test": upstream.origin}) as facade:
            for path in (f"manifests/{digest}", "manifests/v1", f"blobs/{blob}"):
                await facade.get(f"/v2/x/{path}")
                answers = [
                    await exchange(
                        facade.address, f"GET /v2/x/{path}?ns=hub.test HTTP/1.1\nHost: x\n{more}\n"
                    )
                    for more in ("", "Connection: close\n")
                ]
                (status, ready, body), (made_status, made, made_body) = answers
                assert (status, body) == (made_status, made_body)
                assert made.pop("Connection") == "close"
                for varying in ("Server", "Accept-Ranges"):
                    made.pop(varying, None)
                    ready.pop(varying, None)
                assert ready == made | {"Date": ready["Date"]}


async def test_requests_sent_without_waiting_are_answered_in_order(tmp_path: Path) -> None:
    async with scripted_registry() as upstream:
        blobs = {upstream.add_blob(data): data for data in (b"one", b"two", b"three")}
        async with running_facade(tmp_path, upstreams={"hub.test": upstream.origin}) as facade:
            host, _, port = facade.address.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            for _ in range(2):
                for digest in blobs:
                    writer.write(f"GET /v2/x/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                for digest, data in blobs.items():
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert f'ETag: "{digest}"'.encode() in head
                    assert await reader.readexactly(len(data)) == data
            writer.close()
