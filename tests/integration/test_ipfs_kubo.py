"""IpfsSource and Announcer against real Kubo nodes in a private swarm."""

import asyncio
import contextlib
import random
import signal

import pytest

from ocikit.blobs import read_blob
from ocikit.cid import CHUNK_BYTES, cid_of
from ocikit.digest import Digest
from ocikit.disk_store import DiskBlobStore
from ocikit.distribution.transport import Deadlines, Transport
from ocikit.errors import BlobNotFound, DigestMismatch, SizeMismatch, SourceUnavailable
from ocikit.ranges import ByteRange
from registry_facade.digest_index.testing.memory import MemoryIndex
from registry_facade.ipfs.announce import PIN_PREFIX, Announcer
from registry_facade.ipfs.kubo import Kubo, KuboRefused
from registry_facade.ipfs.metrics import IpfsMetrics
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


@contextlib.asynccontextmanager
async def peer(node, index):
    """What one facade has of IPFS."""
    metrics = Metrics()
    collectors = IpfsMetrics.on(metrics)
    async with client(node) as kubo, BackgroundTasks(drain_s=30) as background:
        source = IpfsSource(kubo, index, collectors)
        yield source, Announcer(kubo, index, collectors, background), metrics


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
        await index.put(DIGEST, await announcer.add(DIGEST, await store_with(tmp_path / "store", DATA)))
        wanted = asked.resolve(len(DATA))
        assert await read(source, DIGEST, asked) == (DATA[wanted.start : wanted.stop], wanted)


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1], ids=["empty", "tiny", "chunk", "chunk + 1"]
)
async def test_a_node_gives_the_cid_we_compute(kubo_node, tmp_path, size):
    data = random.Random(size).randbytes(size)
    async with peer(kubo_node, MemoryIndex()) as (_, announcer, _):
        cid = await announcer.add(Digest.of(data), await store_with(tmp_path / "store", data))
    assert cid == cid_of(data)


async def test_the_pin_says_whose_it_is(kubo_node, tmp_path):
    async with peer(kubo_node, MemoryIndex()) as (_, announcer, _):
        cid = await announcer.add(DIGEST, await store_with(tmp_path / "store", DATA))
    assert kubo_node.ipfs("pin", "ls", "--names", "--type=recursive", cid).split() == [
        cid,
        "recursive",
        PIN_PREFIX + DIGEST,
    ]


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
    assert PIN_PREFIX not in kubo_node.ipfs("pin", "ls", "--names", "--type=recursive")


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
        index.cids[DIGEST] = await announcer.add(Digest.of(lie), store)
        with pytest.raises((DigestMismatch, SizeMismatch)):
            await read_blob(source, await source.stat(DIGEST))
        await source.reject(DIGEST)
        assert (index.cids, unmapped(metrics, "lied")) == ({}, 1)
        with pytest.raises(BlobNotFound):
            await source.stat(DIGEST)


async def test_a_frozen_node_is_unavailable_within_the_deadline_and_keeps_its_mappings(kubo_node, tmp_path):
    index = MemoryIndex()
    async with peer(kubo_node, index) as (source, announcer, metrics):
        await index.put(DIGEST, await announcer.add(DIGEST, await store_with(tmp_path / "store", DATA)))
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
        await index.put(DIGEST, await announcer.add(DIGEST, store))
        kubo_node.process.kill()
        with pytest.raises(SourceUnavailable):
            await read(source, DIGEST)
        with pytest.raises(SourceUnavailable):
            await announcer.add(DIGEST, store)
        await asyncio.to_thread(kubo_node.process.start)
        assert (await read(source, DIGEST))[0] == DATA


async def test_unpinning_twice_is_success(kubo_node, tmp_path):
    async with peer(kubo_node, MemoryIndex()) as (_, announcer, _), client(kubo_node) as kubo:
        cid = await announcer.add(DIGEST, await store_with(tmp_path / "store", DATA))
        await kubo.unpin(cid)
        await kubo.unpin(cid)
    assert cid not in kubo_node.ipfs("pin", "ls", "--type=recursive")


async def test_a_refusal_says_why(kubo_node):
    async with client(kubo_node) as kubo:
        with pytest.raises(KuboRefused, match=r"ipfs is unavailable: .*invalid"):
            await kubo.size("not-a-cid")
