"""A registry in memory that speaks the distribution protocol over a real socket.

Push (monolithic, POST+PUT, and PATCHes), pull with ranges, tags with pages, mounts, referrers, deletes,
and on request the token protocol. Strict where clients get it wrong: digests are checked, a manifest whose
blobs are missing is refused. `RunningRegistry.requests` tells what was asked; `FaultScript` what goes wrong.
"""

import base64
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from ocikit import media_types
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.distribution.protocol import error_document
from ocikit.errors import InvalidInput, InvalidRange
from ocikit.manifest import (
    Index,
    RawManifest,
    child_descriptors,
    detect_media_type,
    parse_manifest_or_index,
)
from ocikit.ranges import parse_range_header
from ocikit.testing.faults import FaultScript, IgnoreRange, immediate, spoiled

_BLOB_LIMIT_BYTES = 64 << 20
_ROUTE = re.compile(
    r"^/v2/(?P<name>.+?)/(?P<kind>manifests|blobs/uploads|blobs|tags|referrers)/(?P<rest>[^/]*)$"
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the registry saw it."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass(slots=True)
class MemoryRepository:
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    manifests: dict[Digest, RawManifest] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """Credentials that the token service takes; without them only ``public`` repositories can be pulled."""

    username: str
    password: str
    public: frozenset[str] = frozenset()


@dataclass(slots=True)
class RunningRegistry:
    """``repositories`` may be looked at, filled and damaged by tests."""

    address: str = ""
    auth: TokenAuth | None = None
    repositories: dict[str, MemoryRepository] = field(default_factory=dict)
    requests: list[Asked] = field(default_factory=list)
    faults: FaultScript = field(default_factory=FaultScript)
    tokens: dict[str, frozenset[str]] = field(default_factory=dict)
    tags_per_page: int = 1000

    @property
    def origin(self) -> str:
        return f"http://{self.address}"

    def repository(self, name: str) -> MemoryRepository:
        return self.repositories.setdefault(name, MemoryRepository())

    def asked(self, method: str, path_contains: str = "") -> list[Asked]:
        return [item for item in self.requests if item.method == method and path_contains in item.path]


@contextlib.asynccontextmanager
async def running_registry(
    *, auth: TokenAuth | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[RunningRegistry]:
    """A registry on loopback for as long as the block lasts; port 0 picks a free one."""
    registry = RunningRegistry(auth=auth)
    runner = web.AppRunner(
        registry_app(registry), access_log=None, handle_signals=False, shutdown_timeout=0.1
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound = runner.addresses[0]
        registry.address = f"{bound[0]}:{bound[1]}"
        yield registry
    finally:
        await runner.cleanup()


def registry_app(registry: RunningRegistry) -> web.Application:
    @web.middleware
    async def faulty(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers
        registry.requests.append(
            Asked(request.method, request.path_qs, headers.get("Range"), headers.get("Authorization"))
        )
        fault = registry.faults.take(request)
        if (answer := immediate(fault)) is not None:
            return answer
        if isinstance(fault, IgnoreRange):
            request = request.clone(
                headers={key: value for key, value in headers.items() if key.lower() != "range"}
            )
        response = await handler(request)
        if fault is None or not isinstance(response, web.Response):
            return response
        return await spoiled(request, response, fault)

    app = web.Application(middlewares=[faulty], client_max_size=_BLOB_LIMIT_BYTES)
    app.router.add_get("/token", _TokenService(registry).issue)
    app.router.add_route("*", "/v2/{path:.*}", _Protocol(registry).answer)
    return app


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=error_document(code, message), content_type="application/json", headers=headers
    )


class _TokenService:
    def __init__(self, registry: RunningRegistry) -> None:
        self._registry = registry

    async def issue(self, request: web.Request) -> web.Response:
        auth = self._registry.auth
        if auth is None:
            return _error(404, "UNSUPPORTED", "no token service")
        pair = base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()
        shown = request.headers.get("Authorization")
        if shown is not None and shown != f"Basic {pair}":
            return _error(401, "UNAUTHORIZED", "wrong credentials")
        asked = [scope for value in request.query.getall("scope", []) for scope in value.split()]
        public = {f"repository:{name}:pull" for name in auth.public}
        granted = frozenset(scope for scope in asked if shown is not None or scope in public)
        token = secrets.token_hex(8)
        self._registry.tokens[token] = granted
        return web.json_response({"token": token, "expires_in": 300})


class _Protocol:
    """Routes by hand: a repository's name holds slashes, and the last component decides."""

    def __init__(self, registry: RunningRegistry) -> None:
        self._registry = registry

    async def answer(self, request: web.Request) -> web.Response:
        match = _ROUTE.match(request.path)
        if match is None:
            name, kind, rest = "", "", ""
        else:
            name, kind, rest = match["name"], match["kind"], match["rest"]
        if (refusal := self._refusal(request, name)) is not None:
            return refusal
        if request.path == "/v2/":
            return web.json_response({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})
        try:
            match kind:
                case "manifests":
                    return await self._manifests(request, name, rest)
                case "blobs":
                    return await self._blobs(request, name, rest)
                case "blobs/uploads":
                    return await self._uploads(request, name, rest)
                case "tags":
                    return self._tags(request, name)
                case "referrers":
                    return self._referrers(name, Digest.parse(rest))
                case _:
                    return _error(404, "NOT_FOUND", f"no route {request.path}")
        except InvalidInput as error:
            return _error(400, "MANIFEST_INVALID", str(error))

    def _refusal(self, request: web.Request, name: str) -> web.Response | None:
        registry = self._registry
        if registry.auth is None:
            return None
        action = "pull" if request.method in {"GET", "HEAD"} else "pull,push"
        wanted = f"repository:{name}:{action}"
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        granted = registry.tokens.get(token)
        if granted is not None:
            mine = {scope for scope in granted if scope.startswith(f"repository:{name}:")}
            if not name or any(set(action.split(",")) <= set(_actions(scope)) for scope in mine):
                return None
        challenge = f'Bearer realm="{registry.origin}/token",service="{registry.address}",scope="{wanted}"'
        return _error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})

    async def _manifests(self, request: web.Request, name: str, reference: str) -> web.Response:
        if request.method == "PUT":
            return await self._put_manifest(request, name, reference)
        repository = self._registry.repositories.get(name, MemoryRepository())
        digest = Digest.parse(reference) if ":" in reference else repository.tags.get(reference)
        raw = repository.manifests.get(digest) if digest is not None else None
        if raw is None or digest is None:
            return _error(404, "MANIFEST_UNKNOWN", f"{name}:{reference} is unknown")
        if request.method == "DELETE":
            if ":" in reference:
                del repository.manifests[digest]
                repository.tags = {tag: at for tag, at in repository.tags.items() if at != digest}
            else:
                del repository.tags[reference]
            return web.Response(status=202)
        headers = {"Docker-Content-Digest": str(digest), "Content-Type": raw.media_type}
        return web.Response(body=raw.data, headers=headers)

    async def _put_manifest(self, request: web.Request, name: str, reference: str) -> web.Response:
        data = await request.read()
        algorithm = Digest.parse(reference).algorithm if ":" in reference else "sha256"
        digest = Digest.of(data, algorithm)
        if ":" in reference and reference != digest:
            return _error(400, "DIGEST_INVALID", f"the manifest is {digest}")
        announced = request.headers.get("Content-Type", "")
        raw = RawManifest(detect_media_type(data, announced), data, digest)
        document = parse_manifest_or_index(raw)
        repository = self._registry.repository(name)
        for child in child_descriptors(document):
            known = repository.manifests if isinstance(document, Index) else repository.blobs
            if child.digest not in known:
                return _error(400, "MANIFEST_BLOB_UNKNOWN", f"{child.digest} is unknown")
        repository.manifests[digest] = raw
        if ":" not in reference:
            repository.tags[reference] = digest
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": str(digest)}
        if document.subject is not None:
            headers["OCI-Subject"] = str(document.subject.digest)
        return web.Response(status=201, headers=headers)

    async def _blobs(self, request: web.Request, name: str, reference: str) -> web.Response:
        repository = self._registry.repositories.get(name, MemoryRepository())
        digest = Digest.parse(reference)
        data = repository.blobs.get(digest)
        if data is None:
            return _error(404, "BLOB_UNKNOWN", f"{digest} is unknown")
        if request.method == "DELETE":
            del repository.blobs[digest]
            return web.Response(status=202)
        headers = {
            "Docker-Content-Digest": str(digest),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if request.method == "HEAD":  # aiohttp leaves out the length of an empty body
            return web.Response(headers={**headers, "Content-Length": str(len(data))})
        ranges = parse_range_header(request.headers.get("Range"))
        if len(ranges) != 1:
            return web.Response(body=data, headers=headers)
        try:
            part = ranges[0].resolve(len(data))
        except InvalidRange as error:
            return _error(416, "RANGE_INVALID", str(error), {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = part.header()
        return web.Response(status=206, body=data[part.start : part.stop], headers=headers)

    async def _uploads(self, request: web.Request, name: str, upload: str) -> web.Response:
        repository = self._registry.repository(name)
        data = await request.read()
        if request.method == "POST":
            if (mounted := self._mount(request, name, repository)) is not None:
                return mounted
            upload = secrets.token_hex(8)
            repository.uploads[upload] = bytearray()
        if upload not in repository.uploads:
            return _error(404, "BLOB_UPLOAD_UNKNOWN", f"upload {upload} is unknown")
        repository.uploads[upload] += data
        if request.method == "DELETE":
            del repository.uploads[upload]
            return web.Response(status=204)
        if "digest" in request.query and request.method in {"POST", "PUT"}:
            return self._finish(repository, name, upload, Digest.parse(request.query["digest"]))
        size = len(repository.uploads[upload])
        headers = {"Location": f"/v2/{name}/blobs/uploads/{upload}", "Range": f"0-{max(0, size - 1)}"}
        return web.Response(status=202, headers=headers)

    def _mount(self, request: web.Request, name: str, repository: MemoryRepository) -> web.Response | None:
        source = self._registry.repositories.get(request.query.get("from", ""))
        digest = Digest.parse(request.query["mount"]) if "mount" in request.query else None
        if source is None or digest is None or digest not in source.blobs:
            return None
        repository.blobs[digest] = source.blobs[digest]
        headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": str(digest)}
        return web.Response(status=201, headers=headers)

    def _finish(self, repository: MemoryRepository, name: str, upload: str, digest: Digest) -> web.Response:
        data = bytes(repository.uploads.pop(upload))
        if Digest.of(data, digest.algorithm) != digest:
            return _error(400, "DIGEST_INVALID", f"the upload is not {digest}")
        repository.blobs[digest] = data
        headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": str(digest)}
        return web.Response(status=201, headers=headers)

    def _tags(self, request: web.Request, name: str) -> web.Response:
        repository = self._registry.repositories.get(name)
        if repository is None:
            return _error(404, "NAME_UNKNOWN", f"{name} is unknown")
        after, limit = request.query.get("last", ""), int(request.query.get("n", "1000"))
        limit = min(limit, self._registry.tags_per_page)
        tags = sorted(tag for tag in repository.tags if tag > after)
        headers = {}
        if len(tags) > limit:
            tags = tags[:limit]
            headers["Link"] = f'</v2/{name}/tags/list?n={limit}&last={tags[-1]}>; rel="next"'
        return web.json_response({"name": name, "tags": tags}, headers=headers)

    def _referrers(self, name: str, digest: Digest) -> web.Response:
        found: list[Descriptor] = []
        for raw in self._registry.repository(name).manifests.values():
            document = parse_manifest_or_index(raw)
            if document.subject is not None and document.subject.digest == digest:
                found.append(
                    Descriptor(
                        raw.media_type,
                        raw.digest,
                        len(raw.data),
                        document.annotations,
                        artifact_type=document.artifact_type,
                    )
                )
        index = Index(tuple(found))
        return web.Response(body=index.dump(), content_type=media_types.OCI_INDEX)


def _actions(scope: str) -> list[str]:
    return scope.rpartition(":")[2].split(",")


def dump_docker_config(address: str, auth: TokenAuth) -> str:
    """A docker config.json that knows ``auth`` for the registry at ``address``."""
    pair = base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()
    return json.dumps({"auths": {address: {"auth": pair}}})
