"""What every BlobSource, BlobStore and Repository must do, as classes for pytest.

An implementation enters by a subclass named ``Test...`` that overrides the fixtures which raise
NotImplementedError here. The rows called corruption flip, cut and extend a byte.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

import pytest

from ocikit.blobs import BlobSource, BlobStore, copy_blob, read_blob
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.errors import (
    BlobNotFound,
    DigestMismatch,
    IntegrityError,
    InvalidRange,
    ManifestNotFound,
    OciError,
    SizeMismatch,
)
from ocikit.ranges import ByteRange
from ocikit.repository import Repository, load_image
from ocikit.testing.images import (
    ImageBlobs,
    image_of,
    push_image,
    push_index,
    random_image,
    random_index,
    random_layer,
)
from ocikit.testing.stores import MemoryBlobStore

Add = Callable[[bytes], Awaitable[Digest]]
Damage = Callable[[Digest, bytes], object]

CORRUPTIONS: Mapping[str, Callable[[bytes], bytes]] = {
    "flip a byte": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "cut a byte": lambda data: data[:-1],
    "extend by a byte": lambda data: data + b"\n",
}
corrupted = pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=list(CORRUPTIONS))

_SMALL = b"the quick brown fox"
_LARGE = random.Random(7).randbytes((3 << 20) + 7)
_ABSENT = Digest.of(b"nobody ever stored this")


async def read_all(source: BlobSource, digest: Digest, byte_range: ByteRange | None = None) -> bytes:
    """Everything a reader gives, unverified."""
    async with source.open(digest, byte_range) as reader:
        return b"".join([piece async for piece in reader])


class BlobSourceSuite:
    """Override ``source`` and ``add``, which fills it; ``damage`` where content can be changed secretly."""

    @pytest.fixture
    def source(self) -> BlobSource:
        raise NotImplementedError

    @pytest.fixture
    def add(self) -> Add:
        raise NotImplementedError

    @pytest.fixture
    def damage(self) -> Damage:
        pytest.skip("this source's content cannot be changed behind its back")

    def test_has_a_name_fit_for_a_metrics_label(self, source: BlobSource) -> None:
        assert source.name
        assert source.name.isidentifier()

    @pytest.mark.parametrize("data", [b"x", _SMALL, _LARGE], ids=["one byte", "small", "several pieces"])
    async def test_gives_back_every_byte(self, source: BlobSource, add: Add, data: bytes) -> None:
        digest = await add(data)
        async with source.open(digest) as reader:
            assert reader.content_range.is_whole
            assert reader.content_range.size == len(data)
            assert b"".join([piece async for piece in reader]) == data

    async def test_an_empty_blob_has_no_bytes(self, source: BlobSource, add: Add) -> None:
        digest = await add(b"")
        assert await read_all(source, digest) == b""
        assert (await source.stat(digest)).size == 0

    async def test_stat_tells_digest_and_size(self, source: BlobSource, add: Add) -> None:
        digest = await add(_SMALL)
        found = await source.stat(digest)
        assert (found.digest, found.size) == (digest, len(_SMALL))

    async def test_stat_of_an_absent_blob_raises_not_found(self, source: BlobSource, add: Add) -> None:
        await add(_SMALL)
        with pytest.raises(BlobNotFound, match=_ABSENT):
            await source.stat(_ABSENT)

    async def test_opening_an_absent_blob_raises_not_found(self, source: BlobSource, add: Add) -> None:
        await add(_SMALL)
        with pytest.raises(BlobNotFound, match=_ABSENT):
            await read_all(source, _ABSENT)

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            pytest.param(ByteRange(0, 1), _SMALL[:1], id="first byte"),
            pytest.param(ByteRange(4, 9), _SMALL[4:9], id="middle"),
            pytest.param(ByteRange(4), _SMALL[4:], id="open end"),
            pytest.param(ByteRange(-3), _SMALL[-3:], id="last bytes"),
            pytest.param(ByteRange(-10_000), _SMALL, id="more last bytes than there are"),
            pytest.param(ByteRange(10, 10_000), _SMALL[10:], id="beyond the end"),
            pytest.param(ByteRange(len(_SMALL) - 1), _SMALL[-1:], id="only the last byte"),
        ],
    )
    async def test_gives_the_range_asked(
        self, source: BlobSource, add: Add, asked: ByteRange, expected: bytes
    ) -> None:
        digest = await add(_SMALL)
        async with source.open(digest, asked) as reader:
            assert reader.content_range == asked.resolve(len(_SMALL))
            assert b"".join([piece async for piece in reader]) == expected

    async def test_gives_a_range_across_pieces(self, source: BlobSource, add: Add) -> None:
        digest = await add(_LARGE)
        asked = ByteRange((1 << 20) - 3, (2 << 20) + 3)
        assert await read_all(source, digest, asked) == _LARGE[asked.start : asked.stop]

    async def test_refuses_a_range_that_no_byte_satisfies(self, source: BlobSource, add: Add) -> None:
        digest = await add(_SMALL)
        with pytest.raises(InvalidRange):
            await read_all(source, digest, ByteRange(len(_SMALL)))

    async def test_a_reader_may_leave_early(self, source: BlobSource, add: Add) -> None:
        digest = await add(_LARGE)
        async with source.open(digest) as reader:
            async for piece in reader:
                assert _LARGE.startswith(piece)
                break
        assert await read_all(source, digest) == _LARGE

    async def test_readers_do_not_disturb_one_another(self, source: BlobSource, add: Add) -> None:
        digest = await add(_LARGE)
        starts = [0, 1, 1 << 20, len(_LARGE) - 1]
        parts = await asyncio.gather(*(read_all(source, digest, ByteRange(start)) for start in starts))
        assert parts == [_LARGE[start:] for start in starts]

    @corrupted
    async def test_corruption_is_seen_by_a_verified_read(
        self, source: BlobSource, add: Add, damage: Damage, corrupt: Callable[[bytes], bytes]
    ) -> None:
        digest = await add(_SMALL)
        damage(digest, corrupt(_SMALL))
        with pytest.raises(IntegrityError, match=digest):
            await read_blob(source, Descriptor("application/octet-stream", digest, len(_SMALL)))

    @corrupted
    async def test_corruption_is_not_copied(
        self, source: BlobSource, add: Add, damage: Damage, corrupt: Callable[[bytes], bytes]
    ) -> None:
        digest, target = await add(_SMALL), MemoryBlobStore()
        damage(digest, corrupt(_SMALL))
        with pytest.raises(IntegrityError):
            await copy_blob(source, target, Descriptor("application/octet-stream", digest, len(_SMALL)))
        assert target.blobs == {}


class BlobStoreSuite(BlobSourceSuite):
    """Override ``source`` with the store; ``is_managed`` False where blobs cannot be listed or deleted."""

    is_managed = True

    @pytest.fixture
    def store(self, source: BlobSource) -> BlobStore:
        return source  # type: ignore[return-value]  # the subclass's fixture is a store

    @pytest.fixture
    def add(self, store: BlobStore) -> Add:
        async def ingest(data: bytes) -> Digest:
            async with store.ingest(Digest.of(data), len(data)) as writer:
                await writer.write(data)
                return (await writer.commit()).digest

        return ingest

    async def _ingest(self, store: BlobStore, data: bytes, digest: Digest, size: int | None = None) -> None:
        async with store.ingest(digest, size) as writer:
            await writer.write(data)
            await writer.commit()

    async def _is_absent(self, store: BlobStore, digest: Digest) -> bool:
        try:
            await store.stat(digest)
        except BlobNotFound:
            return True
        return False

    async def test_nothing_shows_before_the_commit(self, store: BlobStore) -> None:
        digest = Digest.of(_SMALL)
        async with store.ingest(digest, len(_SMALL)) as writer:
            await writer.write(_SMALL)
            assert await self._is_absent(store, digest)
            await writer.commit()
            assert not await self._is_absent(store, digest)

    async def test_what_is_written_in_pieces_is_one_blob(self, store: BlobStore) -> None:
        async with store.ingest() as writer:
            for at in range(0, len(_LARGE), 1_000_003):
                assert writer.offset == at
                await writer.write(_LARGE[at : at + 1_000_003])
            found = await writer.commit()
        assert (found.digest, found.size) == (Digest.of(_LARGE), len(_LARGE))
        assert await read_all(store, found.digest) == _LARGE

    async def test_sha512_names_are_checked_as_such(self, store: BlobStore) -> None:
        digest = Digest.of(_SMALL, "sha512")
        async with store.ingest(digest) as writer:
            await writer.write(_SMALL)
            await writer.commit()
        assert await read_all(store, digest) == _SMALL

    async def test_leaving_without_a_commit_leaves_nothing(self, store: BlobStore) -> None:
        async with store.ingest(Digest.of(_SMALL), len(_SMALL)) as writer:
            await writer.write(_SMALL)
        assert await self._is_absent(store, Digest.of(_SMALL))

    async def test_an_error_leaves_nothing(self, store: BlobStore) -> None:
        async def fail() -> None:
            async with store.ingest(Digest.of(_SMALL), len(_SMALL)) as writer:
                await writer.write(_SMALL)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await fail()
        assert await self._is_absent(store, Digest.of(_SMALL))

    async def test_a_cancelled_ingest_leaves_nothing(self, store: BlobStore) -> None:
        written = asyncio.Event()

        async def hang() -> None:
            async with store.ingest(Digest.of(_SMALL)) as writer:
                await writer.write(_SMALL)
                written.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(hang())
        await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await self._is_absent(store, Digest.of(_SMALL))

    @corrupted
    async def test_corruption_is_refused_by_digest(
        self, store: BlobStore, corrupt: Callable[[bytes], bytes]
    ) -> None:
        digest = Digest.of(_SMALL)
        with pytest.raises(DigestMismatch, match=digest):
            await self._ingest(store, corrupt(_SMALL), digest)
        assert await self._is_absent(store, digest)
        assert await self._is_absent(store, Digest.of(corrupt(_SMALL)))

    @pytest.mark.parametrize("wrong", [-1, 1], ids=["too long", "too short"])
    async def test_a_wrong_size_is_refused(self, store: BlobStore, wrong: int) -> None:
        digest = Digest.of(_SMALL)
        with pytest.raises(SizeMismatch, match=digest):
            await self._ingest(store, _SMALL, digest, len(_SMALL) + wrong)
        assert await self._is_absent(store, digest)

    async def test_committing_what_is_there_is_success(self, store: BlobStore, add: Add) -> None:
        assert await add(_SMALL) == await add(_SMALL)
        assert await read_all(store, Digest.of(_SMALL)) == _SMALL

    async def test_the_same_blob_may_be_ingested_by_many_at_once(self, store: BlobStore, add: Add) -> None:
        await asyncio.gather(*(add(_LARGE) for _ in range(4)))
        assert await read_all(store, Digest.of(_LARGE)) == _LARGE

    async def test_copying_what_is_there_moves_nothing(self, store: BlobStore) -> None:
        source = MemoryBlobStore()
        descriptor = await source.stat(source.add(_SMALL))
        assert await copy_blob(source, store, descriptor)
        source.blobs.clear()
        assert not await copy_blob(source, store, descriptor)

    async def test_a_deleted_blob_is_absent(self, store: BlobStore, add: Add) -> None:
        self._need_management()
        digest = await add(_SMALL)
        await store.delete(digest)
        assert await self._is_absent(store, digest)

    async def test_deleting_the_absent_is_success(self, store: BlobStore) -> None:
        self._need_management()
        await store.delete(_ABSENT)

    async def test_an_open_reader_outlives_a_delete(self, store: BlobStore, add: Add) -> None:
        self._need_management()
        digest = await add(_LARGE)
        async with store.open(digest) as reader:
            await store.delete(digest)
            assert b"".join([piece async for piece in reader]) == _LARGE

    async def test_walk_tells_of_every_blob_and_of_no_ingest(self, store: BlobStore, add: Add) -> None:
        self._need_management()
        expected = {await add(data): len(data) for data in (b"a", b"bb", b"ccc")}
        async with store.ingest() as writer:
            await writer.write(b"unfinished")
            assert {info.digest: info.size async for info in store.walk()} == expected

    def _need_management(self) -> None:
        if not self.is_managed:
            pytest.skip("blobs of this store are not listed or deleted through it")


class RepositorySuite:
    """Override ``repository`` (empty) and ``sibling`` (another one in the same place).

    ``damage`` changes the stored bytes of a manifest where that can be done.
    """

    @pytest.fixture
    def repository(self) -> Repository:
        raise NotImplementedError

    @pytest.fixture
    def sibling(self) -> Repository:
        raise NotImplementedError

    @pytest.fixture
    def damage(self) -> Damage:
        pytest.skip("manifests of this repository cannot be changed behind its back")

    @pytest.fixture
    def image(self) -> ImageBlobs:
        return random_image(1)

    @pytest.mark.parametrize("compression", ["", "gzip", "zstd"], ids=["plain", "gzip", "zstd"])
    async def test_an_image_comes_back_as_it_was_put(self, repository: Repository, compression: str) -> None:
        image = random_image(3, compression=compression)
        assert await push_image(repository, image, "v1") == image.raw.descriptor
        found = await load_image(repository, "v1")
        assert found.raw == image.raw
        assert found.config == image.config
        for digest, data in image.blobs.items():
            assert await read_all(repository.blobs, digest) == data

    async def test_resolves_tag_and_digest_to_the_same(
        self, repository: Repository, image: ImageBlobs
    ) -> None:
        await push_image(repository, image, "v1")
        assert await repository.resolve("v1") == image.raw.descriptor
        assert await repository.resolve(image.raw.digest) == image.raw.descriptor

    async def test_an_image_without_a_tag_is_found_by_digest_only(
        self, repository: Repository, image: ImageBlobs
    ) -> None:
        await push_image(repository, random_image(2), "other")
        await push_image(repository, image)
        assert await repository.manifest(image.raw.digest) == image.raw
        assert list(await repository.tags()) == ["other"]

    async def test_tags_are_in_byte_order(self, repository: Repository, image: ImageBlobs) -> None:
        for tag in ("b", "a", "B", "a.1"):
            await push_image(repository, image, tag)
        assert list(await repository.tags()) == ["B", "a", "a.1", "b"]

    async def test_a_tag_moves(self, repository: Repository, image: ImageBlobs) -> None:
        await push_image(repository, image, "latest")
        newer = random_image(2)
        await push_image(repository, newer, "latest")
        assert await repository.manifest("latest") == newer.raw
        assert await repository.manifest(image.raw.digest) == image.raw
        assert list(await repository.tags()) == ["latest"]

    async def test_many_writers_lose_no_tag(self, repository: Repository, image: ImageBlobs) -> None:
        await push_image(repository, image)
        names = [f"t{at}" for at in range(8)]
        await asyncio.gather(*(repository.put_manifest(image.raw, name) for name in names))
        assert list(await repository.tags()) == names

    @pytest.mark.parametrize("reference", ["absent", _ABSENT], ids=["tag", "digest"])
    async def test_an_absent_image_is_not_found(
        self, repository: Repository, image: ImageBlobs, reference: str | Digest
    ) -> None:
        await push_image(repository, image, "v1")
        with pytest.raises(ManifestNotFound, match=reference):
            await repository.resolve(reference)
        with pytest.raises(ManifestNotFound, match=reference):
            await repository.manifest(reference)

    async def test_a_manifest_without_its_blobs_is_refused(
        self, repository: Repository, image: ImageBlobs
    ) -> None:
        with pytest.raises(OciError):
            await repository.put_manifest(image.raw, "v1")
        with pytest.raises(ManifestNotFound):
            await repository.manifest("v1")

    async def test_an_index_leads_to_each_platform(self, repository: Repository) -> None:
        platforms = [Platform("linux", "amd64"), Platform("linux", "arm64", "v8")]
        index = random_index(5, platforms)
        await push_index(repository, index, "multi")
        assert await repository.manifest("multi") == index.raw
        for platform, image in zip(platforms, index.images, strict=True):
            assert (await load_image(repository, "multi", platform)).raw == image.raw
        with pytest.raises(ManifestNotFound, match="linux/s390x"):
            await load_image(repository, "multi", Platform("linux", "s390x"))

    async def test_layers_may_be_shared_between_images(self, repository: Repository) -> None:
        shared = random_layer(9)
        one, two = image_of([shared, random_layer(10)]), image_of([shared, random_layer(11)])
        await push_image(repository, one, "one")
        await push_image(repository, two, "two")
        assert (await load_image(repository, "two")).manifest.layers[0] == shared.layer.descriptor

    async def test_a_blob_of_a_sibling_is_mounted(
        self, repository: Repository, sibling: Repository, image: ImageBlobs
    ) -> None:
        await push_image(sibling, image, "v1")
        layer = image.manifest.layers[0]
        assert await repository.mount(layer.digest, layer.size, sibling)
        assert await read_blob(repository.blobs, layer) == image.layers[0].data

    async def test_what_the_sibling_lacks_is_not_mounted(
        self, repository: Repository, sibling: Repository, image: ImageBlobs
    ) -> None:
        await push_image(sibling, image, "v1")
        assert not await repository.mount(_ABSENT, 1, sibling)

    @corrupted
    async def test_a_corrupt_manifest_is_never_given_out(
        self, repository: Repository, image: ImageBlobs, damage: Damage, corrupt: Callable[[bytes], bytes]
    ) -> None:
        await push_image(repository, image, "v1")
        damage(image.raw.digest, corrupt(image.raw.data))
        with pytest.raises(OciError):
            await repository.manifest(image.raw.digest)
