"""The whole distribution API for the local namespace (distribution-spec v1.1): pull, push, delete, list."""

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, DigestMismatch, InvalidDigest, InvalidManifest, InvalidReference
from ocikit.manifest import MAX_MANIFEST_BYTES, RawManifest
from ocikit.reference import is_repository
from registry_facade.addressing import Endpoint, parse_endpoint
from registry_facade.listing import referrers_response, tags_response
from registry_facade.local.store import LocalStore
from registry_facade.metrics import FacadeMetrics
from registry_facade.open_blob import FileBlob
from registry_facade.responses import API_VERSION, content_headers, json_error, manifest_response
from registry_facade.streaming import BLOB_TYPE, BlobSender, asked_ranges, plan

_UPLOADS = re.compile(r"^/v2/(?P<name>.+)/blobs/uploads/(?P<identity>[0-9a-f]{32})?$")
_CHUNK = re.compile(r"^(?:bytes )?(\d+)-(\d+)(?:/.*)?$")

Permit = Callable[[str, bool], None]
"""Raises an OciError unless the caller may read, or with True write, the repository of that name."""


def _everything(_name: str, _push: bool) -> None:  # noqa: FBT001 (a Permit)
    pass


@dataclass(frozen=True, slots=True)
class LocalHandlers:
    """Requests for names below ``namespace``."""

    namespace: str
    store: LocalStore
    metrics: FacadeMetrics

    def owns(self, path: str) -> bool:
        return path.startswith(f"/v2/{self.namespace}/")

    async def serve(self, request: web.Request, permit: Permit = _everything) -> web.StreamResponse:
        """Raises OciErrors for the caller to answer, among them what ``permit`` raises."""
        upload = _UPLOADS.match(request.path)
        if upload is not None:
            _check_name(upload["name"])
            permit(upload["name"], True)
            if request.query.get("mount") and request.query.get("from"):
                permit(request.query["from"], False)
            return await self._upload(request, upload["name"], upload["identity"])
        endpoint = parse_endpoint(request.path)
        if endpoint is None:
            return json_error(404, "NAME_UNKNOWN", "no such path in this registry")
        _check_name(endpoint.name)
        permit(endpoint.name, request.method not in {"GET", "HEAD"})
        return await self._serve(request, endpoint)

    async def _serve(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        match endpoint.kind, request.method:
            case "manifests", "GET" | "HEAD":
                raw = await self.store.manifest(endpoint.name, endpoint.reference)
                return manifest_response(request, raw, "")
            case "manifests", "PUT":
                return await self._put_manifest(request, endpoint)
            case "manifests", "DELETE":
                await self.store.delete_manifest(endpoint.name, endpoint.reference)
                return _accepted()
            case "blobs", "GET" | "HEAD":
                return await self._blob(request, endpoint.name, Digest(endpoint.reference))
            case "blobs", "DELETE":
                await self.store.delete_blob(endpoint.name, Digest(endpoint.reference))
                return _accepted()
            case "tags", "GET":
                return tags_response(request, endpoint.name, await self.store.tags(endpoint.name), "")
            case "referrers", "GET":
                found = await self.store.referrers(endpoint.name, Digest(endpoint.reference))
                return referrers_response(request, found, "")
            case _:
                return json_error(405, "UNSUPPORTED", f"{request.method} is not for {endpoint.kind}")

    async def _blob(self, request: web.Request, name: str, digest: Digest) -> web.StreamResponse:
        async with contextlib.AsyncExitStack() as stack:
            descriptor = await self.store.open_blob(name, digest, stack)
            blob = FileBlob(descriptor, os.fstat(descriptor).st_size, "local")
            if request.method == "HEAD":
                headers = content_headers(digest, BLOB_TYPE)
                return web.Response(
                    headers={**headers, "Accept-Ranges": "bytes", "Content-Length": str(blob.size)}
                )
            chosen = plan(asked_ranges(request, digest), blob.size)
            return await BlobSender(request, self.metrics).send(digest, blob, chosen, "")

    async def _put_manifest(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        """distribution-spec v1.1, "Pushing Manifests"."""
        data = bytearray()
        async for piece in request.content.iter_any():
            data += piece
            if len(data) > MAX_MANIFEST_BYTES:
                return json_error(413, "MANIFEST_INVALID", f"more than {MAX_MANIFEST_BYTES} bytes")
        reference = endpoint.reference
        algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
        digest = Digest.of(bytes(data), algorithm)
        if isinstance(reference, Digest) and digest != reference:
            return json_error(400, "DIGEST_INVALID", f"the manifest is {digest}")
        media_type = request.headers.get("Content-Type", "").partition(";")[0]
        tag = None if isinstance(reference, Digest) else reference
        try:
            raw = RawManifest(media_type, bytes(data), digest)
            document = await self.store.put_manifest(endpoint.name, raw, tag)
        except InvalidManifest as error:
            return json_error(400, "MANIFEST_INVALID", str(error))
        except BlobNotFound as error:
            return json_error(404, "MANIFEST_BLOB_UNKNOWN", str(error))
        headers = {"Location": f"/v2/{endpoint.name}/manifests/{digest}", "Docker-Content-Digest": digest}
        if document.subject is not None:
            headers["OCI-Subject"] = document.subject.digest
        return web.Response(status=201, headers={**headers, **API_VERSION})

    # ----- uploads -----

    async def _upload(self, request: web.Request, name: str, identity: str | None) -> web.StreamResponse:
        match request.method, identity:
            case "POST", None:
                return await self._begin(request, name)
            case "GET" | "HEAD", str(identity):
                return _progress(204, name, identity, await self.store.uploaded_bytes(identity))
            case "PATCH", str(identity):
                if (refused := await self._out_of_order(request, name, identity)) is not None:
                    return refused
                size = await self.store.append(identity, request.content.iter_any())
                return _progress(202, name, identity, size)
            case "PUT", str(identity):
                return await self._finish(request, name, identity)
            case "DELETE", str(identity):
                await self.store.cancel_upload(identity)
                return web.Response(status=204, headers=API_VERSION)
            case _:
                return json_error(405, "UNSUPPORTED", f"{request.method} is not for uploads")

    async def _begin(self, request: web.Request, name: str) -> web.StreamResponse:
        mount, source = request.query.get("mount"), request.query.get("from")
        if mount and source and await self.store.mount(name, Digest.parse(mount), source):
            return _created(name, Digest.parse(mount))
        identity = await self.store.begin_upload()
        if request.query.get("digest"):
            return await self._finish(request, name, identity)
        return _progress(202, name, identity, 0)

    async def _out_of_order(self, request: web.Request, name: str, identity: str) -> web.Response | None:
        """A chunk begins where the last one ended (distribution-spec v1.1, "Pushing a blob in chunks")."""
        header = request.headers.get("Content-Range")
        if header is None:
            return None
        chunk, size = _CHUNK.match(header), await self.store.uploaded_bytes(identity)
        if chunk is not None and int(chunk[1]) == size:
            return None
        response = json_error(416, "BLOB_UPLOAD_INVALID", f"the next chunk begins at {size}")
        response.headers.update(_progress(416, name, identity, size).headers)
        return response

    async def _finish(self, request: web.Request, name: str, identity: str) -> web.StreamResponse:
        text = request.query.get("digest", "")
        try:
            digest = Digest.parse(text)
        except InvalidDigest as error:
            return json_error(400, "DIGEST_INVALID", str(error))
        if (refused := await self._out_of_order(request, name, identity)) is not None:
            return refused
        await self.store.append(identity, request.content.iter_any())
        try:
            await self.store.finish_upload(name, identity, digest)
        except DigestMismatch as error:
            return json_error(400, "DIGEST_INVALID", str(error))
        return _created(name, digest)


def _check_name(name: str) -> None:
    if not is_repository(name):
        raise InvalidReference(name, "a repository has lower-case words joined by / . _ -")


def _accepted() -> web.Response:
    return web.Response(status=202, headers=API_VERSION)


def _created(name: str, digest: Digest) -> web.Response:
    headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest, **API_VERSION}
    return web.Response(status=201, headers=headers)


def _progress(status: int, name: str, identity: str, size: int) -> web.Response:
    headers = {
        "Location": f"/v2/{name}/blobs/uploads/{identity}",
        "Range": f"0-{max(0, size - 1)}",
        "Docker-Upload-UUID": identity,
        **API_VERSION,
    }
    return web.Response(status=status, headers=headers)
