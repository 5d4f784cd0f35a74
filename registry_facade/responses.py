"""Answers of the distribution protocol: errors by one table, and the headers every client relies on."""

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

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
    NotFound,
    OciError,
    StoreError,
)
from ocikit.manifest import RawManifest
from registry_facade.errors import (
    ImageSpecInvalid,
    ImageSpecNotFound,
    LayerUnavailable,
    UploadUnknown,
    UpstreamUnknown,
)

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
    (InvalidManifest, 502, "MANIFEST_INVALID"),
    (IntegrityError, 502, "DIGEST_INVALID"),
    (AccessError, 403, "DENIED"),
    (StoreError, 503, "UNAVAILABLE"),
)


def error_response(error: OciError) -> web.Response:
    """What a client gets for ``error``; anything not in the table is 503, so that clients go elsewhere."""
    if isinstance(error, InvalidRange):
        return json_error(416, "SIZE_INVALID", str(error), {"Content-Range": f"bytes */{error.size_bytes}"})
    for cls, status, code in _BY_ERROR:
        if isinstance(error, cls):
            return json_error(status, code, str(error))
    return json_error(503, "UNAVAILABLE", str(error))


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


def manifest_response(
    request: web.Request, raw: RawManifest, namespace: str, *, stale: bool = False
) -> web.Response:
    """A manifest for GET or HEAD, or 304."""
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
