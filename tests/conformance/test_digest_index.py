"""Every digest index keeps the promises of `registry_facade.digest_index.base`."""

import asyncio
import signal
import sqlite3

import pytest
from redis.asyncio import Redis

from ocikit.cid import ANNOTATION, cid_of
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import SourceUnavailable
from ocikit.media_types import OCI_LAYER_GZIP
from registry_facade.digest_index.hinted import HintedIndex
from registry_facade.digest_index.opening import digest_index, is_digest_index
from registry_facade.digest_index.redis import RedisIndex
from registry_facade.digest_index.sqlite import SqliteIndex
from registry_facade.digest_index.testing.memory import MemoryIndex
from servicekit.secrets import Secret

DIGEST, OTHER = Digest.of(b"one"), Digest.of(b"other")
CID, NEWER = cid_of(b"one"), cid_of(b"newer")


@pytest.fixture(
    params=["memory", "sqlite", "hinted", pytest.param("redis", marks=pytest.mark.component("redis"))]
)
async def index(request, tmp_path):
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        async with Redis.from_url(server.url) as client:
            await client.flushall()
        made = RedisIndex(server.url)
    elif request.param == "hinted":
        made = HintedIndex(MemoryIndex(), SqliteIndex(tmp_path / "hints.db"))
    else:
        made = SqliteIndex(tmp_path / "new" / "cids.db") if request.param == "sqlite" else MemoryIndex()
    yield made
    await made.aclose()


class TestEveryIndex:
    async def test_knows_nothing_at_first(self, index):
        assert await index.get(DIGEST) is None

    async def test_gives_what_was_put_and_only_for_that_digest(self, index):
        await index.put(DIGEST, CID)
        assert (await index.get(DIGEST), await index.get(OTHER)) == (CID, None)

    async def test_the_last_put_wins(self, index):
        await index.put(DIGEST, CID)
        await index.put(DIGEST, NEWER)
        assert await index.get(DIGEST) == NEWER

    async def test_forgets(self, index):
        await index.put(DIGEST, CID)
        await index.forget(DIGEST, CID)
        assert await index.get(DIGEST) is None

    async def test_forgetting_a_wrong_cid_keeps_a_better_one_that_came_meanwhile(self, index):
        await index.put(DIGEST, NEWER)
        await index.forget(DIGEST, CID)
        assert await index.get(DIGEST) == NEWER

    async def test_forgetting_what_is_not_there_is_success(self, index):
        await index.forget(DIGEST, CID)

    async def test_something_that_is_no_cid_is_not_given(self, index):
        await index.put(DIGEST, "../../etc/passwd?arg=1")
        assert await index.get(DIGEST) is None

    async def test_serves_many_at_once(self, index):
        digests = [Digest.of(bytes([number])) for number in range(50)]
        await asyncio.gather(*(index.put(digest, cid_of(digest.encode())) for digest in digests))
        found = await asyncio.gather(*map(index.get, digests))
        assert found == [cid_of(digest.encode()) for digest in digests]


async def test_two_processes_may_share_the_file(tmp_path):
    one, two = SqliteIndex(tmp_path / "cids.db"), SqliteIndex(tmp_path / "cids.db")
    await one.put(DIGEST, CID)
    assert await two.get(DIGEST) == CID
    await asyncio.gather(one.aclose(), two.aclose())


async def test_a_file_that_is_no_database_is_unavailable(tmp_path):
    (tmp_path / "cids.db").write_bytes(b"not a database" * 100)
    index = SqliteIndex(tmp_path / "cids.db")
    with pytest.raises(SourceUnavailable, match="not a database"):
        await index.get(DIGEST)
    await index.aclose()


async def test_a_locked_file_is_unavailable_and_serves_again_afterwards(tmp_path):
    index = SqliteIndex(tmp_path / "cids.db")
    await index.put(DIGEST, CID)
    other = sqlite3.connect(tmp_path / "cids.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SourceUnavailable, match="locked"):
        await index.put(DIGEST, NEWER)
    other.execute("ROLLBACK")
    other.close()
    await index.put(DIGEST, NEWER)
    assert await index.get(DIGEST) == NEWER
    await index.aclose()


@pytest.mark.component("redis")
async def test_a_frozen_redis_is_unavailable_and_serves_again_afterwards(redis_server):
    index = RedisIndex(redis_server.url)
    await index.put(DIGEST, CID)
    redis_server.process.signal(signal.SIGSTOP)
    try:
        with pytest.raises(SourceUnavailable):
            await index.get(DIGEST)
    finally:
        redis_server.process.signal(signal.SIGCONT)
    assert await index.get(DIGEST) == CID
    await index.aclose()


async def test_an_absent_redis_is_unavailable_and_its_password_is_not_told():
    index = RedisIndex("redis://127.0.0.1:1/0", Secret("sesame"))
    with pytest.raises(SourceUnavailable) as caught:
        await index.get(DIGEST)
    assert "sesame" not in str(caught.value)
    await index.aclose()


@pytest.mark.component("redis")
async def test_a_value_of_another_type_is_unavailable_not_a_crash(redis_server):
    async with Redis.from_url(redis_server.url) as client:
        await client.flushall()
        await client.lpush(f"lapstrake:cid:{DIGEST}", "x")
    index = RedisIndex(redis_server.url)
    with pytest.raises(SourceUnavailable, match="WRONGTYPE"):
        await index.get(DIGEST)
    await index.aclose()


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("", SqliteIndex),
        ("sqlite:/x/cids.db", SqliteIndex),
        ("redis://h:1", RedisIndex),
        ("rediss://h", RedisIndex),
    ],
)
async def test_a_setting_names_an_index(target, kind, tmp_path):
    assert is_digest_index(target)
    index = digest_index(target, default=tmp_path / "cids.db", password=Secret("sesame"))
    assert isinstance(index, kind)
    await index.aclose()


@pytest.mark.parametrize("target", ["cids.db", "sqlite:", "postgres://h", "redis://:sesame@h"])
def test_a_setting_that_names_none_is_refused(target):
    assert not is_digest_index(target)


# ----- what images say of their layers -----


def layer(digest: Digest, cid: str) -> Descriptor:
    return Descriptor(OCI_LAYER_GZIP, digest, 3, {ANNOTATION: cid})


class Broken(MemoryIndex):
    async def get(self, digest: Digest) -> str | None:
        raise SourceUnavailable("digest index", f"is gone with {digest.short}")


async def test_an_annotation_is_a_hint_of_last_resort():
    index = HintedIndex(MemoryIndex(), MemoryIndex())
    await index.described([layer(DIGEST, CID), layer(OTHER, "$(reboot)")])
    assert (await index.get(DIGEST), await index.get(OTHER)) == (CID, None)
    await index.put(DIGEST, NEWER)
    assert await index.get(DIGEST) == NEWER
    await index.forget(DIGEST, NEWER)
    assert await index.get(DIGEST) == CID


async def test_an_annotation_serves_where_the_index_is_gone():
    index = HintedIndex(Broken(), MemoryIndex())
    await index.described([layer(DIGEST, CID)])
    assert await index.get(DIGEST) == CID
    with pytest.raises(SourceUnavailable):
        await index.get(OTHER)
