"""The administration API, and the providers of image specs beside the directory."""

import asyncio
import contextlib
import io
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ocikit.digest import Digest
from ocikit.layout import LayoutRepository
from ocikit.manifest import Manifest
from registry_facade.settings import AccessSettings, SpecServiceSettings
from servicekit.lifecycle import Listener, listening
from servicekit.secrets import Secret
from tests.support.certificates import make_certificate
from tests.support.facade import RunningFacade, running_facade
from tests.support.images import made_layer, push_image
from tests.support.scripted_registry import ScriptedRegistry, scripted_registry

from .test_facade_images import add_image

BASE, TOOL = made_layer({"bin/sh": b"a shell"}), made_layer({"opt/tool": b"x" * 100_000})
API = "/facade/v1"
_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@dataclass(frozen=True)
class Stage:
    upstream: ScriptedRegistry
    facade: RunningFacade
    digest: Digest

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self.facade.session.request(method, f"{API}{path}", **options) as response:
            body = await response.read()
            return response.status, json.loads(body) if body else None

    async def pull(self) -> None:
        _, _, body = await self.facade.get("/v2/hub.test/x/manifests/v1")
        manifest = Manifest.parse(body)
        for item in (manifest.config, *manifest.layers):
            await self.facade.get(f"/v2/hub.test/x/blobs/{item.digest}")
            await self.stored(item.digest)

    async def stored(self, digest: Digest) -> None:
        """A client may have a blob's last byte just before it has its final name."""
        async with asyncio.timeout(10):
            while (await self.ask("GET", f"/blobs/{digest}"))[1]["state"] != "stored":
                await asyncio.sleep(0.01)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with scripted_registry() as upstream:
        digest = add_image(upstream, "v1", BASE, TOOL)
        own = {"spec_store": tmp_path / "specs.sqlite", "cache_max_bytes": 200_000}
        async with running_facade(
            tmp_path / "cache", upstreams={"hub.test": upstream.origin}, **own
        ) as facade:
            yield Stage(upstream, facade, digest)


# ----- blobs and images -----


async def test_pinned_image_survives_what_pushes_others_out(stage: Stage) -> None:
    await stage.pull()
    status, done = await stage.ask("PUT", "/image/pin?name=hub.test/x:v1")
    assert (status, done["changed"], done["absent"]) == (200, 4, 0)
    for number in range(4):
        other = stage.upstream.add_blob(bytes([number]) * 60_000)
        assert (await stage.facade.get(f"/v2/hub.test/x/blobs/{other}"))[0] == 200
    _, shown = await stage.ask("GET", "/image?name=hub.test/x:v1")
    assert {(blob["state"], blob["pinned"]) for blob in shown["blobs"]} == {("stored", True)}
    _, done = await stage.ask("DELETE", "/image/pin?name=hub.test/x:v1")
    assert done["changed"] == 4


async def test_purged_tag_is_asked_for_again_and_its_blobs_go(stage: Stage) -> None:
    await stage.pull()
    shared = add_image(stage.upstream, "v2", BASE)
    await stage.facade.get("/v2/hub.test/x/manifests/v2")
    moved = add_image(stage.upstream, "v1", TOOL)
    unmoved = (await stage.facade.get("/v2/hub.test/x/manifests/v1"))[1]["Docker-Content-Digest"]
    assert unmoved == stage.digest  # it is fresh
    status, done = await stage.ask("DELETE", "/image?name=hub.test/x:v1&blobs=true")
    assert (status, done["tag_forgotten"]) == (200, True)
    assert done["deleted"] == 3  # manifest, config and the layer that is not shared with v2
    assert (await stage.facade.get("/v2/hub.test/x/manifests/v1"))[1]["Docker-Content-Digest"] == moved
    layer = BASE.layer.descriptor.digest
    assert (await stage.ask("GET", f"/blobs/{layer}"))[1]["state"] == "stored"
    assert (await stage.facade.get(f"/v2/hub.test/x/manifests/{shared}"))[0] == 200


async def test_one_blob_is_explained_pinned_and_deleted(stage: Stage) -> None:
    await stage.pull()
    layer = TOOL.layer.descriptor.digest
    assert (await stage.ask("PUT", f"/blobs/{layer}/pin"))[0] == 204
    status, found = await stage.ask("GET", f"/blobs/{layer}")
    assert (status, found["state"], found["source"], found["pinned"]) == (200, "stored", "upstream", True)
    assert found["seen_in"] == ["hub.test/x"]
    assert (await stage.ask("DELETE", f"/blobs/{layer}"))[0] == 204
    status, found = await stage.ask("GET", f"/blobs/{layer}")
    assert (found["state"], found["evicted_because"]) == ("absent", "purged")
    assert (await stage.facade.get(f"/v2/hub.test/x/blobs/{layer}"))[2] == TOOL.blob
    assert (await stage.ask("DELETE", f"/blobs/{Digest.of(b'unknown')}"))[0] == 404
    assert (await stage.ask("GET", "/blobs/sha256:..%2f..%2fetc"))[0] == 400


NOT_IMAGES = ["", "x", "evil.test/x:1", "oci:/etc:x", "hub.test/x:never", "hub.test/../x:1"]


@pytest.mark.parametrize("name", NOT_IMAGES)
async def test_what_is_no_image_here_cannot_be_administered(stage: Stage, name: str) -> None:
    for method, path in (("GET", "/image"), ("DELETE", "/image"), ("PUT", "/image/pin")):
        status, body = await stage.ask(method, path, params={"name": name})
        assert status in {400, 404}
        assert body["errors"][0]["code"] in {"NAME_INVALID", "MANIFEST_UNKNOWN"}


# ----- specs by API -----


async def test_put_spec_is_composed_changed_and_gone(stage: Stage, tmp_path: Path) -> None:
    spec = {"base": "hub.test/x:v1", "env": {"A": "1"}}
    assert (await stage.ask("PUT", "/specs/team/ws-1", json=spec))[0] == 201
    assert (await stage.ask("GET", "/specs/team/ws-1")) == (200, spec)
    assert (await stage.ask("GET", "/specs"))[1] == {"specs": ["team/ws-1"]}
    status, headers, _ = await stage.facade.get("/v2/workspaces/team/ws-1/manifests/latest")
    assert status == 200
    assert (await stage.ask("PUT", "/specs/team/ws-1", json={**spec, "env": {"A": "2"}}))[0] == 204
    issued = headers["Docker-Content-Digest"]
    assert (await stage.ask("DELETE", "/specs/team/ws-1"))[0] == 204
    assert (await stage.ask("DELETE", "/specs/team/ws-1"))[0] == 404
    assert (await stage.facade.get(f"/v2/workspaces/team/ws-1/manifests/{issued}"))[0] == 200


BAD_SPECS: dict[str, tuple[str, bytes, int]] = {
    "not json": ("ws", b"{", 422),
    "no base": ("ws", b"{}", 422),
    "local file": ("ws", b'{"base": "hub.test/x:v1", "layers": [{"file": "/etc/shadow"}]}', 422),
    "local layout": ("ws", b'{"base": "oci:/var/lib/secret:x"}', 422),
    "upper case id": ("WS", b'{"base": "hub.test/x:v1"}', 422),
    "traversal": ("a%2f..%2fb", b'{"base": "hub.test/x:v1"}', 422),
    "giant": ("ws", b'{"base": "' + b"x" * (1 << 20) + b'"}', 413),
    "deep": ("ws", b"[" * 100_000, 422),
}


@pytest.mark.parametrize(("image_id", "body", "status"), BAD_SPECS.values(), ids=BAD_SPECS)
async def test_bad_spec_is_refused_and_not_kept(
    stage: Stage, image_id: str, body: bytes, status: int
) -> None:
    import yarl

    url = yarl.URL(f"{stage.facade.url}{API}/specs/{image_id}", encoded=True)
    async with stage.facade.session.put(url, data=io.BytesIO(body)) as response:
        assert response.status == status
    assert (await stage.ask("GET", "/specs"))[1] == {"specs": []}


async def test_administration_takes_its_token(tmp_path: Path) -> None:
    access = AccessSettings(mode="delegated")
    own = {"admin_token": Secret("of the operator"), "access": access, "upstreams": {"a.test": "oci:/x"}}
    async with running_facade(tmp_path, **own) as facade:
        for shown in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic b2Y="}):
            for path in ("specs", "image?name=a.test/x:1", f"blobs/{Digest.of(b'x')}"):
                assert (await facade.get(f"{API}/{path}", **shown))[0] == 401
            async with facade.session.post(f"{API}/warm", json={"images": ["a.test/x:1"]}) as response:
                assert response.status == 401
        assert (await facade.get(f"{API}/specs", Authorization="Bearer of the operator"))[0] == 200
        assert (await facade.get(f"{API}/openapi.json"))[0] == 200


async def test_the_api_is_what_its_description_says(stage: Stage) -> None:
    """Generated requests for every operation: no server errors, only documented statuses and bodies."""
    await stage.pull()
    _, described = await stage.ask("GET", "/openapi.json")
    await asyncio.to_thread(_exercise, described, stage.facade.url)


def _exercise(described: dict[str, Any], base: str) -> None:
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=base)
    for operation in schema.get_all_operations():
        _call(operation.ok().as_strategy())


def _call(strategy: Any) -> None:
    @given(strategy)
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def call(case: Any) -> None:
        case.call_and_validate(checks=_CHECKS)

    call()


# ----- specs from a service -----


@dataclass
class SpecService:
    """Answers ``/specs/<id>``, with entity tags; wants a token when it has one."""

    specs: dict[str, dict[str, Any]] = field(default_factory=dict)
    token: str = ""
    status: int = 0
    answers: list[int] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        response = self._answer(request)
        self.answers.append(response.status)
        return response

    def _answer(self, request: web.Request) -> web.Response:
        if self.status:
            return web.Response(status=self.status)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        spec = self.specs.get(request.match_info["id"])
        if spec is None:
            return web.Response(status=404)
        body = json.dumps(spec).encode()
        etag = f'"{Digest.of(body)}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(body=body, headers={"ETag": etag, "Content-Type": "application/json"})


@contextlib.asynccontextmanager
async def spec_service(tls: ssl.SSLContext | None = None) -> AsyncIterator[SpecService]:
    service = SpecService()
    app = web.Application()
    app.router.add_get("/specs/{id:.+}", service.handle)
    async with listening([Listener(app, "127.0.0.1", 0, tls=tls)], drain_s=0.1) as [(host, port)]:
        service.url = f"http{'s' if tls else ''}://{host}:{port}/specs"
        yield service


@pytest.fixture
async def layout(tmp_path: Path) -> dict[str, str]:
    repository = LayoutRepository(tmp_path / "layout", create=True)
    await push_image(repository, "base", [BASE])
    return {"images": f"oci:{tmp_path}/layout"}


LATEST = "/v2/workspaces/ws/manifests/latest"
SPEC = {"base": "images/x:base", "env": {"A": "1"}}


async def test_spec_of_a_service_is_composed_and_an_unchanged_one_costs_no_body(
    layout: dict[str, str], tmp_path: Path
) -> None:
    async with spec_service() as service:
        service.specs["ws"], service.token = SPEC, "first"
        token_file = tmp_path / "token"
        token_file.write_text("first\n")
        own = SpecServiceSettings(url=service.url, token_file=token_file)
        async with running_facade(tmp_path / "cache", upstreams=layout, spec_service=own) as facade:
            first = await facade.get(LATEST)
            assert first[0] == 200
            assert (await facade.get("/v2/workspaces/nope/manifests/latest"))[0] == 404
            service.token = "second"
            token_file.write_text("second\n")
            async with asyncio.timeout(10):
                while 304 not in service.answers:
                    assert (await facade.get(LATEST))[2] == first[2]
                    await asyncio.sleep(0.1)
            service.specs["ws"] = {**SPEC, "env": {"A": "2"}}
            async with asyncio.timeout(10):
                while (await facade.get(LATEST))[2] == first[2]:
                    await asyncio.sleep(0.1)


async def test_with_the_service_gone_an_image_is_what_it_was_last(
    layout: dict[str, str], tmp_path: Path
) -> None:
    """Also after a restart, and marked as stale; what was never known is not said to be absent."""
    async with spec_service() as service:
        service.specs["ws"] = SPEC
        own = {"upstreams": layout, "spec_service": SpecServiceSettings(url=service.url)}
        async with running_facade(tmp_path / "cache", **own) as facade:
            first = await facade.get(LATEST)
        service.status = 500
        async with running_facade(tmp_path / "cache", **own) as facade:
            status, headers, body = await facade.get(LATEST)
            assert (status, body) == (200, first[2])
            assert headers["Warning"].startswith("110 ")
            assert await facade.metric("facade_stale_answers_total") == 1
            assert (await facade.get("/v2/workspaces/never/manifests/latest"))[0] == 503


@pytest.mark.component("openssl")
async def test_service_is_shown_a_certificate(layout: dict[str, str], tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    own_certificate, own_key = make_certificate(tmp_path, "facade")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=own_certificate)
    tls.load_cert_chain(certificate, key)
    tls.verify_mode = ssl.CERT_REQUIRED
    async with spec_service(tls) as service:
        service.specs["ws"] = SPEC
        shown = SpecServiceSettings(url=service.url, ca=certificate, certificate=own_certificate, key=own_key)
        async with running_facade(tmp_path / "one", upstreams=layout, spec_service=shown) as facade:
            assert (await facade.get(LATEST))[0] == 200
        bare = SpecServiceSettings(url=service.url, ca=certificate)
        async with running_facade(tmp_path / "two", upstreams=layout, spec_service=bare) as facade:
            assert (await facade.get(LATEST))[0] == 503


async def test_service_cannot_name_files_of_this_machine(layout: dict[str, str], tmp_path: Path) -> None:
    async with spec_service() as service:
        service.specs["ws"] = {**SPEC, "layers": [{"file": "/etc/passwd", "at": "/x"}]}
        own = SpecServiceSettings(url=service.url)
        async with running_facade(tmp_path / "cache", upstreams=layout, spec_service=own) as facade:
            status, _, body = await facade.get(LATEST)
            assert status == 422
            assert "own directory only" in json.loads(body)["errors"][0]["message"]
