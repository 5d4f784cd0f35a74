"""The facade between a real socket that lies and a client that must not notice, or must be told so."""

import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from ocikit.digest import Digest
from ocikit.layout import LayoutRepository
from ocikit.manifest import RawManifest
from ocikit.media_types import OCI_MANIFEST
from ocikit.testing.faults import (
    CutBody,
    Fault,
    IgnoreRange,
    LongBody,
    Redirect,
    ResetBody,
    ShortBody,
    StallBody,
    Status,
    WrongBytes,
)
from ocikit.testing.registry import RunningRegistry, running_registry
from tests.support.facade import RunningFacade, facade_process, running_facade
from tests.support.images import MadeLayer, image_documents, made_layer, push_image

SMALL = made_layer({"small": os.urandom(9000)})
LARGE = made_layer({"large": os.urandom(3 << 20)})
LAYERS = {"small": SMALL, "large": LARGE}
BROKEN = (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)


@dataclass(frozen=True)
class Scene:
    upstream: RunningRegistry
    facade: RunningFacade

    async def blob(self, layer: MadeLayer, **headers: str) -> tuple[int, bytes]:
        path = f"/v2/team/app/blobs/{layer.layer.descriptor.digest}"
        status, _, body = await self.facade.get(path, **headers)
        return status, body

    async def manifest(self, reference: str = "v1") -> tuple[int, str, bytes]:
        status, headers, body = await self.facade.get(f"/v2/team/app/manifests/{reference}")
        return status, headers.get("Docker-Content-Digest", ""), body


def hold(upstream: RunningRegistry, tag: str, *layers: MadeLayer) -> Digest:
    """Puts an image into the upstream's repository."""
    manifest, config = image_documents(layers)
    repository = upstream.repository("team/app")
    repository.blobs |= {made.layer.descriptor.digest: made.blob for made in layers}
    repository.blobs[Digest.of(config)] = config
    raw = RawManifest.of(OCI_MANIFEST, manifest)
    repository.manifests[raw.digest] = raw
    repository.tags[tag] = raw.digest
    return raw.digest


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """An upstream with one image; tags are asked for anew each time, silence is given up soon."""
    async with running_registry() as upstream:
        hold(upstream, "v1", SMALL, LARGE)
        settings = {"tag_fresh_s": 0.0, "tag_revalidate_s": 0.0, "upstream_idle_s": 0.3}
        async with running_facade(tmp_path, upstreams={"hub.test": upstream.origin}, **settings) as facade:
            yield Scene(upstream, facade)


# ----- blobs -----

PASSING: dict[str, list[Fault]] = {
    "closes early": [ShortBody(5000)],
    "closes early, twice": [ShortBody(5000), ShortBody(1)],
    "resets": [ResetBody(5000)],
    "freezes": [StallBody(5000)],
    "freezes before the first byte": [StallBody(0)],
    "429": [Status(429, {"Retry-After": "0"})],
    "500": [Status(500)],
    "502": [Status(502)],
    "closes early, then ignores Range": [ShortBody(5000), IgnoreRange()],
    "resets, then 502, then freezes": [ResetBody(5000), Status(502), StallBody(1)],
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
async def test_passing_fault_is_never_noticed(scene: Scene, layer: MadeLayer, faults: list[Fault]) -> None:
    scene.upstream.faults.on("GET", layer.layer.descriptor.digest, *faults)
    assert await scene.blob(layer) == (200, layer.blob)
    assert scene.upstream.faults.is_spent
    assert await scene.blob(layer, Range="bytes=5-9") == (206, layer.blob[5:10])


LYING: dict[str, Fault] = {
    "a byte wrong at the start": WrongBytes(0),
    "a byte wrong in the middle": WrongBytes(4000),
    "a byte too few": CutBody(),
    "a byte too many": LongBody(),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("fault", LYING.values(), ids=LYING)
async def test_wrong_blob_is_never_complete_and_never_kept(
    scene: Scene, layer: MadeLayer, fault: Fault
) -> None:
    scene.upstream.faults.on("GET", layer.layer.descriptor.digest, *[fault] * 9)
    try:
        status, body = await scene.blob(layer)
    except BROKEN:
        assert layer is LARGE  # a small one is judged before anything of it is sent
    else:
        assert status in {502, 503}
        assert layer.blob[:100] not in body
    scene.upstream.faults.clear()
    assert await scene.blob(layer) == (200, layer.blob)


REFUSALS = {401: 403, 403: 403, 404: 404, 429: 503, 500: 503, 502: 503}


@pytest.mark.parametrize(("status", "expected"), REFUSALS.items(), ids=[str(key) for key in REFUSALS])
async def test_lasting_refusal_of_a_blob_sends_clients_on(scene: Scene, status: int, expected: int) -> None:
    fault = Status(status, {"Retry-After": "0"} if status == 429 else {})
    scene.upstream.faults.on("GET", "/blobs/", *[fault] * 20)
    assert (await scene.blob(SMALL))[0] == expected
    scene.upstream.faults.clear()
    assert await scene.blob(SMALL) == (200, SMALL.blob)


async def test_redirect_into_a_private_network_is_refused(scene: Scene) -> None:
    async with running_registry(host="127.0.0.2") as victim:
        hold(victim, "v1", SMALL)
        path = f"{victim.origin}/v2/team/app/blobs/{SMALL.layer.descriptor.digest}"
        scene.upstream.faults.on("GET", "/blobs/", *[Redirect(path)] * 9)
        assert (await scene.blob(SMALL))[0] in {403, 503}
        assert victim.requests == []


# ----- manifests -----

MANIFEST_FAULTS: dict[str, tuple[Fault, set[int]]] = {
    "a byte wrong": (WrongBytes(40), {502}),
    "closes early": (ShortBody(40), {502, 503}),
    "500": (Status(500), {503}),
    "429": (Status(429, {"Retry-After": "0"}), {503}),
    "401": (Status(401), {403}),
    "404": (Status(404), {404}),
}


@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize(("fault", "expected"), MANIFEST_FAULTS.values(), ids=MANIFEST_FAULTS)
async def test_manifest_that_cannot_be_had_is_a_clear_refusal(
    scene: Scene, by: str, fault: Fault, expected: set[int]
) -> None:
    digest = scene.upstream.repository("team/app").tags["v1"]
    scene.upstream.faults.on("GET", "/manifests/", *[fault] * 9)
    assert (await scene.manifest("v1" if by == "tag" else digest))[0] in expected


async def test_manifest_that_is_not_what_its_tag_promised_leaves_the_known_one_in_place(
    scene: Scene,
) -> None:
    first = (await scene.manifest())[1]
    hold(scene.upstream, "v1", SMALL)
    scene.upstream.faults.on("GET", "/manifests/", *[WrongBytes(40)] * 9)
    assert (await scene.manifest())[:2] == (200, first)
    scene.upstream.faults.clear()
    assert (await scene.manifest())[:2] == (200, scene.upstream.repository("team/app").tags["v1"])


async def test_tag_that_moves_between_head_and_get_is_followed(scene: Scene) -> None:
    """What HEAD named is gone when it is fetched; the tag means something else by then."""
    await scene.manifest()
    gone = hold(scene.upstream, "v1", SMALL)
    scene.upstream.faults.on("GET", gone, Status(404))
    status, digest, body = await scene.manifest()
    assert (status, digest) == (200, gone)
    assert Digest.of(body) == digest


# ----- the disk -----


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "lapstrake", path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


async def pulls(facade: RunningFacade, layer: MadeLayer, times: int = 1) -> None:
    digest = layer.layer.descriptor.digest
    for _ in range(times):
        assert (await facade.get("/v2/team/app/manifests/v1"))[0] == 200
        assert (await facade.get(f"/v2/team/app/blobs/{digest}"))[::2] == (200, layer.blob)
        ranged = await facade.get(f"/v2/team/app/blobs/{digest}", Range="bytes=100-199")
        assert ranged[::2] == (206, layer.blob[100:200])


async def test_full_disk_costs_the_cache_and_no_pull(tmp_path: Path) -> None:
    async with running_registry() as upstream:
        hold(upstream, "v1", SMALL, LARGE)
        with small_disk(tmp_path / "disk", "2m") as disk:
            async with running_facade(disk, upstreams={"hub.test": upstream.origin}) as facade:
                await pulls(facade, LARGE)
                with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                    while True:
                        filler.write(bytes(4096))
                await pulls(facade, LARGE, 2)
                await pulls(facade, SMALL, 2)
                (disk / "filler").unlink()
                await pulls(facade, SMALL, 2)
            assert not list((disk / "partial").iterdir())


async def test_disk_that_becomes_read_only_costs_the_cache_and_no_pull(tmp_path: Path) -> None:
    async with running_registry() as upstream:
        hold(upstream, "v1", SMALL, LARGE)
        with small_disk(tmp_path / "disk", "64m") as disk:
            async with running_facade(disk, upstreams={"hub.test": upstream.origin}) as facade:
                await pulls(facade, SMALL)
                for name in ("blobs", "ingest", "partial"):  # the catalog is open: all of it cannot be
                    (disk / name).mkdir(exist_ok=True)
                    subprocess.run(["mount", "--bind", disk / name, disk / name], check=True)
                    subprocess.run(["mount", "-o", "remount,ro,bind", disk / name], check=True)
                try:
                    await pulls(facade, LARGE, 2)
                    await pulls(facade, SMALL, 2)
                finally:
                    for name in ("blobs", "ingest", "partial"):
                        subprocess.run(["umount", "-l", disk / name], check=True)


@pytest.mark.parametrize("damage", ["flipped", "cut", "map cut"])
async def test_damaged_half_of_a_download_is_never_served_as_the_whole(tmp_path: Path, damage: str) -> None:
    digest = LARGE.layer.descriptor.digest
    path = f"/v2/team/app/blobs/{digest}"
    async with running_registry() as upstream:
        hold(upstream, "v1", LARGE)
        upstream.faults.on("GET", digest, StallBody(2 << 20))
        upstreams = {"hub.test": upstream.origin}
        async with (
            running_facade(tmp_path, upstreams=upstreams) as facade,
            facade.session.get(path) as response,
        ):
            await response.content.readexactly(1 << 20)
        (partial,) = (item for item in (tmp_path / "partial").iterdir() if not item.suffix)
        with partial.open("r+b") as file:
            if damage == "flipped":
                file.seek(1000)
                file.write(bytes([LARGE.blob[1000] ^ 1]))
            elif damage == "cut":
                file.truncate(1 << 20)
            else:
                partial.with_name(f"{partial.name}.map").write_text("{")
        async with running_facade(tmp_path, upstreams=upstreams) as facade:
            for _ in range(2):
                with contextlib.suppress(*BROKEN):
                    assert (await facade.get(path))[::2] == (200, LARGE.blob)
            assert (await facade.get(path))[::2] == (200, LARGE.blob)


# ----- many clients, and slow ones -----


async def test_a_thousand_idle_connections_and_slow_readers_disturb_nobody(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path / "layout", create=True)
    await push_image(layout, "v1", [LARGE])
    path = f"/v2/x/blobs/{LARGE.layer.descriptor.digest}"
    with facade_process(tmp_path / "facade", "--upstream", f"x=oci:{tmp_path}/layout") as facade:
        host, _, port = facade.address.partition(":")
        with contextlib.ExitStack() as stack:

            def connect(request: str) -> None:
                connection = stack.enter_context(socket.create_connection((host, int(port))))
                connection.sendall(request.encode())

            for _ in range(1000):
                connect("")
            before = memory_bytes(facade.process.pid)
            for _ in range(100):
                connect(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
            async with aiohttp.ClientSession() as session, session.get(f"{facade.url}{path}") as response:
                assert await response.read() == LARGE.blob
            # a hundred readers that take nothing would hold 300 MiB, were their answers in memory
            assert memory_bytes(facade.process.pid) - before < 64 << 20


def memory_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
