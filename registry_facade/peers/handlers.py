"""What a facade answers to its peers."""

import hmac
from collections.abc import Collection
from dataclasses import dataclass

from aiohttp import web

from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, OciError
from ocikit.reference import is_repository
from registry_facade.addressing import Target
from registry_facade.locating import Locator
from registry_facade.metrics import FacadeMetrics
from registry_facade.peers.client import PATH
from registry_facade.peers.metrics import PeerMetrics
from registry_facade.responses import error_response, json_error
from registry_facade.sharing import Audience
from registry_facade.sources.read_through import Located, ReadThrough
from registry_facade.streaming import BlobSender, asked_ranges, plan
from servicekit.secrets import Secret
from servicekit.web import add_access_fields


@dataclass(frozen=True)
class PeerHandlers:
    """``token`` is what peers prove themselves with; empty lets anybody in who reaches the port."""

    upstreams: Collection[str]
    cache: ReadThrough
    locator: Locator
    token: Secret
    facade_metrics: FacadeMetrics
    metrics: PeerMetrics

    def routes(self) -> list[web.RouteDef]:
        return [web.get(f"{PATH}{{digest}}", self.blob)]

    async def blob(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD. Never asks peers in turn, so that no request goes round."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.token.reveal().encode()):
            response: web.StreamResponse = json_error(401, "UNAUTHORIZED", "peers know the peer_token")
        else:
            try:
                response = await self._answer(request, Digest.parse(request.match_info["digest"]))
            except OciError as error:
                response = error_response(error)
        self.metrics.served.labels(str(response.status)).inc()
        return response

    async def _answer(self, request: web.Request, digest: Digest) -> web.StreamResponse:
        target = self._target(request)
        if await self.locator.audience(target, digest) == Audience.NOBODY:
            raise BlobNotFound(digest, "what is shared")

        async def locate() -> Located:
            return await self.locator.locate(target, digest, for_peer=True) if target else Located([])

        if request.method == "HEAD":
            size = await self.cache.stat(digest, locate)
            return web.Response(headers={"Content-Length": str(size)})
        asked = asked_ranges(request, digest)
        async with self.cache.open(digest, locate, start=max(0, asked[0].start) if asked else 0) as blob:
            sender = BlobSender(request, self.facade_metrics)
            try:
                return await sender.send(digest, blob, plan(asked, blob.size), "")
            finally:
                add_access_fields(
                    request, source=blob.served_from, digest=digest, blob_bytes=sender.sent_bytes
                )

    def _target(self, request: web.Request) -> Target | None:
        upstream, repository = request.query.get("upstream", ""), request.query.get("repository", "")
        known = upstream in self.upstreams and is_repository(repository)
        return Target(upstream, repository) if known else None
