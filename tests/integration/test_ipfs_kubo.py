"""IpfsSource and Announcer against real Kubo nodes in a private swarm."""

import asyncio
import contextlib
import json
import random
import signal
import time

import pytest
from click.testing import CliRunner

from cli.facade import gc as cli_gc
from ocikit.blobs import read_blob
from ocikit.cid import CHUNK_BYTES, cid_of
from ocikit.digest import Digest
from ocikit.disk_store import DiskBlobStore
from ocikit.distribution.transport import Deadlines, Transport
from ocikit.errors import BlobNotFound, DigestMismatch, SizeMismatch, SourceUnavailable
from ocikit.ranges import ByteRange
from registry_facade.digest_index.sqlite import SqliteIndex
from registry_facade.digest_index.testing.memory import MemoryIndex
from registry_facade.ipfs.announce import Announcer
from registry_facade.ipfs.collector import Collector
from registry_facade.ipfs.content import Refused
from registry_facade.ipfs.exposure import Exposure
from registry_facade.ipfs.gateway import Gateway
from registry_facade.ipfs.kubo import Kubo
from registry_facade.ipfs.metrics import IpfsMetrics
from registry_facade.ipfs.node import Node
from registry_facade.ipfs.pins import PREFIX, Pin
from registry_facade.ipfs.source import IpfsSource
from servicekit.metrics import Metrics
from servicekit.tasks import BackgroundTasks

pytestmark = pytest.mark.component("kubo")
DATA = random.Random(7).randbytes(2 * CHUNK_BYTES + 12_345)
DIGEST = Digest.of(DATA)


@contextlib.asynccontextmanager
async def client(node):
    async with Transport(Deadlines(connect_s=1, first_byte_s=1, idle_s=2)) as transport:
        yield Kubo(transport, node.api_url)


async def plenty(_size_bytes):
    return True


@contextlib.asynccontextmanager
async def peer(node, index):
    """What one facade has of IPFS."""
    metrics = Metrics()
    collectors = IpfsMetrics.on(metrics)
    async with client(node) as kubo, BackgroundTasks(drain_s=30) as background:
        source = IpfsSource(kubo, index, collectors)
        yield source, Announcer(kubo, index, collectors, background, room=plenty), metrics


async def store_with(path, data):
    store = DiskBlobStore(path)
    async with store.ingest() as writer:
        await writer.write(data)
        await writer.commit()
    return store


async def read(source, digest, byte_range=None):
    async with source.open(digest, byte_range) as reader:
        return b"".join([data async for data in reader]), reader.content_range


def unmapped(metrics, reason):
    return metrics.registry.get_sample_value("facade_ipfs_unmapped_total", {"reason": reason}) or 0


async def test_an_announced_blob_is_read_back_by_digest(kubo_node, tmp_path):
    index = MemoryIndex()
    async with peer(kubo_node, index) as (source, announcer, _):
        announcer.announce(DIGEST, await store_with(tmp_path / "store", DATA))
    assert index.cids == {DIGEST: cid_of(DATA)}
    async with peer(kubo_node, index) as (source, _, _):
        assert await read(source, DIGEST) == (DATA, ByteRange().resolve(len(DATA)))
        assert (await source.stat(DIGEST)).size == len(DATA)
        assert await read_blob(source, await source.stat(DIGEST)) == DATA


@pytest.mark.parametrize(
    "asked",
    [ByteRange(0, 1), ByteRange(CHUNK_BYTES - 1, CHUNK_BYTES + 1), ByteRange(100), ByteRange(-5)],
    ids=["first byte", "across blocks", "from", "last bytes"],
)
async def test_ranges_are_served(kubo_node, tmp_path, asked):
    index = MemoryIndex()
    async with peer(kubo_node, index) as (source, announcer, _):
        await index.put(
            DIGEST, await announcer.add(DIGEST, await store_with(tmp_path / "store", DATA), len(DATA))
        )
        wanted = asked.resolve(len(DATA))
        assert await read(source, DIGEST, asked) == (DATA[wanted.start : wanted.stop], wanted)


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1], ids=["empty", "tiny", "chunk", "chunk + 1"]
)
async def test_a_node_gives_the_cid_we_compute(kubo_node, tmp_path, size):
    data = random.Random(size).randbytes(size)
    async with peer(kubo_node, MemoryIndex()) as (_, announcer, _):
        cid = await announcer.add(Digest.of(data), await store_with(tmp_path / "store", data), size)
    assert cid == cid_of(data)


async def test_the_pin_says_whose_it_is(kubo_node, tmp_path):
    async with peer(kubo_node, MemoryIndex()) as (_, announcer, _):
        cid = await announcer.add(DIGEST, await store_with(tmp_path / "store", DATA), len(DATA))
    told = kubo_node.ipfs("pin", "ls", "--names", "--type=recursive", cid).split()
    assert told[:2] == [cid, "recursive"]
    pin = Pin.parse(cid, told[2])
    assert pin is not None
    assert (pin.digest, pin.size) == (DIGEST, len(DATA))


async def test_a_second_node_gets_it_over_the_swarm(kubo_factory, tmp_path):
    index = MemoryIndex()
    with kubo_factory() as one, kubo_factory() as two:
        await asyncio.to_thread(two.connect, one)
        async with peer(one, index) as (_, announcer, _):
            announcer.announce(DIGEST, await store_with(tmp_path / "store", DATA))
        async with peer(two, index) as (source, _, _):
            assert (await read(source, DIGEST))[0] == DATA


@pytest.mark.parametrize("damage", ["flip", "cut", "extend"])
async def test_a_corrupt_blob_of_the_store_is_never_announced(kubo_node, tmp_path, damage):
    index = MemoryIndex()
    store = await store_with(tmp_path / "store", DATA)
    damaged = {"flip": bytes([DATA[0] ^ 1]) + DATA[1:], "cut": DATA[:-1], "extend": DATA + b"\0"}[damage]
    store.path(DIGEST).write_bytes(damaged)
    async with peer(kubo_node, index) as (_, announcer, metrics):
        announcer.announce(DIGEST, store)
    assert index.cids == {}
    assert metrics.registry.get_sample_value("facade_ipfs_announced_total", {"outcome": "failed"}) == 1
    assert PREFIX not in kubo_node.ipfs("pin", "ls", "--names", "--type=recursive")


async def test_a_cid_that_nobody_has_is_unmapped_and_shunned(kubo_node):
    index = MemoryIndex()
    index.cids[DIGEST] = cid_of(b"nobody has this")
    async with peer(kubo_node, index) as (source, _, metrics):
        with pytest.raises(BlobNotFound):
            await read(source, DIGEST)
        assert (index.cids, unmapped(metrics, "absent")) == ({}, 1)
        index.cids[DIGEST] = cid_of(DATA)
        with pytest.raises(BlobNotFound):
            await source.stat(DIGEST)
        assert unmapped(metrics, "absent") == 1


async def test_a_cid_that_is_a_directory_is_unmapped(kubo_node, tmp_path):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").write_bytes(b"x")
    index = MemoryIndex()
    index.cids[DIGEST] = kubo_node.ipfs("add", "-Qr", "--cid-version=1", str(tmp_path / "dir")).strip()
    async with peer(kubo_node, index) as (source, _, metrics):
        with pytest.raises(BlobNotFound):
            await read(source, DIGEST)
        assert (index.cids, unmapped(metrics, "refused")) == ({}, 1)


async def test_a_cid_of_other_bytes_is_found_out_by_the_reader_and_rejected(kubo_node, tmp_path):
    index = MemoryIndex()
    async with peer(kubo_node, index) as (source, announcer, metrics):
        lie = DATA[:-1] + b"!"
        store = await store_with(tmp_path / "store", lie)
        index.cids[DIGEST] = await announcer.add(Digest.of(lie), store, len(lie))
        with pytest.raises((DigestMismatch, SizeMismatch)):
            await read_blob(source, await source.stat(DIGEST))
        await source.reject(DIGEST)
        assert (index.cids, unmapped(metrics, "lied")) == ({}, 1)
        with pytest.raises(BlobNotFound):
            await source.stat(DIGEST)


async def test_a_frozen_node_is_unavailable_within_the_deadline_and_keeps_its_mappings(kubo_node, tmp_path):
    index = MemoryIndex()
    async with peer(kubo_node, index) as (source, announcer, metrics):
        await index.put(
            DIGEST, await announcer.add(DIGEST, await store_with(tmp_path / "store", DATA), len(DATA))
        )
        kubo_node.process.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):
                with pytest.raises(SourceUnavailable):
                    await read(source, DIGEST)
        finally:
            kubo_node.process.signal(signal.SIGCONT)
        assert (len(index.cids), unmapped(metrics, "absent")) == (1, 0)
        assert (await read(source, DIGEST))[0] == DATA


async def test_a_dead_node_is_unavailable_and_serves_again_when_it_is_back(kubo_node, tmp_path):
    index = MemoryIndex()
    async with peer(kubo_node, index) as (source, announcer, _):
        store = await store_with(tmp_path / "store", DATA)
        await index.put(DIGEST, await announcer.add(DIGEST, store, len(DATA)))
        kubo_node.process.kill()
        with pytest.raises(SourceUnavailable):
            await read(source, DIGEST)
        with pytest.raises(SourceUnavailable):
            await announcer.add(DIGEST, store, len(DATA))
        await asyncio.to_thread(kubo_node.process.start)
        assert (await read(source, DIGEST))[0] == DATA


async def test_unpinning_twice_is_success(kubo_node, tmp_path):
    async with peer(kubo_node, MemoryIndex()) as (_, announcer, _), client(kubo_node) as kubo:
        cid = await announcer.add(DIGEST, await store_with(tmp_path / "store", DATA), len(DATA))
        await kubo.unpin(cid)
        await kubo.unpin(cid)
    assert cid not in kubo_node.ipfs("pin", "ls", "--type=recursive")


async def test_a_refusal_says_why(kubo_node):
    async with client(kubo_node) as kubo:
        with pytest.raises(Refused, match=r"ipfs is unavailable: .*invalid"):
            await kubo.size("not-a-cid")


# ----- the budget -----


async def nothing_used():
    return {}


def collector(node, index, *, budget_bytes, uses=nothing_used):
    return Collector(Node(node.api_url), index, uses, IpfsMetrics.on(Metrics()), budget_bytes=budget_bytes)


async def added(node, index, tmp_path, *ages_s):
    """The digests of layers of 1 MiB that were last pulled so many seconds ago."""
    digests = []
    async with peer(node, index) as (_, announcer, _):
        for number, age_s in enumerate(ages_s):
            data = random.Random(f"{tmp_path}{number}").randbytes(1 << 20)
            digest = Digest.of(data)
            cid = await announcer.add(digest, await store_with(tmp_path / f"s{number}", data), len(data))
            await index.put(digest, cid)
            await Node(node.api_url).rename(Pin(cid, digest, len(data), time.time() - age_s))
            digests.append(digest)
    return digests


async def test_what_was_pulled_longest_ago_is_unpinned_collected_and_unmapped(kubo_node, tmp_path):
    index, node = MemoryIndex(), Node(kubo_node.api_url)
    empty = (await node.repository()).occupied_bytes
    old, oldest, fresh = await added(kubo_node, index, tmp_path, 200, 300, 100)
    keeper = collector(kubo_node, index, budget_bytes=empty + (3 << 20))
    dry = await keeper.plan()
    assert [pin.digest for pin in dry.victims] == [oldest]
    assert len(await node.pins()) == 3
    done = await keeper.run()
    assert done.victims == dry.victims
    assert {pin.digest for pin in await node.pins()} == {old, fresh} == set(index.cids)
    assert (await node.repository()).occupied_bytes < empty + (2.2 * (1 << 20))
    assert not (await keeper.run()).is_needed


async def test_a_later_pull_from_this_facade_s_cache_counts(kubo_node, tmp_path):
    index, node = MemoryIndex(), Node(kubo_node.api_url)
    empty = (await node.repository()).occupied_bytes
    first, second = await added(kubo_node, index, tmp_path, 100_000, 50_000)

    async def uses():
        return {first: (time.time(), False)}

    keeper = collector(kubo_node, index, budget_bytes=empty + (2 << 20), uses=uses)
    assert [pin.digest for pin in (await keeper.plan()).victims] == [second]
    await keeper.touch()
    assert {pin.digest: pin.used_s > time.time() - 60 for pin in await node.pins()} == {
        first: True,
        second: False,
    }


async def test_room_is_made_before_a_layer_is_added(kubo_node, tmp_path):
    index, node = MemoryIndex(), Node(kubo_node.api_url)
    empty = (await node.repository()).occupied_bytes
    oldest, _, fresh = await added(kubo_node, index, tmp_path, 300, 200, 100)
    keeper = collector(kubo_node, index, budget_bytes=empty + (7 << 19))
    assert await keeper.make_room(1 << 20)
    assert oldest not in index.cids
    assert not await keeper.make_room(1 << 30)
    assert [pin.digest for pin in await node.pins()] == [fresh]


async def test_pins_of_others_are_left_alone(kubo_node, tmp_path):
    (tmp_path / "foreign").write_bytes(random.Random(1).randbytes(2 << 20))
    foreign = kubo_node.ipfs("add", "-Q", "--cid-version=1", str(tmp_path / "foreign")).strip()
    await collector(kubo_node, MemoryIndex(), budget_bytes=1 << 20).run()
    assert foreign in kubo_node.ipfs("pin", "ls", "--type=recursive")


async def test_a_dead_node_cannot_be_collected_and_says_so(kubo_node):
    kubo_node.process.kill()
    with pytest.raises(SourceUnavailable, match="ipfs is unavailable"):
        await collector(kubo_node, MemoryIndex(), budget_bytes=1).run()


async def test_the_node_of_the_tests_is_private(kubo_node):
    exposure = Exposure(Node(kubo_node.api_url))
    await exposure.look()
    assert (exposure.is_known, exposure.is_public) == (True, False)


# ----- gateways -----


@contextlib.asynccontextmanager
async def gateway_source(url, index, metrics):
    async with Transport(Deadlines(connect_s=1, first_byte_s=1, idle_s=2)) as transport:
        yield IpfsSource(
            Gateway(transport, url), index, IpfsMetrics.on(metrics), name="gateway", unmaps=False
        )


@pytest.mark.parametrize(
    "asked", [None, ByteRange(0, 1), ByteRange(CHUNK_BYTES - 1, CHUNK_BYTES + 1), ByteRange(-5)]
)
async def test_a_gateway_serves_what_was_announced(kubo_node, tmp_path, asked):
    index, metrics = MemoryIndex(), Metrics()
    async with peer(kubo_node, index) as (_, announcer, _):
        announcer.announce(DIGEST, await store_with(tmp_path / "store", DATA))
    async with gateway_source(kubo_node.gateway_url, index, metrics) as source:
        wanted = (asked or ByteRange()).resolve(len(DATA))
        assert await read(source, DIGEST, asked) == (DATA[wanted.start : wanted.stop], wanted)
        assert (await source.stat(DIGEST)).size == len(DATA)


async def test_what_a_gateway_does_not_find_is_shunned_but_stays_mapped(kubo_node):
    index, metrics = MemoryIndex(), Metrics()
    index.cids[DIGEST] = cid_of(b"nobody has this")
    async with gateway_source(kubo_node.gateway_url, index, metrics) as source:
        for _ in range(2):
            with pytest.raises(BlobNotFound):
                await read(source, DIGEST)
    assert sum(unmapped(metrics, reason) for reason in ("absent", "refused")) == 1
    assert DIGEST in index.cids


# ----- the command -----


def facade_gc(node, directory, *arguments):
    base = ("--cache-dir", str(directory / "cache"), "--ipfs-api", node.api_url, "--json")
    result = CliRunner().invoke(cli_gc, [*base, *arguments], catch_exceptions=False)
    return json.loads(result.stdout.splitlines()[-1])  # behind what is logged


async def test_facade_gc_says_what_and_why_before_it_does(kubo_node, tmp_path):
    empty = (await Node(kubo_node.api_url).repository()).occupied_bytes
    index = SqliteIndex(tmp_path / "cache" / "cids.sqlite")
    oldest, _ = await added(kubo_node, index, tmp_path, 300, 200)
    size = ("--ipfs-max-bytes", str(empty + (2 << 20)))
    dry = await asyncio.to_thread(facade_gc, kubo_node, tmp_path, "--dry-run", *size)
    assert [item["digest"] for item in dry["layers"]] == [oldest]
    assert "number 1 of those pulled longest ago" in dry["layers"][0]["why"]
    assert await index.get(oldest) is not None
    done = await asyncio.to_thread(facade_gc, kubo_node, tmp_path, *size)
    assert done["layers"] == dry["layers"]
    assert await index.get(oldest) is None
    again = await asyncio.to_thread(facade_gc, kubo_node, tmp_path, "--dry-run", *size)
    assert (again["is_needed"], again["layers"], again["freed_bytes"]) == (False, [], 0)
    await index.aclose()
