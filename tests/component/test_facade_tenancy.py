"""Who may pull what: a shared cache serves each caller only what they are entitled to."""

import asyncio
import base64
import json
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ocikit.digest import Digest
from ocikit.manifest import Manifest
from registry_facade.settings import AccessSettings, LocalSettings
from servicekit.secrets import Secret
from servicekit.settings import SettingsInvalid
from servicekit.tls import ServerTls
from tests.support.certificates import make_certificate
from tests.support.facade import RunningFacade, running_facade
from tests.support.images import image_documents, made_layer
from tests.support.scripted_registry import ScriptedRegistry, scripted_registry

SECRET_LAYER = made_layer({"opt/secret": os.urandom(100_000)})
PUBLIC_LAYER = made_layer({"opt/public": b"for all"})
ALICE, BOB = "alice:wonder", "bob:builder"


@dataclass
class TenantRegistry(ScriptedRegistry):
    """Repositories of several owners. As hosted registries do, it hides what is not theirs behind 404."""

    readers: dict[str, set[str]] = field(default_factory=dict)
    """user:password pairs by repository; a repository that is not here is public."""
    contents: dict[str, set[str]] = field(default_factory=dict)
    users: set[str] = field(default_factory=lambda: {ALICE, BOB})
    down: bool = False

    def add_image(self, repository: str, tag: str, *layers: Any) -> Digest:
        manifest, config = image_documents(layers)
        for data in (*(layer.blob for layer in layers), config):
            self.contents.setdefault(repository, set()).add(self.add_blob(data))
        digest = self.add_manifest(manifest, f"{repository}:{tag}")
        self.contents[repository].add(digest)
        return digest

    async def handle(self, request: web.Request) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "").removeprefix("Basic ")
        user = base64.b64decode(shown).decode() if shown else ""
        self.requests.append((request.method, request.path, user))
        if self.down:
            return web.Response(status=503)
        repository, kind, reference = request.path.removeprefix("/v2/").rsplit("/", 2)
        readers = self.readers.get(repository)
        if (readers is not None and not user) or (user and user not in self.users):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        reference = self.tags.get(f"{repository}:{reference}", reference)
        known = reference in self.contents.get(repository, ())
        if (readers is not None and user not in readers) or not known:
            return web.json_response({"errors": [{"code": "NAME_UNKNOWN"}]}, status=404)
        return (
            self._manifest(request, reference)
            if kind == "manifests"
            else await self._blob(request, reference)
        )


@dataclass(frozen=True)
class Stage:
    upstream: TenantRegistry
    facade: RunningFacade
    private: Digest
    public: Digest


def basic(user: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def path_of(repository: str, reference: str, kind: str = "manifests") -> str:
    return f"/v2/hub.test/{repository}/{kind}/{reference}"


def fill(upstream: TenantRegistry) -> tuple[Digest, Digest]:
    upstream.readers["alice/private"] = {ALICE}
    private = upstream.add_image("alice/private", "v1", SECRET_LAYER)
    return private, upstream.add_image("team/public", "v1", PUBLIC_LAYER)


@pytest.fixture
async def upstream() -> AsyncIterator[TenantRegistry]:
    registry = TenantRegistry()
    async with scripted_registry(registry=registry):
        yield registry


@pytest.fixture
async def stage(upstream: TenantRegistry, tmp_path: Path) -> AsyncIterator[Stage]:
    private, public = fill(upstream)
    settings = delegated(upstream, ttl_s=86400.0)  # a machine that stands still for minutes changes nothing
    async with running_facade(tmp_path, tag_fresh_s=86400.0, **settings) as facade:
        yield Stage(upstream, facade, private, public)


def delegated(upstream: TenantRegistry, **access: Any) -> dict[str, Any]:
    return {
        "upstreams": {"hub.test": upstream.origin},
        "admin_token": Secret("of the operator"),
        "access": AccessSettings(**{"mode": "delegated", "tokens_file": None, "ttl_s": 300.0, **access}),
    }


async def pull(facade: RunningFacade, repository: str, reference: str, **headers: str) -> list[int]:
    """The status of the manifest and of every blob it names."""
    status, _, body = await facade.get(path_of(repository, reference), **headers)
    found = [status]
    if status == 200:
        manifest = Manifest.parse(body)
        paths = [path_of(repository, item.digest, "blobs") for item in (manifest.config, *manifest.layers)]
        found += [(await facade.get(path, **headers))[0] for path in paths]
    return found


# ----- delegated -----


async def test_owner_pulls_with_their_own_credential_and_the_facade_needs_none(stage: Stage) -> None:
    assert await pull(stage.facade, "alice/private", "v1", **basic(ALICE)) == [200, 200, 200]
    assert {user for _, _, user in stage.upstream.requests} <= {"", ALICE}


async def test_everybody_pulls_what_is_public(stage: Stage) -> None:
    assert await pull(stage.facade, "team/public", "v1") == [200, 200, 200]
    assert await pull(stage.facade, "team/public", "v1", **basic(BOB)) == [200, 200, 200]
    assert await pull(stage.facade, "team/public", "v1", **basic(":")) == [200, 200, 200]


@pytest.mark.parametrize("state", ["cold", "cached"])
async def test_refusal_is_the_answer_to_what_does_not_exist(stage: Stage, state: str) -> None:
    """Status, headers and body of a private image in the cache are those of one that was never there."""
    secret = SECRET_LAYER.layer.descriptor.digest
    if state == "cached":
        assert await pull(stage.facade, "alice/private", "v1", **basic(ALICE)) == [200, 200, 200]
    for kind, reference, unknown in (
        ("manifests", "v1", "v9"),
        ("manifests", stage.private, Digest.of(b"unknown")),
        ("blobs", secret, Digest.of(b"unknown")),
    ):
        for repository in ("alice/private", "team/public"):
            if (repository, reference) == ("team/public", "v1"):
                continue
            refused = await stage.facade.get(path_of(repository, reference, kind), **basic(BOB))
            absent = await stage.facade.get(path_of(repository, unknown, kind), **basic(BOB))
            assert refused[0] == absent[0] == 404
            assert refused[2].replace(reference.encode(), b"") == absent[2].replace(unknown.encode(), b"")
            assert dict(refused[1], Date="", **{"Content-Length": ""}) == dict(
                absent[1], Date="", **{"Content-Length": ""}
            )


async def test_a_refusal_costs_the_upstream_as_many_questions_as_an_absence(stage: Stage) -> None:
    await pull(stage.facade, "alice/private", "v1", **basic(ALICE))
    await stage.facade.get(path_of("alice/private", "v9"), **basic(BOB))  # how to ask is known from now on
    counts = []
    for digest in (SECRET_LAYER.layer.descriptor.digest, Digest.of(b"unknown")):
        before = len(stage.upstream.requests)
        for _ in range(3):
            await stage.facade.get(path_of("alice/private", digest, "blobs"), **basic(BOB))
        counts.append(len(stage.upstream.requests) - before)
    assert counts[0] == counts[1]


async def test_nobody_is_asked_for_credentials(stage: Stage) -> None:
    for path in (path_of("alice/private", "v1"), path_of("team/public", "v9"), "/v2/"):
        status, headers, body = await stage.facade.get(path)
        assert status == 401
        assert headers["WWW-Authenticate"].startswith("Basic realm=")
        assert json.loads(body)["errors"][0]["code"] == "UNAUTHORIZED"
    assert (await stage.facade.get("/v2/", **basic(":")))[0] == 200
    assert (await stage.facade.get(path_of("alice/private", "v1"), **basic("alice:wrong")))[0] == 404
    for header in ("Basic !", "Bearer x", "Digest x", "Basic /w=="):
        assert (await stage.facade.get(path_of("team/public", "v1"), Authorization=header))[0] == 401


async def test_entitlement_is_believed_for_a_while_and_one_question_covers_an_image(stage: Stage) -> None:
    await pull(stage.facade, "alice/private", "v1", **basic(ALICE))
    asked = len(stage.upstream.requests)
    for _ in range(3):
        assert await pull(stage.facade, "alice/private", "v1", **basic(ALICE)) == [200, 200, 200]
    assert len(stage.upstream.requests) == asked
    questions = [path for method, path, _ in stage.upstream.requests if method == "HEAD"]
    assert set(questions) == {"/v2/alice/private/manifests/v1"}


async def test_right_that_was_taken_away_ends_with_the_time_to_live(
    upstream: TenantRegistry, tmp_path: Path
) -> None:
    fill(upstream)
    settings = delegated(upstream, ttl_s=0.0, grace_s=3600.0)
    async with running_facade(tmp_path, tag_fresh_s=0.0, **settings) as facade:
        assert await pull(facade, "alice/private", "v1", **basic(ALICE)) == [200, 200, 200]
        upstream.readers["alice/private"] = {BOB}
        assert await pull(facade, "alice/private", "v1", **basic(ALICE)) == [404]
        secret = SECRET_LAYER.layer.descriptor.digest
        assert (await facade.get(path_of("alice/private", secret, "blobs"), **basic(ALICE)))[0] == 404


async def test_with_the_upstream_gone_those_pull_who_could_before(
    upstream: TenantRegistry, tmp_path: Path
) -> None:
    """Also after a restart; whoever never could, cannot now."""
    fill(upstream)
    settings = {**delegated(upstream, ttl_s=0.0), "tag_fresh_s": 0.0}
    async with running_facade(tmp_path, **settings) as facade:
        assert await pull(facade, "alice/private", "v1", **basic(ALICE)) == [200, 200, 200]
    upstream.down = True
    async with running_facade(tmp_path, **settings) as facade:
        assert await pull(facade, "alice/private", "v1", **basic(ALICE)) == [200, 200, 200]
        status, headers, _ = await facade.get(path_of("alice/private", "v1"), **basic(ALICE))
        assert (status, headers["Warning"][:4]) == (200, "110 ")
        assert (await facade.get(path_of("alice/private", "v1"), **basic(BOB)))[0] == 503
        secret = SECRET_LAYER.layer.descriptor.digest
        assert (await facade.get(path_of("alice/private", secret, "blobs"), **basic(BOB)))[0] == 503


async def test_nothing_that_is_kept_names_a_secret(stage: Stage, tmp_path: Path) -> None:
    await pull(stage.facade, "alice/private", "v1", **basic(ALICE))
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"wonder" not in kept
    assert (tmp_path / "callers.key").stat().st_mode & 0o077 == 0


async def test_refusals_are_counted_and_name_no_one(stage: Stage) -> None:
    await stage.facade.get(path_of("alice/private", "v1"))
    await stage.facade.get(path_of("alice/private", "v1"), **basic(BOB))
    assert await stage.facade.metric("facade_refusals_total", reason="anonymous") == 1
    assert await stage.facade.metric("facade_refusals_total", reason="not_entitled") == 1


async def test_tags_and_referrers_are_the_callers_own(stage: Stage) -> None:
    assert (await stage.facade.get("/v2/hub.test/alice/private/tags/list", **basic(BOB)))[0] == 404
    path = f"/v2/hub.test/alice/private/referrers/{stage.private}"
    status, _, body = await stage.facade.get(path, **basic(BOB))
    assert (status, json.loads(body)["manifests"]) == (200, [])  # as for any digest without referrers


# ----- tokens -----

TOKEN, PUSHER = "t" * 20, "p" * 20


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(
        json.dumps(
            {
                TOKEN: {"name": "ci", "pull": ["hub.test/team/*", "workspaces/ws-1"]},
                PUSHER: {"name": "pusher", "push": ["local/team/*"]},
            }
        )
    )
    return path


def with_tokens(upstream: TenantRegistry, tokens: Path, **settings: Any) -> dict[str, Any]:
    access = AccessSettings(mode="tokens", tokens_file=tokens)
    own = {"admin_token": Secret("of the operator"), "access": access}
    return {"upstreams": {"hub.test": upstream.origin}, **own, **settings}


async def test_token_opens_its_repositories_and_no_others(
    upstream: TenantRegistry, tmp_path: Path, tokens: Path
) -> None:
    private, _ = fill(upstream)
    del upstream.readers["alice/private"]  # the upstream would let anybody
    async with running_facade(tmp_path / "cache", **with_tokens(upstream, tokens)) as facade:
        for shown in (bearer(TOKEN), basic(f"anything:{TOKEN}")):
            assert await pull(facade, "team/public", "v1", **shown) == [200, 200, 200]
            assert await pull(facade, "alice/private", "v1", **shown) == [404]
        assert (await facade.get("/v2/", **bearer(TOKEN)))[0] == 200
        for shown in ({}, bearer("x" * 20), basic(ALICE)):
            assert await pull(facade, "team/public", "v1", **shown) == [401]
        # what lies in the cache under another repository's name is not to be had through one's own
        await pull(facade, "alice/private", "v1", **bearer(TOKEN))
        secret = SECRET_LAYER.layer.descriptor.digest
        for kind, digest in (("manifests", private), ("blobs", secret)):
            assert (await facade.get(path_of("team/public", digest, kind), **bearer(TOKEN)))[0] == 404


async def test_cached_blob_of_another_repository_is_not_to_be_had_through_ones_own(
    upstream: TenantRegistry, tmp_path: Path, tokens: Path
) -> None:
    private, _ = fill(upstream)
    del upstream.readers["alice/private"]
    everything = tmp_path / "everything.json"
    everything.write_text(
        json.dumps({"a" * 20: {"name": "all", "pull": ["*"]}, **json.loads(tokens.read_text())})
    )
    secret = SECRET_LAYER.layer.descriptor.digest
    async with running_facade(tmp_path / "cache", **with_tokens(upstream, everything)) as facade:
        assert await pull(facade, "alice/private", "v1", **bearer("a" * 20)) == [200, 200, 200]
        for kind, digest in (("manifests", private), ("blobs", secret)):
            assert (await facade.get(path_of("team/public", digest, kind), **bearer(TOKEN)))[0] == 404


async def test_tokens_are_read_anew_when_their_file_changes(
    upstream: TenantRegistry, tmp_path: Path, tokens: Path
) -> None:
    fill(upstream)
    async with running_facade(tmp_path / "cache", **with_tokens(upstream, tokens)) as facade:
        assert (await facade.get(path_of("team/public", "v1"), **bearer(TOKEN)))[0] == 200
        tokens.write_text("{}")
        async with asyncio.timeout(10):
            while (await facade.get(path_of("team/public", "v1"), **bearer(TOKEN)))[0] == 200:
                await asyncio.sleep(0.05)
        tokens.write_text("{ half")
        assert (await facade.get(path_of("team/public", "v1"), **bearer(TOKEN)))[0] == 401


async def test_local_namespace_takes_pushes_from_the_tokens_for_it(
    upstream: TenantRegistry, tmp_path: Path, tokens: Path
) -> None:
    local = LocalSettings(enabled=True, namespace="local", root=None)
    async with running_facade(tmp_path / "cache", **with_tokens(upstream, tokens, local=local)) as facade:

        async def post(repository: str, query: str = "", **headers: str) -> int:
            path = f"/v2/local/{repository}/blobs/uploads/{query}"
            async with facade.session.post(path, headers=headers) as response:
                return response.status

        assert await post("team/app", **bearer(PUSHER)) == 202
        assert await post("other/app", **bearer(PUSHER)) == 403
        assert await post("team/app", **bearer(TOKEN)) == 403
        assert await post("team/app") == 401
        stolen = f"?mount={Digest.of(b'x')}&from=local/other/app"
        assert await post("team/app", stolen, **bearer(PUSHER)) == 404
        assert (await facade.get("/v2/local/team/app/tags/list", **bearer(TOKEN)))[0] == 404


BAD_TOKENS = {
    "not json": ("{", "not JSON"),
    "a list": ("[]", "must be an object"),
    "short": ('{"short": {"name": "a", "pull": []}}', "at least 16 characters"),
    "no name": ('{"' + TOKEN + '": {"pull": []}}', 'must have "name"'),
    "unknown key": ('{"' + TOKEN + '": {"name": "a", "read": []}}', 'must have "name"'),
    "two of one name": (
        '{"' + TOKEN + '": {"name": "a"}, "' + PUSHER + '": {"name": "a"}}',
        "the name of two tokens",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_token_file_that_cannot_be_used_is_told_without_its_secrets(
    text: str, message: str, upstream: TenantRegistry, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(text)
    with pytest.raises(SettingsInvalid, match=message) as caught:
        async with running_facade(tmp_path / "cache", **with_tokens(upstream, path)):
            pass
    assert TOKEN not in str(caught.value)
    assert PUSHER not in str(caught.value)


# ----- composed images -----


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    path = tmp_path / "specs"
    path.mkdir()
    private = {"base": "hub.test/alice/private:v1", "layers": ["hub.test/team/public:v1"]}
    (path / "ws-1.json").write_text(json.dumps({**private, "layers": [{"files": {"/key": "of ws-1"}}]}))
    (path / "ws-2.json").write_text(json.dumps({**private, "access": "entitled"}))
    return path


async def composed(facade: RunningFacade, image_id: str, **headers: str) -> list[int]:
    status, _, body = await facade.get(f"/v2/workspaces/{image_id}/manifests/latest", **headers)
    found = [status]
    if status == 200:
        manifest = Manifest.parse(body)
        digests = [item.digest for item in (manifest.config, *manifest.layers)]
        paths = [f"/v2/workspaces/{image_id}/blobs/{digest}" for digest in digests]
        found += [(await facade.get(path, **headers))[0] for path in paths]
    return found


def facade_login(upstream: TenantRegistry, directory: Path) -> Path:
    """A docker config.json with which the facade itself may read everything."""
    path = directory / "docker.json"
    auth = base64.b64encode(ALICE.encode()).decode()
    path.write_text(json.dumps({"auths": {"hub.test": {"auth": auth}}}))
    return path


async def test_composed_image_takes_a_token_that_covers_it(
    upstream: TenantRegistry, tmp_path: Path, tokens: Path, specs: Path
) -> None:
    fill(upstream)
    settings = {"image_specs": specs, "docker_config": facade_login(upstream, tmp_path)}
    access = {**delegated(upstream, tokens_file=tokens), **settings}
    async with running_facade(tmp_path / "cache", **access) as facade:
        assert await composed(facade, "ws-1", **bearer(TOKEN)) == [200, 200, 200, 200]
        assert await composed(facade, "ws-2", **bearer(TOKEN)) == [404]
        assert await composed(facade, "ws-1", **basic(ALICE)) == [404]
        assert await composed(facade, "ws-1") == [401]
        stranger = PUBLIC_LAYER.layer.descriptor.digest
        await pull(facade, "team/public", "v1")
        status, _, _ = await facade.get(f"/v2/workspaces/ws-1/blobs/{stranger}", **bearer(TOKEN))
        assert status == 404


async def test_composed_image_for_the_entitled_asks_for_each_of_its_images(
    upstream: TenantRegistry, tmp_path: Path, specs: Path
) -> None:
    fill(upstream)
    settings = {"image_specs": specs, "docker_config": facade_login(upstream, tmp_path)}
    async with running_facade(tmp_path / "cache", **delegated(upstream), **settings) as facade:
        assert await composed(facade, "ws-2", **basic(ALICE)) == [200, 200, 200, 200]
        refused = await facade.get("/v2/workspaces/ws-2/manifests/latest", **basic(BOB))
        absent = await facade.get("/v2/workspaces/ws-9/manifests/latest", **basic(BOB))
        assert refused[0] == absent[0] == 404
        assert refused[2].replace(b"ws-2", b"") == absent[2].replace(b"ws-9", b"")


# ----- the facade's own credentials, and TLS -----


async def test_rotated_credentials_of_the_facade_are_taken_up(
    upstream: TenantRegistry, tmp_path: Path
) -> None:
    fill(upstream)
    path = facade_login(upstream, tmp_path)
    async with running_facade(
        tmp_path / "cache",
        upstreams={"hub.test": upstream.origin},
        docker_config=path,
        tag_fresh_s=0.0,
        tag_revalidate_s=0.0,
    ) as facade:
        assert (await facade.get(path_of("alice/private", "v1")))[0] == 200
        upstream.readers["alice/private"] = {"alice:rotated"}
        upstream.users = {"alice:rotated"}
        auth = base64.b64encode(b"alice:rotated").decode()
        path.write_text(json.dumps({"auths": {"hub.test": {"auth": auth}}}))
        assert (await facade.get(path_of("alice/private", "v1")))[0] == 200
        assert upstream.requests[-1][2] == "alice:rotated"


@pytest.mark.component("openssl")
async def test_blobs_arrive_whole_over_tls(upstream: TenantRegistry, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    digest = upstream.add_blob(data)
    upstream.contents["x"] = {digest}
    certificate, key = make_certificate(tmp_path)
    tls = {"tls_certificate": certificate, "tls_key": key}
    async with running_facade(tmp_path / "cache", upstreams={"hub.test": upstream.origin}, **tls) as facade:
        assert facade.url.startswith("https://")
        for _ in range(2):  # from the download, then from disk
            assert (await facade.get(path_of("x", digest, "blobs")))[2] == data
        status, _, body = await facade.get(path_of("x", digest, "blobs"), Range="bytes=100-2000000")
        assert (status, body) == (206, data[100:2000001])


@pytest.mark.component("openssl")
async def test_rotated_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    first, second = make_certificate(tmp_path, "first"), make_certificate(tmp_path, "second")
    served = tmp_path / "tls.crt", tmp_path / "tls.key"

    def rotate(pair: tuple[Path, Path]) -> None:
        for source, target in zip(pair, served, strict=True):
            target.write_bytes(source.read_bytes())

    rotate(first)
    settings = {"tls_certificate": served[0], "tls_key": served[1], "upstreams": {"a.test": "oci:/nowhere"}}

    async def trusts(url: str, certificate: Path) -> bool:
        context = ssl.create_default_context(cafile=certificate)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            try:
                async with session.get(f"{url}/v2/"):
                    return True
            except aiohttp.ClientConnectorCertificateError:
                return False

    async with running_facade(tmp_path / "cache", **settings) as facade:
        assert await trusts(facade.url, first[0])
        rotate(second)
        async with asyncio.timeout(20):
            while not await trusts(facade.url, second[0]):
                await asyncio.sleep(0.1)


@pytest.mark.component("openssl")
def test_half_a_rotation_keeps_the_certificate_that_works(tmp_path: Path) -> None:
    first, second = make_certificate(tmp_path, "first"), make_certificate(tmp_path, "second")
    tls = ServerTls(*first)
    first[0].write_bytes(second[0].read_bytes())
    assert not tls.reload()
    first[1].write_bytes(second[1].read_bytes())
    assert tls.reload()
    assert not tls.reload()
    with pytest.raises(SettingsInvalid, match=r"missing\.key"):
        ServerTls(first[0], tmp_path / "missing.key")


@pytest.mark.component("openssl")
async def test_client_without_a_certificate_is_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    ca, client_key = make_certificate(tmp_path, "client")
    settings = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": ca}
    async with running_facade(tmp_path / "cache", upstreams={"a.test": "oci:/x"}, **settings) as facade:
        with pytest.raises(aiohttp.ClientError):
            await facade.get("/v2/")
        context = ssl.create_default_context(cafile=certificate)
        context.load_cert_chain(ca, client_key)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.get(f"{facade.url}/v2/") as response,
        ):
            assert response.status == 200
