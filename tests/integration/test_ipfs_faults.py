"""What fails around a facade while it serves: the right bytes come from elsewhere, and it is counted who."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from ocikit.cid import ANNOTATION, cid_of
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.media_types import OCI_LAYER
from registry_facade.digest_index.sqlite import SqliteIndex
from registry_facade.peers.client import PATH as PEER_PATH
from tests.support.facade import RunningFacade, running_facade
from tests.support.images import MadeLayer, image_documents
from tests.support.kubo import KuboNode, kubo_node, new_swarm_key
from tests.support.scripted_registry import ScriptedRegistry, scripted_registry
from tests.support.shaping import shaped_link

pytestmark = pytest.mark.component("kubo")
DATA = random.Random(17).randbytes((18 << 20) + 5)
DIGEST = Digest.of(DATA)
SMALL = random.Random(18).randbytes((1 << 20) + 5)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KuboNode, KuboNode]]:
    """Two nodes of one swarm, shared by the module; who kills one starts it again."""
    root, key = tmp_path_factory.mktemp("kubo"), new_swarm_key()
    with kubo_node(root / "one", swarm_key=key) as one, kubo_node(root / "two", swarm_key=key) as two:
        two.connect(one)
        yield one, two


@pytest.fixture(scope="module")
def layer_cid(nodes: tuple[KuboNode, KuboNode], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The layer as facades add it, on the first node."""
    path = tmp_path_factory.mktemp("layer") / "layer"
    path.write_bytes(DATA)
    cid = nodes[0].ipfs(
        "add", "-Q", "--cid-version=1", "--raw-leaves", "--chunker=size-1048576", "--max-file-links=1024",
        str(path),
    ).strip()  # fmt: skip
    assert cid == cid_of(DATA)
    return cid


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedRegistry]:
    async with scripted_registry() as registry:
        registry.add_blob(DATA)
        yield registry


async def index_of(path: Path, cid: str) -> str:
    """A digest index that maps the layer to ``cid``."""
    index = SqliteIndex(path)
    await index.put(DIGEST, cid)
    await index.aclose()
    return f"sqlite:{path}"


async def pulled(facade: RunningFacade, digest: Digest = DIGEST) -> tuple[int, bytes]:
    async with asyncio.timeout(40):
        status, _, body = await facade.get(f"/v2/team/app/blobs/{digest}")
    return status, body


async def above(facade: RunningFacade, bound: float, name: str, **labels: str) -> None:
    """Returns when the metric is above ``bound``."""
    async with asyncio.timeout(30):
        while await facade.metric(name, **labels) <= bound:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def facade_behind_a_slow_node(
    directory: Path, node: KuboNode, upstream: ScriptedRegistry, cid: str, rate_bytes_s: float
) -> AsyncIterator[RunningFacade]:
    port = urlsplit(node.api_url).port or 0
    async with shaped_link(port, rate_bytes_s) as link:
        settings = {
            "upstreams": {"hub.test": upstream.origin},
            "ipfs_api": link.url,
            "digest_index": await index_of(directory / "cids", cid),
        }
        async with running_facade(directory / "cache", **settings) as facade:
            yield facade


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_kubo_goes_away_in_the_middle_of_a_layer(tmp_path, nodes, layer_cid, upstream, fault):
    one = nodes[0]
    async with facade_behind_a_slow_node(tmp_path, one, upstream, layer_cid, 10 << 20) as facade:
        pulling = asyncio.create_task(pulled(facade))
        try:
            await above(facade, 2 << 20, "facade_received_bytes_total", source="ipfs")
            one.process.signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
            assert await pulling == (200, DATA)
        finally:
            one.process.signal(signal.SIGCONT)
            if fault == "killed":
                one.process.wait()
                await asyncio.to_thread(one.process.start)
                await asyncio.to_thread(nodes[1].connect, one)
        assert await facade.metric("facade_source_failures_total", source="ipfs") > 0
        assert 0 < upstream.sent_bytes[DIGEST] < len(DATA)


async def test_a_node_that_trickles_is_left_and_its_bytes_are_kept(tmp_path, nodes, layer_cid, upstream):
    async with facade_behind_a_slow_node(tmp_path, nodes[0], upstream, layer_cid, 500_000) as facade:
        assert await pulled(facade) == (200, DATA)
        assert await facade.metric("facade_slow_sources_total", source="ipfs") == 1
        assert await facade.metric("facade_source_failures_total", source="ipfs") > 0


async def test_a_cid_nobody_has_and_no_upstream_is_a_clear_error_in_time(tmp_path, nodes, upstream):
    upstream.blobs.clear()
    settings = {
        "upstreams": {"hub.test": upstream.origin},
        "ipfs_api": nodes[1].api_url,
        "digest_index": await index_of(tmp_path / "cids", cid_of(b"nobody has this")),
    }
    async with running_facade(tmp_path / "cache", **settings) as facade:
        async with asyncio.timeout(10):
            status, body = await pulled(facade)
        assert (status, b"BLOB_UNKNOWN" in body) == (404, True)
        assert await facade.metric("facade_ipfs_unmapped_total", reason="absent") == 1


# ----- gateways -----


@contextlib.asynccontextmanager
async def lying_gateway(lie: str) -> AsyncIterator[str]:
    bodies = {"flip": bytes([DATA[0] ^ 1]) + DATA[1:], "cut": DATA[:-1], "extend": DATA + b"\0"}

    async def answer(request: web.Request) -> web.StreamResponse:
        body = bodies[lie]
        asked = request.http_range
        start, stop, _ = asked.indices(len(body))
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"}
        ranged = asked.start is not None or asked.stop is not None
        return web.Response(
            status=206 if ranged else 200, body=body[start:stop], headers=headers if ranged else {}
        )

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("lie", ["flip", "cut", "extend"])
async def test_a_lying_gateway_costs_a_detour(tmp_path, layer_cid, upstream, lie):
    async with lying_gateway(lie) as url:
        settings: dict[str, Any] = {
            "upstreams": {"hub.test": upstream.origin},
            "ipfs_gateways": (url,),
            "public_images": ("hub.test/*",),
            "digest_index": await index_of(tmp_path / "cids", layer_cid),
        }
        async with running_facade(tmp_path / "cache", **settings) as facade:
            assert await pulled(facade) == (200, DATA)
            assert await facade.metric("facade_source_failures_total", source="gateway") > 0
            assert await facade.metric("facade_received_bytes_total", source="upstream") >= len(DATA)


async def test_an_honest_gateway_serves_public_images_and_is_asked_for_no_others(
    tmp_path, nodes, layer_cid, upstream
):
    settings: dict[str, Any] = {
        "upstreams": {"hub.test": upstream.origin},
        "ipfs_gateways": (nodes[0].gateway_url,),
        "digest_index": await index_of(tmp_path / "cids", layer_cid),
    }
    async with running_facade(tmp_path / "private", **settings) as facade:
        assert await pulled(facade) == (200, DATA)
        assert await facade.metric("facade_received_bytes_total", source="gateway") == 0
    upstream.blobs.clear()
    async with running_facade(tmp_path / "public", public_images=("hub.test/team/*",), **settings) as facade:
        assert await pulled(facade) == (200, DATA)
        assert await facade.metric("facade_received_bytes_total", source="gateway") >= len(DATA)


# ----- full disks -----


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


async def test_a_full_cache_disk_passes_layers_through(tmp_path, upstream):
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        async with running_facade(disk / "cache", upstreams={"hub.test": upstream.origin}) as facade:
            for _ in range(2):
                assert await pulled(facade) == (200, DATA)
            assert await facade.metric("facade_blob_requests_total", source="passing") == 2


async def test_a_full_ipfs_disk_costs_the_announcement_only(tmp_path, upstream):
    small = upstream.add_blob(SMALL)
    with (
        small_disk(tmp_path / "disk", 12 << 20) as disk,
        kubo_node(disk / "kubo", swarm_key=new_swarm_key()) as node,
    ):
        settings = {"upstreams": {"hub.test": upstream.origin}, "ipfs_api": node.api_url}
        async with running_facade(tmp_path / "cache", **settings) as facade:
            assert await pulled(facade) == (200, DATA)
            await above(facade, 0, "facade_ipfs_announced_total", outcome="failed")
            assert await pulled(facade, small) == (200, SMALL)
        index = SqliteIndex(tmp_path / "cache" / "cids.sqlite")
        assert await index.get(DIGEST) is None
        await index.aclose()


async def test_a_budget_that_is_used_up_unpins_the_layer_pulled_longest_ago(tmp_path, upstream):
    layers = [random.Random(number).randbytes(1 << 20) for number in range(4)]
    digests = [upstream.add_blob(data) for data in layers]
    with kubo_node(tmp_path / "kubo", swarm_key=new_swarm_key()) as node:
        settings = {
            "upstreams": {"hub.test": upstream.origin},
            "ipfs_api": node.api_url,
            "ipfs_max_bytes": 4 << 20,
        }
        async with running_facade(tmp_path / "cache", **settings) as facade:
            for number, (digest, data) in enumerate(zip(digests, layers, strict=True)):
                assert await pulled(facade, digest) == (200, data)
                await above(facade, number, "facade_ipfs_announced_total", outcome="added")
            assert await facade.metric("facade_ipfs_unpinned_total") > 0
        pinned = node.ipfs("pin", "ls", "--names", "--type=recursive")
        assert digests[0] not in pinned
        assert digests[3] in pinned


# ----- hints in images, and images that are not shared -----


def documents(cid: str, **annotations: str) -> tuple[bytes, bytes]:
    descriptor = Descriptor(OCI_LAYER, DIGEST, len(DATA), {ANNOTATION: cid})
    manifest, config = image_documents([MadeLayer(DATA, Layer(descriptor, DIGEST))])
    if annotations:
        marks = ",".join(f'"{name}":"{value}"' for name, value in annotations.items())
        manifest = manifest.rstrip()[:-1] + f',"annotations":{{{marks}}}}}'.encode()
    return manifest, config


async def pull_image(facade: RunningFacade) -> None:
    async with facade.session.get("/v2/team/app/manifests/v1") as response:
        assert response.status == 200
    assert await pulled(facade) == (200, DATA)


async def test_the_image_says_where_its_layers_are_and_no_index_is_shared(
    tmp_path, nodes, layer_cid, upstream
):
    manifest, config = documents(layer_cid)
    upstream.add_manifest(manifest, "v1")
    upstream.add_blob(config)
    settings = {"upstreams": {"hub.test": upstream.origin}, "ipfs_api": nodes[1].api_url}
    async with running_facade(tmp_path / "cache", **settings) as facade:
        assert (await facade.get("/v2/team/app/manifests/v1"))[0] == 200
        upstream.blobs.pop(DIGEST)
        assert await pulled(facade) == (200, DATA)
        assert await facade.metric("facade_received_bytes_total", source="ipfs") >= len(DATA)


@pytest.mark.parametrize("how", ["annotation", "setting"])
async def test_layers_of_an_unshared_image_reach_neither_ipfs_nor_peers(
    tmp_path, nodes, layer_cid, upstream, how
):
    marks = {"dev.lapstrake.share": "no"} if how == "annotation" else {}
    manifest, config = documents(layer_cid, **marks)
    upstream.add_manifest(manifest, "v1")
    upstream.add_blob(config)
    settings: dict[str, Any] = {
        "upstreams": {"hub.test": upstream.origin},
        "ipfs_api": nodes[1].api_url,
        "peers": ("http://127.0.0.1:1",),
        "peer_url": "http://127.0.0.1:2",
    }
    if how == "setting":
        settings["unshared_images"] = ("hub.test/team/*",)
    async with running_facade(tmp_path / "cache", **settings) as facade:
        await pull_image(facade)
        assert upstream.sent_bytes[DIGEST] == len(DATA)
        assert (await facade.get(f"{PEER_PATH}{DIGEST}"))[0] == 404
        for source in ("ipfs", "peer"):
            assert await facade.metric("facade_received_bytes_total", source=source) == 0
            assert await facade.metric("facade_source_failures_total", source=source) == 0
        assert await facade.metric("facade_ipfs_announced_total") == 0
        assert await facade.metric("facade_ipfs_announcements_waiting") == 0
