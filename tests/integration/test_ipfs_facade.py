"""Whole facades over real Kubo nodes: what one has pulled, another serves without the upstream."""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from ocikit.cid import cid_of
from ocikit.digest import Digest
from tests.support.facade import RunningFacade, running_facade
from tests.support.kubo import KuboNode
from tests.support.scripted_registry import ScriptedRegistry, scripted_registry

pytestmark = pytest.mark.component("kubo")
DATA = random.Random(3).randbytes((3 << 20) + 77)
DIGEST = Digest.of(DATA)
KEY = f"lapstrake:cid:{DIGEST}"


@dataclass(frozen=True)
class Cluster:
    """One upstream, one index; facades come and go."""

    upstream: ScriptedRegistry
    index: str
    directory: Path

    @contextlib.asynccontextmanager
    async def facade(self, name: str, kubo: KuboNode, **settings: Any) -> AsyncIterator[RunningFacade]:
        async with running_facade(
            self.directory / name,
            upstreams={"hub.test": self.upstream.origin},
            ipfs_api=kubo.api_url,
            digest_index=self.index,
            **settings,
        ) as facade:
            yield facade

    def cut_off(self) -> None:
        self.upstream.blobs.clear()


@pytest.fixture
async def cluster(redis_server, tmp_path) -> AsyncIterator[Cluster]:
    async with scripted_registry() as upstream:
        upstream.add_blob(DATA)
        yield Cluster(upstream, redis_server.url, tmp_path)


@pytest.fixture
def nodes(kubo_factory) -> Iterator[tuple[KuboNode, KuboNode]]:
    """Two nodes of one swarm."""
    with kubo_factory() as one, kubo_factory() as two:
        two.connect(one)
        yield one, two


async def pull(facade: RunningFacade, **headers: str) -> tuple[int, bytes]:
    async with asyncio.timeout(30):
        status, _, body = await facade.get(f"/v2/team/app/blobs/{DIGEST}", **headers)
    return status, body


async def announced(facade: RunningFacade, outcome: str = "added") -> None:
    """Returns when the blob that was pulled has been offered to IPFS."""
    await counted(facade, "facade_ipfs_announced_total", outcome=outcome)


async def counted(facade: RunningFacade, name: str, **labels: str) -> None:
    """Returns when the metric is above 0."""
    async with asyncio.timeout(30):
        while not await facade.metric(name, **labels):
            await asyncio.sleep(0.02)


async def received(facade: RunningFacade, source: str) -> float:
    return await facade.metric("facade_received_bytes_total", source=source)


@pytest.mark.parametrize("share", ["redis", "sqlite"])
async def test_a_second_facade_serves_from_ipfs_with_the_upstream_gone(cluster, nodes, share):
    if share == "sqlite":
        cluster = Cluster(cluster.upstream, f"sqlite:{cluster.directory}/shared.sqlite", cluster.directory)
    async with cluster.facade("one", nodes[0]) as one:
        assert await pull(one) == (200, DATA)
        await announced(one)
    sent_before = cluster.upstream.sent_bytes[DIGEST]
    cluster.cut_off()
    async with cluster.facade("two", nodes[1]) as two:
        assert await pull(two) == (200, DATA)
        assert await received(two, "ipfs") == len(DATA)
        assert await pull(two, Range="bytes=5-9") == (206, DATA[5:10])
    assert (sent_before, cluster.upstream.sent_bytes[DIGEST]) == (len(DATA), len(DATA))


async def test_a_range_of_a_cold_blob_comes_from_ipfs(cluster, nodes):
    async with cluster.facade("one", nodes[0]) as one:
        await pull(one)
        await announced(one)
    cluster.cut_off()
    async with cluster.facade("two", nodes[1]) as two:
        assert await pull(two, Range="bytes=-100") == (206, DATA[-100:])


async def test_what_came_from_ipfs_is_not_announced_again(cluster, nodes):
    async with cluster.facade("one", nodes[0]) as one:
        await pull(one)
        await announced(one)
    async with cluster.facade("two", nodes[1]) as two:
        await pull(two)
        assert await two.metric("facade_ipfs_announced_total") == 0


async def served_by_the_upstream(cluster: Cluster, kubo: KuboNode) -> tuple[float, float]:
    """(bytes believed of IPFS, failures of it) of a pull that must succeed."""
    async with cluster.facade("cold", kubo) as cold:
        assert await pull(cold) == (200, DATA)
        assert await received(cold, "upstream") >= len(DATA)
        await counted(cold, "facade_source_failures_total", source="ipfs")
        return await received(cold, "ipfs"), await cold.metric("facade_source_failures_total", source="ipfs")


@pytest.mark.parametrize("lie", ["flip", "cut", "extend", "nobody has it", "a block of no file", "not a CID"])
async def test_a_lying_index_costs_a_detour_and_is_corrected(cluster, kubo_node, redis_server, lie):
    false = {
        "flip": bytes([DATA[0] ^ 1]) + DATA[1:],
        "cut": DATA[:-1],
        "extend": DATA + b"\0",
    }.get(lie)
    if false is not None:
        (cluster.directory / "lie").write_bytes(false)
        cid = kubo_node.ipfs("add", "-Q", "--cid-version=1", str(cluster.directory / "lie")).strip()
    else:
        cid = {
            "nobody has it": cid_of(b"nobody has this"),
            "a block of no file": kubo_node.ipfs(
                "add", "-Qr", "--cid-version=1", str(Path(__file__).parent)
            ).strip(),
            "not a CID": "$(reboot)",
        }[lie]
    async with Redis.from_url(redis_server.url) as client:
        await client.set(KEY, cid)
        async with cluster.facade("cold", kubo_node) as cold:
            assert await pull(cold) == (200, DATA)
            await announced(cold)
            if lie != "not a CID":  # nobody waits for the verdict on a CID, it comes later
                await counted(cold, "facade_ipfs_unmapped_total")
        assert (await client.get(KEY)).decode() == cid_of(DATA)


async def test_a_dead_redis_fails_no_pull(cluster, kubo_node, redis_server):
    redis_server.process.kill()
    assert (await served_by_the_upstream(cluster, kubo_node))[0] == 0


async def test_a_frozen_redis_fails_no_pull(cluster, kubo_node, redis_server):
    redis_server.process.signal(signal.SIGSTOP)
    assert (await served_by_the_upstream(cluster, kubo_node))[1] > 0


async def test_an_emptied_redis_fails_no_pull_and_is_filled_again(cluster, kubo_node, redis_server):
    async with cluster.facade("one", kubo_node) as one, Redis.from_url(redis_server.url) as client:
        await pull(one)
        await announced(one)
        await client.flushall()
        async with cluster.facade("two", kubo_node) as two:
            assert await pull(two) == (200, DATA)
            await announced(two)
        assert (await client.get(KEY)).decode() == cid_of(DATA)


async def test_a_dead_kubo_fails_no_pull(cluster, kubo_node):
    async with cluster.facade("one", kubo_node) as one:
        await pull(one)
        await announced(one)
    kubo_node.process.kill()
    assert (await served_by_the_upstream(cluster, kubo_node))[1] > 0


async def test_a_frozen_kubo_fails_no_pull_and_loses_no_mapping(cluster, kubo_node, redis_server):
    async with cluster.facade("one", kubo_node) as one:
        await pull(one)
        await announced(one)
    kubo_node.process.signal(signal.SIGSTOP)
    await served_by_the_upstream(cluster, kubo_node)
    async with Redis.from_url(redis_server.url) as client:
        assert (await client.get(KEY)).decode() == cid_of(DATA)


async def test_no_source_left_is_a_clear_error(cluster, kubo_node):
    cluster.cut_off()
    async with cluster.facade("cold", kubo_node) as cold:
        status, body = await pull(cold)
    assert status == 404
    assert b"BLOB_UNKNOWN" in body
