"""Answers of the distribution protocol: errors by one table, and the headers every client relies on."""

import email.utils
import functools
import json
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from ocikit.digest import Digest
from ocikit.distribution.protocol import error_document
from ocikit.errors import (
    AccessError,
    BlobNotFound,
    IntegrityError,
    InvalidDigest,
    InvalidManifest,
    InvalidRange,
    InvalidReference,
    ManifestNotFound,
    NotBuiltFromBase,
    NotFound,
    OciError,
    StoreError,
)
from ocikit.manifest import RawManifest
from registry_facade.errors import (
    CallerUnknown,
    ImageSpecInvalid,
    ImageSpecNotFound,
    LayerUnavailable,
    UploadUnknown,
    UpstreamUnknown,
)

READY_BYTES = 256 << 10
"""Answers up to this size go out in one write."""
API_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}

_BY_ERROR: tuple[tuple[type[OciError], int, str], ...] = (
    # the first class that fits decides. Never 408 or 429: containerd retries those on the same host,
    # where any other status sends it on to the next one
    (BlobNotFound, 404, "BLOB_UNKNOWN"),
    (ManifestNotFound, 404, "MANIFEST_UNKNOWN"),
    (ImageSpecNotFound, 404, "MANIFEST_UNKNOWN"),
    (UpstreamUnknown, 404, "NAME_UNKNOWN"),
    (UploadUnknown, 404, "BLOB_UPLOAD_UNKNOWN"),
    (NotFound, 404, "NAME_UNKNOWN"),
    (InvalidDigest, 400, "DIGEST_INVALID"),
    (InvalidReference, 400, "NAME_INVALID"),
    (ImageSpecInvalid, 422, "MANIFEST_INVALID"),
    (LayerUnavailable, 422, "MANIFEST_INVALID"),
    (NotBuiltFromBase, 422, "MANIFEST_INVALID"),
    (InvalidManifest, 502, "MANIFEST_INVALID"),
    (IntegrityError, 502, "DIGEST_INVALID"),
    (AccessError, 403, "DENIED"),
    (StoreError, 503, "UNAVAILABLE"),
)


_CHALLENGE = {"WWW-Authenticate": 'Basic realm="lapstrake", charset="UTF-8"'}
"""Basic, because every client answers it, and containerd, podman and Docker with what they hold for us."""


def error_response(error: OciError, path: str = "") -> web.Response:
    """What a client gets for ``error``; anything not in the table is 503, so that clients go elsewhere.

    What is not there is called as the client called it: our own name for it may be a local path, and must
    be the same whether it is absent or not theirs.
    """
    if isinstance(error, InvalidRange):
        return json_error(416, "SIZE_INVALID", str(error), {"Content-Range": f"bytes */{error.size_bytes}"})
    if isinstance(error, CallerUnknown):
        return json_error(401, "UNAUTHORIZED", str(error), _CHALLENGE)
    for cls, status, code in _BY_ERROR:
        if isinstance(error, cls):
            return json_error(status, code, _told(error, path))
    return json_error(503, "UNAVAILABLE", str(error))


def _told(error: OciError, path: str) -> str:
    if isinstance(error, (BlobNotFound, ManifestNotFound)):
        return f"{path.removeprefix('/v2/')[:300]} is not here"
    if isinstance(error, StoreError):
        return "the store of this registry cannot be used; its log says why"
    return str(error)


def json_error(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        status=status,
        body=error_document(code, message),
        headers={"Content-Type": "application/json", **API_VERSION, **(headers or {})},
    )


def not_allowed(allowed: str) -> web.Response:
    return json_error(405, "UNSUPPORTED", "this registry is for pulling", {"Allow": allowed})


def etag(digest: Digest) -> str:
    return f'"{digest}"'


def matches(header: str | None, digest: Digest) -> bool:
    """Whether an If-None-Match or If-Range names ``digest`` (RFC 9110, 13.1.2)."""
    if header is None:
        return False
    wanted = etag(digest)
    return header.strip() == "*" or any(tag.strip().removeprefix("W/") == wanted for tag in header.split(","))


def content_headers(digest: Digest, media_type: str, namespace: str = "") -> dict[str, str]:
    headers = {
        "Content-Type": media_type,
        "Docker-Content-Digest": digest,
        "ETag": etag(digest),
        **API_VERSION,
    }
    if namespace:
        headers["OCI-Namespace"] = namespace
    return headers


class ReadyResponse(web.StreamResponse):
    """Head and body in one write, made before the request came; a busy mirror lives on it.

    Only where `may_be_ready` says so: what aiohttp adds for other clients and connections is left out.
    """

    def __init__(self, head: bytes, body: bytes) -> None:
        super().__init__()
        self._whole = b"".join((head, _date_line(int(time.time())), body))
        self._sent_by: AbstractStreamWriter | None = None

    @property
    def keep_alive(self) -> bool:
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        self._sent_by = request.writer
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:
        del data
        if self._sent_by is not None:
            await self._sent_by.write(self._whole)


@functools.lru_cache(maxsize=1)
def _date_line(now_s: int) -> bytes:
    return f"Date: {email.utils.formatdate(now_s, usegmt=True)}\r\n\r\n".encode()


@functools.lru_cache(maxsize=16384)
def ready_head(digest: Digest, media_type: str, size_bytes: int, namespace: str) -> bytes:
    """The head of a whole answer, up to and without its date."""
    headers = content_headers(digest, media_type, namespace)
    headers |= {"Accept-Ranges": "bytes", "Content-Length": str(size_bytes)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if lines.count("\r") != len(headers) or lines.count("\n") != len(headers):
        raise ValueError("a line break in a header")
    return f"HTTP/1.1 200 OK\r\n{lines}".encode()


def may_be_ready(request: web.Request) -> bool:
    """Whether nothing of the request changes the answer: the whole of it, on a connection that stays."""
    headers = request.headers
    return (
        request.method == "GET"
        and "If-None-Match" not in headers
        and "Range" not in headers
        and request.version == HttpVersion11
        and request.keep_alive
    )


def manifest_response(
    request: web.Request, raw: RawManifest, namespace: str, *, stale: bool = False
) -> web.StreamResponse:
    """A manifest for GET or HEAD, or 304."""
    if not stale and len(raw.data) <= READY_BYTES and may_be_ready(request):
        return ReadyResponse(ready_head(raw.digest, raw.media_type, len(raw.data), namespace), raw.data)
    headers = content_headers(raw.digest, raw.media_type, namespace)
    if stale:
        headers["Warning"] = '110 - "the upstream did not answer; this may be out of date"'
    if matches(request.headers.get("If-None-Match"), raw.digest):
        return web.Response(status=304, headers=headers)
    if request.method == "HEAD":
        headers["Content-Length"] = str(len(raw.data))
        return web.Response(headers=headers)
    return web.Response(body=raw.data, headers=headers)


def json_response(document: Mapping[str, Any], media_type: str, headers: Mapping[str, str]) -> web.Response:
    """Without a charset: clients compare the media type of an index as it stands."""
    body = json.dumps(document).encode()
    return web.Response(body=body, headers={"Content-Type": media_type, **API_VERSION, **headers})
