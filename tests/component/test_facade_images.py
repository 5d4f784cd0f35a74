"""Manifests, tags and composed images through the facade."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ocikit import media_types
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.errors import OciError
from ocikit.image_config import ImageConfig
from ocikit.layout import LayoutRepository
from ocikit.manifest import Index, Manifest, RawManifest
from ocikit.validate import image_violations
from tests.support.facade import RunningFacade, running_facade
from tests.support.images import AMD64, image_documents, made_layer, push_image, push_index
from tests.support.scripted_registry import ScriptedRegistry, scripted_registry

ARM64 = Platform("linux", "arm64")
BASE = made_layer({"bin/sh": b"a shell", "etc/os-release": b"ID=test"})
TOOL = made_layer({"opt/tool": b"a tool"})
OTHER = made_layer({"opt/other": b"another"})


@dataclass(frozen=True)
class Hub:
    upstream: ScriptedRegistry
    facade: RunningFacade
    digest: Digest


def add_image(upstream: ScriptedRegistry, tag: str, *layers: Any) -> Digest:
    manifest, config = image_documents(layers)
    for layer in layers:
        upstream.add_blob(layer.blob)
    upstream.add_blob(config)
    return upstream.add_manifest(manifest, tag)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with scripted_registry() as upstream:
        digest = add_image(upstream, "v1", BASE, TOOL)
        async with running_facade(
            tmp_path / "cache",
            upstreams={"hub.test:5000": upstream.origin, "other.test": "http://127.0.0.1:9"},
        ) as facade:
            yield Hub(upstream, facade, digest)


# ----- addressing -----

ADDRESSES = {
    "ns": ("/v2/team/app/manifests/v1?ns=hub.test:5000", "hub.test:5000"),
    "ns, colon escaped": ("/v2/team/app/manifests/v1?ns=hub.test%3A5000", "hub.test:5000"),
    "first segment": ("/v2/hub.test:5000/team/app/manifests/v1", None),
    "first segment, as podman can write it": ("/v2/hub.test_5000/team/app/manifests/v1", None),
}


@pytest.mark.parametrize(("path", "namespace"), ADDRESSES.values(), ids=ADDRESSES)
async def test_ways_to_name_the_upstream(hub: Hub, path: str, namespace: str | None) -> None:
    status, headers, body = await hub.facade.get(path)
    assert status == 200
    assert Digest.of(body) == hub.digest == headers["Docker-Content-Digest"]
    assert headers["Content-Type"] == media_types.OCI_MANIFEST
    assert headers.get("OCI-Namespace") == namespace
    assert hub.upstream.requests[-1][1] == "/v2/team/app/manifests/v1"


async def test_default_upstream_serves_names_that_say_none(tmp_path: Path) -> None:
    async with scripted_registry() as upstream:
        add_image(upstream, "v1", BASE)
        async with running_facade(
            tmp_path,
            upstreams={"a.test": "http://127.0.0.1:9", "b.test": upstream.origin},
            default_upstream="b.test",
        ) as facade:
            assert (await facade.get("/v2/library/alpine/manifests/v1"))[0] == 200


REFUSED = {
    "unknown registry": ("/v2/team/app/manifests/v1?ns=evil.test", 404, "NAME_UNKNOWN"),
    "metadata service as registry": ("/v2/latest/meta/manifests/v1?ns=169.254.169.254", 404, "NAME_UNKNOWN"),
    "no upstream named": ("/v2/team/app/manifests/v1", 404, "NAME_UNKNOWN"),
    "unknown path": ("/v2/_catalog", 404, "NAME_UNKNOWN"),
    "other api": ("/v1/search", 404, None),
    "absent tag": ("/v2/hub.test:5000/team/app/manifests/nope", 404, "MANIFEST_UNKNOWN"),
    "malformed digest": ("/v2/hub.test:5000/x/manifests/sha256:baddigeststring", 400, "DIGEST_INVALID"),
    "malformed blob digest": ("/v2/hub.test:5000/x/blobs/sha256:bad", 400, "DIGEST_INVALID"),
    "malformed tag": ("/v2/hub.test:5000/x/manifests/-x", 404, "MANIFEST_UNKNOWN"),
    "upper case name": ("/v2/hub.test:5000/Team/manifests/v1", 400, "NAME_INVALID"),
    "traversal": ("/v2/hub.test:5000/..%2f..%2fetc/manifests/v1", 400, "NAME_INVALID"),
    "header injection": ("/v2/hub.test:5000/x%0d%0aX-Evil:%201/manifests/v1", 400, "NAME_INVALID"),
    "unknown composed image": ("/v2/workspaces/nope/manifests/latest", 404, "MANIFEST_UNKNOWN"),
}


@pytest.mark.parametrize(("path", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_refusals(hub: Hub, path: str, status: int, code: str | None) -> None:
    import yarl

    async with hub.facade.session.get(yarl.URL(hub.facade.url + path, encoded=True)) as response:
        assert response.status == status
        assert "X-Evil" not in response.headers
        if code is not None:
            assert (await response.json())["errors"][0]["code"] == code


async def test_api_version_check(hub: Hub) -> None:
    status, headers, _ = await hub.facade.get("/v2/")
    assert status == 200
    assert headers["Docker-Distribution-API-Version"] == "registry/2.0"


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
async def test_a_mirror_takes_nothing(hub: Hub, method: str) -> None:
    async with hub.facade.session.request(method, "/v2/hub.test:5000/x/manifests/v1") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET, HEAD"


# ----- manifests -----


async def test_head_of_a_manifest_says_all_that_clients_need(hub: Hub) -> None:
    async with hub.facade.session.head("/v2/hub.test:5000/x/manifests/v1") as response:
        assert response.status == 200
        assert response.headers["Docker-Content-Digest"] == hub.digest
        assert response.headers["Content-Type"] == media_types.OCI_MANIFEST
        assert int(response.headers["Content-Length"]) == len(hub.upstream.blobs[hub.digest])
    status, _, _ = await hub.facade.get("/v2/hub.test:5000/x/manifests/v1", If_None_Match=f'"{hub.digest}"')
    assert status == 304


async def test_fresh_tag_is_asked_for_once(hub: Hub) -> None:
    for _ in range(5):
        await hub.facade.get("/v2/hub.test:5000/x/manifests/v1")
        await hub.facade.get(f"/v2/hub.test:5000/x/manifests/{hub.digest}")
    assert hub.upstream.count("GET", "/manifests/") == 1
    assert hub.upstream.count("HEAD", "/manifests/") == 0


async def test_many_first_pulls_ask_once(hub: Hub) -> None:
    answers = await asyncio.gather(*(hub.facade.get("/v2/hub.test:5000/x/manifests/v1") for _ in range(20)))
    assert {status for status, _, _ in answers} == {200}
    assert hub.upstream.count("GET", "/manifests/") == 1


async def test_absence_is_remembered_for_a_while(hub: Hub) -> None:
    for _ in range(3):
        assert (await hub.facade.get("/v2/hub.test:5000/x/manifests/nope"))[0] == 404
    assert hub.upstream.count("GET", "/manifests/nope") == 1


async def test_manifest_that_is_not_what_was_asked_is_refused(hub: Hub) -> None:
    wanted = Digest.of(b"wanted")
    hub.upstream.blobs[wanted] = hub.upstream.blobs[hub.digest]
    status, _, body = await hub.facade.get(f"/v2/hub.test:5000/x/manifests/{wanted}")
    assert status == 502
    assert b"DIGEST_INVALID" in body


async def test_giant_manifest_is_refused(hub: Hub) -> None:
    giant = json.dumps({"schemaVersion": 2, "manifests": [], "annotations": {"a": "x" * (5 << 20)}}).encode()
    hub.upstream.add_manifest(giant, "giant")
    status, _, body = await hub.facade.get("/v2/hub.test:5000/x/manifests/giant")
    assert status == 502
    assert b"MANIFEST_INVALID" in body


async def test_layer_is_not_served_as_a_manifest(hub: Hub) -> None:
    layer = TOOL.layer.descriptor.digest
    assert (await hub.facade.get(f"/v2/hub.test:5000/x/blobs/{layer}"))[0] == 200
    hub.upstream.manifest_status = 404
    assert (await hub.facade.get(f"/v2/hub.test:5000/x/manifests/{layer}"))[0] == 404


async def test_what_was_pulled_still_pulls_when_the_upstream_is_gone(tmp_path: Path) -> None:
    async with scripted_registry() as upstream:
        digest = add_image(upstream, "v1", BASE, TOOL)
        manifest = Manifest.parse(upstream.blobs[digest])
        paths = ["manifests/v1", *(f"blobs/{item.digest}" for item in (manifest.config, *manifest.layers))]
        upstreams = {"hub.test": upstream.origin}
        async with running_facade(tmp_path, upstreams=upstreams, drain_s=5.0) as facade:
            first = [await facade.get(f"/v2/team/app/{path}") for path in paths]
    async with running_facade(tmp_path, upstreams=upstreams, tag_fresh_s=0.0, tag_revalidate_s=0.0) as facade:
        again = [await facade.get(f"/v2/team/app/{path}") for path in paths]
        assert [(status, body) for status, _, body in again] == [(200, body) for _, _, body in first]
        assert again[0][1]["Warning"].startswith("110 ")
        assert await facade.metric("facade_stale_answers_total") == 1
        assert (await facade.get("/v2/team/app/tags/list"))[2] == b'{"name": "team/app", "tags": ["v1"]}'


async def test_tag_that_could_not_be_confirmed_behind_an_answer_is_stale_until_it_is(tmp_path: Path) -> None:
    async with scripted_registry() as upstream:
        add_image(upstream, "v1", BASE)
        async with running_facade(
            tmp_path, upstreams={"hub.test": upstream.origin}, tag_fresh_s=0.0, tag_revalidate_s=600.0
        ) as facade:

            async def until_marked(*, stale: bool) -> None:
                async with asyncio.timeout(30):
                    while True:
                        status, headers, _ = await facade.get("/v2/x/manifests/v1")
                        assert status == 200
                        if headers.get("Warning", "").startswith("110 ") == stale:
                            return

            await until_marked(stale=False)
            upstream.manifest_status = 503
            await until_marked(stale=True)
            assert await facade.metric("facade_stale_answers_total") == 1
            upstream.manifest_status = 0
            await until_marked(stale=False)


async def test_moved_tag_is_noticed_after_its_freshness(tmp_path: Path) -> None:
    async with scripted_registry() as upstream:
        add_image(upstream, "v1", BASE)
        async with running_facade(
            tmp_path, upstreams={"hub.test": upstream.origin}, tag_fresh_s=0.0, tag_revalidate_s=0.0
        ) as facade:
            await facade.get("/v2/x/manifests/v1")
            await facade.get("/v2/x/manifests/v1")
            assert (upstream.count("GET", "/manifests/"), upstream.count("HEAD", "/manifests/")) == (1, 1)
            moved = add_image(upstream, "v1", BASE, TOOL)
            assert (await facade.get("/v2/x/manifests/v1"))[1]["Docker-Content-Digest"] == moved
            del upstream.tags["v1"]
            assert (await facade.get("/v2/x/manifests/v1"))[0] == 404


async def test_tags_are_listed_in_pages(hub: Hub) -> None:
    for tag in ("a", "b", "c"):
        hub.upstream.tags[tag] = hub.digest
    status, headers, body = await hub.facade.get("/v2/hub.test:5000/x/tags/list?n=2&last=a")
    assert json.loads(body)["tags"] == ["b", "c"]
    assert headers["Link"] == '</v2/hub.test:5000/x/tags/list?n=2&last=c>; rel="next"'
    assert status == 200
    assert json.loads((await hub.facade.get("/v2/hub.test:5000/x/tags/list?n=0"))[2])["tags"] == []


async def test_referrers_are_an_empty_index_rather_than_absent(hub: Hub) -> None:
    status, headers, body = await hub.facade.get(f"/v2/hub.test:5000/x/referrers/{hub.digest}")
    assert status == 200
    assert headers["Content-Type"] == media_types.OCI_INDEX
    assert json.loads(body) == {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": []}


# ----- composition -----


@dataclass(frozen=True)
class Workshop:
    """A layout with images, and a directory of specs."""

    layout: LayoutRepository
    specs: Path

    def settings(self) -> dict[str, Any]:
        return {"upstreams": {"images": f"oci:{self.layout.directory}"}, "image_specs": self.specs}

    def write(self, image_id: str, **spec: Any) -> None:
        (self.specs / f"{image_id}.json").write_text(json.dumps(spec))


@pytest.fixture
async def workshop(tmp_path: Path) -> Workshop:
    layout = LayoutRepository(tmp_path / "layout", create=True)
    await push_image(layout, "base", [BASE], {"Env": ["PATH=/bin", "KEEP=1"], "Cmd": ["sh"], "X-Unknown": 1})
    await push_image(layout, "on-base", [BASE, TOOL], {"Env": ["LAPSTRAKE_ENV_PREPEND_PATH=/opt:", "LOST=1"]})
    await push_image(layout, "apart", [OTHER])
    amd = await push_image(layout, None, [BASE])
    arm = await push_image(layout, None, [BASE], platform=ARM64)
    await push_index(layout, "multi", [(AMD64, amd), (ARM64, arm)])
    specs = tmp_path / "specs"
    specs.mkdir()
    (tmp_path / "motd").write_text("hello")
    return Workshop(layout, specs)


async def composed(facade: RunningFacade, image_id: str) -> tuple[Digest, Manifest, ImageConfig, bytes]:
    status, headers, body = await facade.get(f"/v2/workspaces/{image_id}/manifests/latest")
    assert status == 200, body
    manifest = Manifest.parse(body)
    assert headers["Docker-Content-Digest"] == Digest.of(body)
    status, _, config = await facade.get(f"/v2/workspaces/{image_id}/blobs/{manifest.config.digest}")
    assert status == 200
    assert image_violations(manifest, config) == []
    for layer in manifest.layers:
        status, _, blob = await facade.get(f"/v2/workspaces/{image_id}/blobs/{layer.digest}")
        assert (status, Digest.of(blob), len(blob)) == (200, layer.digest, layer.size)
    return Digest.of(body), manifest, ImageConfig.parse(config), config


async def test_composed_image_is_complete(workshop: Workshop, tmp_path: Path) -> None:
    workshop.write(
        "ws",
        base="images/x:base",
        layers=[
            "images/x:on-base",
            "images/x:apart",
            {"file": "../motd", "at": "/etc/motd"},
            {"files": {"/a": "b"}},
        ],
        env={"EDITOR": "vi", "PATH": {"append": "/late"}, "KEEP": None},
        labels={"owner": "me"},
        entrypoint=["/opt/tool"],
    )
    async with running_facade(tmp_path / "cache", **workshop.settings()) as facade:
        _, manifest, config, raw = await composed(facade, "ws")
    assert [layer.digest for layer in manifest.layers[:3]] == [
        made.layer.descriptor.digest for made in (BASE, TOOL, OTHER)
    ]
    assert config.env == {"PATH": "/opt:/bin:/late", "EDITOR": "vi"}
    assert config.execution["Labels"] == {"owner": "me"}
    assert config.execution["Entrypoint"] == ["/opt/tool"]
    assert json.loads(raw)["config"]["X-Unknown"] == 1
    parts = json.loads(manifest.annotations["io.lapstrake.composed.parts"])
    assert [part.partition("@")[0] for part in parts] == [
        "images/x:on-base",
        "images/x:apart",
        "content",
        "content",
    ]
    assert manifest.annotations["org.opencontainers.image.base.name"] == "images/x:base"


async def test_composition_is_the_same_on_every_node_and_after_restart(
    workshop: Workshop, tmp_path: Path
) -> None:
    workshop.write("ws", base="images/x:base", layers=["images/x:apart", {"files": {"/b": "1", "/a": "2"}}])
    found = set()
    for cache in ("one", "two", "one"):
        async with running_facade(tmp_path / cache, **workshop.settings()) as facade:
            found.add((await composed(facade, "ws"))[0])
    assert len(found) == 1


async def test_index_in_index_out(workshop: Workshop, tmp_path: Path) -> None:
    workshop.write("ws", base="images/x:multi", layers=[{"files": {"/a": "b"}}])
    async with running_facade(tmp_path / "cache", **workshop.settings()) as facade:
        _, headers, body = await facade.get("/v2/workspaces/ws/manifests/any-tag")
        assert headers["Content-Type"] == media_types.OCI_INDEX
        index = Index.parse(body)
        assert [item.platform for item in index.manifests] == [AMD64, ARM64]
        for item in index.manifests:
            status, _, child = await facade.get(f"/v2/workspaces/ws/manifests/{item.digest}")
            assert (status, Digest.of(child)) == (200, item.digest)


async def test_platform_an_addition_lacks_is_left_out(workshop: Workshop, tmp_path: Path) -> None:
    workshop.write("ws", base="images/x:multi", layers=["images/x:apart"])
    async with running_facade(tmp_path / "cache", **workshop.settings()) as facade:
        _, _, body = await facade.get("/v2/workspaces/ws/manifests/latest")
        assert [item.platform for item in Index.parse(body).manifests] == [AMD64]


async def test_changed_spec_gives_a_new_digest_and_the_issued_one_stays(
    workshop: Workshop, tmp_path: Path
) -> None:
    workshop.write("ws", base="images/x:base", env={"A": "1"})
    async with running_facade(tmp_path / "cache", **workshop.settings()) as facade:
        old, manifest, _, _ = await composed(facade, "ws")
        workshop.write("ws", base="images/x:base", env={"A": "2"})
        async with asyncio.timeout(10):
            while (await facade.get("/v2/workspaces/ws/manifests/latest"))[1]["Docker-Content-Digest"] == old:
                await asyncio.sleep(0.1)
        assert (await facade.get(f"/v2/workspaces/ws/manifests/{old}"))[0] == 200
        assert (await facade.get(f"/v2/workspaces/ws/blobs/{manifest.config.digest}"))[0] == 200
        assert (await facade.get(f"/v2/workspaces/another/manifests/{old}"))[0] == 404


async def test_lost_generated_blobs_are_made_again(workshop: Workshop, tmp_path: Path) -> None:
    workshop.write("ws", base="images/x:base", layers=[{"files": {"/a": "b" * 100_000}}])
    async with running_facade(tmp_path / "cache", **workshop.settings()) as facade:
        digest, manifest, _, _ = await composed(facade, "ws")
    for item in (manifest.config, *manifest.layers):
        (tmp_path / "cache" / "blobs" / "sha256" / item.digest.encoded).unlink()
    async with running_facade(tmp_path / "cache", **workshop.settings()) as facade:
        for item in (manifest.config, *manifest.layers):
            status, _, body = await facade.get(f"/v2/workspaces/ws/blobs/{item.digest}")
            assert (status, Digest.of(body)) == (200, item.digest)
        assert (await composed(facade, "ws"))[0] == digest


BAD_SPECS = {
    "not json": ("{", "not JSON"),
    "no base": ("{}", "base is missing"),
    "unknown key": ('{"base": "images/x:base", "foo": 1}', "foo: unknown key"),
    "unknown upstream": ('{"base": "evil.test/x:1"}', "begins with none of the upstreams"),
    "relative place": ('{"base": "images/x:base", "layers": [{"file": "a", "at": "etc"}]}', "absolute path"),
    "place above the root": (
        '{"base": "images/x:base", "layers": [{"file": "a", "at": "/../etc"}]}',
        "absolute path",
    ),
    "missing file": ('{"base": "images/x:base", "layers": [{"file": "nope", "at": "/a"}]}', "No such file"),
    "several at once": ('{"layers": 3, "env": []}', "base is missing; layers must be a list; env"),
}


@pytest.mark.parametrize(("text", "message"), BAD_SPECS.values(), ids=BAD_SPECS)
async def test_bad_spec_is_a_clear_answer(
    workshop: Workshop, tmp_path: Path, text: str, message: str
) -> None:
    (workshop.specs / "ws.json").write_text(text)
    async with running_facade(tmp_path / "cache", **workshop.settings()) as facade:
        status, _, body = await facade.get("/v2/workspaces/ws/manifests/latest")
        assert status == 422
        assert message in json.loads(body)["errors"][0]["message"]


async def test_indexes_deep_in_each_other_are_not_followed_for_ever(tmp_path: Path) -> None:
    async with scripted_registry() as upstream:
        add_image(upstream, "base", BASE)
        inner = RawManifest.of(media_types.OCI_MANIFEST, upstream.blobs[add_image(upstream, "tool", TOOL)])
        for _ in range(50):
            entry = Descriptor(inner.media_type, inner.digest, len(inner.data), platform=AMD64)
            inner = RawManifest.of(media_types.OCI_INDEX, Index((entry,)).dump())
            upstream.add_manifest(inner.data, "deep")
        specs = tmp_path / "specs"
        specs.mkdir()
        (specs / "ws.json").write_text(json.dumps({"base": "hub.test/x:base", "layers": ["hub.test/x:deep"]}))
        own = {"upstreams": {"hub.test": upstream.origin}, "image_specs": specs}
        async with running_facade(tmp_path / "cache", **own) as facade:
            status, _, body = await facade.get("/v2/workspaces/ws/manifests/latest")
            assert (status, b"deep in each other" in body) == (502, True)
            assert (await facade.get("/v2/hub.test/x/manifests/deep"))[2] == inner.data


async def test_absence_tells_no_directory_of_this_machine(workshop: Workshop, tmp_path: Path) -> None:
    async with running_facade(tmp_path / "cache", **workshop.settings()) as facade:
        for path in (
            "images/x/manifests/nope",
            f"images/x/manifests/{Digest.of(b'x')}",
            f"images/x/blobs/{Digest.of(b'x')}",
        ):
            status, _, body = await facade.get(f"/v2/{path}")
            assert status in {400, 404}
            assert str(workshop.layout.directory).encode() not in body


async def test_missing_base_is_404(workshop: Workshop, tmp_path: Path) -> None:
    workshop.write("ws", base="images/x:nope")
    async with running_facade(tmp_path / "cache", **workshop.settings()) as facade:
        assert (await facade.get("/v2/workspaces/ws/manifests/latest"))[0] == 404


def test_every_error_of_the_vocabulary_has_a_status() -> None:
    from registry_facade.responses import error_response

    def classes(cls: type[OciError]) -> set[type[OciError]]:
        return {cls}.union(*(classes(sub) for sub in cls.__subclasses__()))

    for cls in classes(OciError):
        error = cls.__new__(cls)
        Exception.__init__(error, "x")
        error.size_bytes = 1  # type: ignore[attr-defined] # InvalidRange says it
        assert 400 <= error_response(error).status < 600
        assert error_response(error).status not in {408, 429}
