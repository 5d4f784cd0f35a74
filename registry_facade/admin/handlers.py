"""The administration API: parse, ask, answer. What the routes mean is in `registry_facade.admin.openapi`."""

import functools
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import structlog
from aiohttp import web

from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, InvalidReference, OciError
from registry_facade.addressing import COMPOSED, Target
from registry_facade.admin.access import OPENAPI, PREFIX
from registry_facade.admin.images import CachedImages
from registry_facade.admin.openapi import document
from registry_facade.errors import ImageSpecNotFound
from registry_facade.explaining import explain_with
from registry_facade.image_spec import ImageRef, parse_image_ref
from registry_facade.responses import error_response, json_error
from registry_facade.specs.store import MAX_SPEC_BYTES, StoredSpecs

_log = structlog.get_logger(__name__)
Method = Callable[["AdminHandlers", web.Request], Awaitable[web.StreamResponse]]
_YES, _NO = frozenset({"true", "1"}), frozenset({"false", "0", ""})


def _answering(method: Method) -> Method:
    @functools.wraps(method)
    async def answered(self: "AdminHandlers", request: web.Request) -> web.StreamResponse:
        try:
            return await method(self, request)
        except OciError as error:
            _log.info("administration_refused", path=request.path, reason=str(error))
            return error_response(error, request.path.removeprefix(PREFIX))

    return answered


@dataclass(frozen=True, slots=True)
class AdminHandlers:
    """``specs`` None: this facade takes none."""

    images: CachedImages
    upstreams: Collection[str]
    specs: StoredSpecs | None

    def routes(self) -> list[web.RouteDef]:
        blob, image, spec = f"{PREFIX}blobs/{{digest}}", f"{PREFIX}image", f"{PREFIX}specs/{{id:.+}}"
        return [
            web.get(OPENAPI, self.describe),
            web.get(blob, self.explain),
            web.delete(blob, self.delete_blob),
            web.put(f"{blob}/pin", self.pin_blob),
            web.delete(f"{blob}/pin", self.unpin_blob),
            web.get(image, self.show_image),
            web.delete(image, self.purge_image),
            web.put(f"{image}/pin", self.pin_image),
            web.delete(f"{image}/pin", self.unpin_image),
            web.get(f"{PREFIX}specs", self.list_specs),
            web.get(spec, self.show_spec),
            web.put(spec, self.put_spec),
            web.delete(spec, self.delete_spec),
        ]

    async def describe(self, _request: web.Request) -> web.Response:
        return web.json_response(document())

    # ----- blobs -----

    @_answering
    async def explain(self, request: web.Request) -> web.Response:
        found = await explain_with(self.images.catalog, _digest(request))
        known = found["state"] != "absent" or found["referred_to_by"] or found["evicted_because"]
        return web.json_response(found, status=200 if known else 404)

    @_answering
    async def delete_blob(self, request: web.Request) -> web.Response:
        digest = _digest(request)
        if await self.images.catalog.known(digest) is None:
            raise BlobNotFound(digest, "the cache")
        await self.images.storage.delete(digest, "purged")
        await self.images.purges.note(None, "", [digest])
        return web.Response(status=204)

    @_answering
    async def pin_blob(self, request: web.Request) -> web.Response:
        return await self._set_pin(_digest(request), pinned=True)

    @_answering
    async def unpin_blob(self, request: web.Request) -> web.Response:
        return await self._set_pin(_digest(request), pinned=False)

    async def _set_pin(self, digest: Digest, *, pinned: bool) -> web.Response:
        if not await self.images.catalog.pin(digest, pinned=pinned):
            raise BlobNotFound(digest, "the cache")
        return web.Response(status=204)

    # ----- images -----

    @_answering
    async def show_image(self, request: web.Request) -> web.Response:
        return web.json_response(await self.images.describe(self._image(request)))

    @_answering
    async def purge_image(self, request: web.Request) -> web.Response:
        blobs = _flag(request, "blobs")
        return web.json_response(await self.images.purge(self._image(request), blobs=blobs))

    @_answering
    async def pin_image(self, request: web.Request) -> web.Response:
        return web.json_response(await self.images.pin(self._image(request), pinned=True))

    @_answering
    async def unpin_image(self, request: web.Request) -> web.Response:
        return web.json_response(await self.images.pin(self._image(request), pinned=False))

    def _image(self, request: web.Request) -> ImageRef:
        name = request.query.get("name", "")
        try:
            ref = parse_image_ref(name, {*self.upstreams, COMPOSED})
        except ValueError as error:
            raise InvalidReference(name, "write UPSTREAM/repository:tag or workspaces/ID") from error
        if ref.target.upstream.startswith("oci:"):
            raise InvalidReference(name, "write UPSTREAM/repository:tag or workspaces/ID")
        return ImageRef(Target(ref.target.upstream, ref.target.repository), ref.reference, ref.text)

    # ----- specs -----

    def _specs(self, image_id: str) -> StoredSpecs:
        if self.specs is None:
            raise ImageSpecNotFound(image_id)
        return self.specs

    @_answering
    async def list_specs(self, _request: web.Request) -> web.Response:
        found = await self.specs.image_ids() if self.specs is not None else []
        return web.json_response({"specs": list(found)})

    @_answering
    async def show_spec(self, request: web.Request) -> web.Response:
        image_id = request.match_info["id"]
        data = await self._specs(image_id).document(image_id)
        return web.Response(body=data, content_type="application/json")

    @_answering
    async def put_spec(self, request: web.Request) -> web.Response:
        image_id = request.match_info["id"]
        data = bytearray()
        async for piece in request.content.iter_any():
            data += piece
            if len(data) > MAX_SPEC_BYTES:
                return json_error(413, "SIZE_INVALID", f"a spec has at most {MAX_SPEC_BYTES} bytes")
        is_new = await self._specs(image_id).put(image_id, bytes(data))
        return web.Response(status=201 if is_new else 204)

    @_answering
    async def delete_spec(self, request: web.Request) -> web.Response:
        image_id = request.match_info["id"]
        if not await self._specs(image_id).delete(image_id):
            raise ImageSpecNotFound(image_id)
        return web.Response(status=204)


def _digest(request: web.Request) -> Digest:
    return Digest.parse(request.match_info["digest"])


def _flag(request: web.Request, name: str) -> bool:
    text = request.query.get(name, "")
    if text not in _YES | _NO:
        raise InvalidReference(text, f"{name} is true or false")
    return text in _YES
