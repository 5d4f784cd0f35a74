"""The local namespace: what the OCI conformance suite asks of a registry, restated."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ocikit import media_types
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.manifest import Manifest
from registry_facade.settings import LocalSettings
from tests.support.facade import RunningFacade, running_facade
from tests.support.images import image_documents, made_layer

REPO = "/v2/local/team/app"
DATA = bytes(range(256)) * 40
LAYER = made_layer({"a": b"1"})
LOCAL = LocalSettings(enabled=True, namespace="local", root=None)


@pytest.fixture
async def facade(tmp_path: Path) -> AsyncIterator[RunningFacade]:
    from registry_facade.settings import LocalSettings

    async with running_facade(
        tmp_path, local=LocalSettings(enabled=True, namespace="local", root=None)
    ) as made:
        yield made


async def push(facade: RunningFacade, data: bytes, digest: str | None = None) -> int:
    async with facade.session.post(f"{REPO}/blobs/uploads/") as begun:
        assert begun.status == 202
        location = begun.headers["Location"]
    digest = digest or Digest.of(data)
    async with facade.session.put(f"{location}?digest={digest}", data=data) as done:
        return done.status


async def push_manifest(facade: RunningFacade, tag: str) -> Digest:
    manifest, config = image_documents([LAYER])
    assert await push(facade, LAYER.blob) == 201
    assert await push(facade, config) == 201
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    async with facade.session.put(f"{REPO}/manifests/{tag}", data=manifest, headers=headers) as response:
        assert response.status == 201, await response.text()
        assert response.headers["Docker-Content-Digest"] == Digest.of(manifest)
    return Digest.of(manifest)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("data", [DATA, b"", b"{}"], ids=["some", "empty", "braces"])
async def test_pushed_blob_is_pulled(facade: RunningFacade, data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert await push(facade, data, digest) == 201
    status, headers, body = await facade.get(f"{REPO}/blobs/{digest}")
    assert (status, body, headers["Docker-Content-Digest"]) == (200, data, digest)
    async with facade.session.head(f"{REPO}/blobs/{digest}") as response:
        assert response.headers["Content-Length"] == str(len(data))
    assert (await facade.get(f"/v2/local/another/blobs/{digest}"))[0] == 404


@pytest.mark.parametrize(
    ("header", "expected"),
    [("bytes=500-1499", DATA[500:1500]), ("bytes=500-", DATA[500:]), ("bytes=-500", DATA[-500:])],
    ids=["single", "open", "suffix"],
)
async def test_ranges_of_pushed_blobs(facade: RunningFacade, header: str, expected: bytes) -> None:
    await push(facade, DATA)
    assert (await facade.get(f"{REPO}/blobs/{Digest.of(DATA)}", Range=header))[::2] == (206, expected)


async def test_chunks_come_in_order_or_not_at_all(facade: RunningFacade) -> None:
    async with facade.session.post(f"{REPO}/blobs/uploads/") as begun:
        location = begun.headers["Location"]
    wrong = {"Content-Range": "100-199"}
    async with facade.session.patch(location, data=DATA[100:200], headers=wrong) as response:
        assert response.status == 416
    async with facade.session.patch(location, data=DATA[:100], headers={"Content-Range": "0-99"}) as response:
        assert (response.status, response.headers["Range"]) == (202, "0-99")
    async with facade.session.get(location) as response:
        assert (response.status, response.headers["Range"]) == (204, "0-99")
    rest = {"Content-Range": f"100-{len(DATA) - 1}"}
    async with facade.session.patch(location, data=DATA[100:], headers=rest) as response:
        assert response.status == 202
    async with facade.session.put(f"{location}?digest={Digest.of(DATA)}") as response:
        assert response.status == 201
    assert (await facade.get(f"{REPO}/blobs/{Digest.of(DATA)}"))[2] == DATA


async def test_single_post_and_mount(facade: RunningFacade) -> None:
    digest = Digest.of(DATA)
    async with facade.session.post(f"{REPO}/blobs/uploads/?digest={digest}", data=DATA) as response:
        assert response.status == 201
    mount = f"/v2/local/other/blobs/uploads/?mount={digest}&from=local/team/app"
    async with facade.session.post(mount) as response:
        assert response.status == 201
    assert (await facade.get(f"/v2/local/other/blobs/{digest}"))[2] == DATA
    async with facade.session.post(
        mount.replace("team/app", "nowhere").replace("other", "third")
    ) as response:
        assert response.status == 202


async def test_wrong_bytes_are_refused_and_forgotten(facade: RunningFacade) -> None:
    assert await push(facade, DATA, Digest.of(b"other")) == 400
    assert await push(facade, DATA, "sha256:bad") == 400
    assert (await facade.get(f"{REPO}/blobs/{Digest.of(b'other')}"))[0] == 404
    assert (await facade.get(f"{REPO}/blobs/uploads/{'0' * 32}"))[0] == 404


async def test_image_by_tag_and_digest_and_gone_when_deleted(facade: RunningFacade) -> None:
    digest = await push_manifest(facade, "v1")
    for reference in ("v1", digest):
        status, headers, body = await facade.get(f"{REPO}/manifests/{reference}")
        assert (status, Digest.of(body)) == (200, digest)
        assert headers["Content-Type"] == media_types.OCI_MANIFEST
    assert json.loads((await facade.get(f"{REPO}/tags/list"))[2]) == {
        "name": "local/team/app",
        "tags": ["v1"],
    }
    async with facade.session.delete(f"{REPO}/manifests/{digest}") as response:
        assert response.status == 202
    assert (await facade.get(f"{REPO}/manifests/v1"))[0] == 404
    async with facade.session.delete(f"{REPO}/blobs/{LAYER.layer.descriptor.digest}") as response:
        assert response.status == 202
    assert (await facade.get(f"{REPO}/blobs/{LAYER.layer.descriptor.digest}"))[0] == 404


async def test_referrers_of_a_subject_that_need_not_exist(facade: RunningFacade) -> None:
    subject = Descriptor(media_types.OCI_MANIFEST, Digest.of(b"subject"), 7)
    empty = Descriptor(media_types.OCI_EMPTY, Digest.of(b"{}"), 2)
    await push(facade, b"{}")
    raw = Manifest(empty, (empty,), subject=subject, artifact_type="test/sbom", annotations={"a": "b"}).dump()
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    async with facade.session.put(
        f"{REPO}/manifests/{Digest.of(raw)}", data=raw, headers=headers
    ) as response:
        assert (response.status, response.headers["OCI-Subject"]) == (201, subject.digest)
    _, headers_found, body = await facade.get(f"{REPO}/referrers/{subject.digest}?artifactType=test/sbom")
    assert headers_found["OCI-Filters-Applied"] == "artifactType"
    (found,) = json.loads(body)["manifests"]
    assert (found["digest"], found["artifactType"], found["annotations"]) == (
        Digest.of(raw),
        "test/sbom",
        {"a": "b"},
    )
    none = json.loads((await facade.get(f"{REPO}/referrers/{subject.digest}?artifactType=test/other"))[2])
    assert none["manifests"] == []


BAD_MANIFESTS = {
    "not json": (b"{", 400, "MANIFEST_INVALID"),
    "blob missing": (image_documents([LAYER])[0], 404, "MANIFEST_BLOB_UNKNOWN"),
    "giant": (b'{"schemaVersion":2,"x":"' + b"y" * (5 << 20) + b'"}', 413, "MANIFEST_INVALID"),
}


@pytest.mark.parametrize(("data", "status", "code"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
async def test_bad_manifest_is_refused(facade: RunningFacade, data: bytes, status: int, code: str) -> None:
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    async with facade.session.put(f"{REPO}/manifests/v1", data=io.BytesIO(data), headers=headers) as response:
        assert response.status == status
        assert (await response.json())["errors"][0]["code"] == code


async def test_pushes_survive_a_restart(tmp_path: Path) -> None:
    async with running_facade(tmp_path, local=LOCAL) as facade:
        digest = await push_manifest(facade, "v1")
    async with running_facade(tmp_path, local=LOCAL) as facade:
        assert (await facade.get(f"{REPO}/manifests/v1"))[1]["Docker-Content-Digest"] == digest


async def test_interrupted_upload_goes_on_where_it_was(facade: RunningFacade) -> None:
    async with facade.session.post(f"{REPO}/blobs/uploads/") as begun:
        location = begun.headers["Location"]

    host, _, port = facade.address.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".encode() + DATA[:1000]
    )
    async with asyncio.timeout(10):
        while True:
            async with facade.session.get(location) as response:
                if response.headers["Range"] == "0-999":
                    break
    writer.close()
    async with facade.session.put(f"{location}?digest={Digest.of(DATA)}", data=DATA[1000:]) as response:
        assert response.status == 201


async def test_pushing_is_off_by_default(tmp_path: Path) -> None:
    async with running_facade(tmp_path) as facade, facade.session.post(f"{REPO}/blobs/uploads/") as response:
        assert response.status == 404
