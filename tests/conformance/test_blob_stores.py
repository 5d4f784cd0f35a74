from pathlib import Path

import pytest

from ocikit.blobs import BlobSource
from ocikit.digest import Digest
from ocikit.disk_store import DiskBlobStore
from ocikit.layout import LayoutRepository
from ocikit.testing.conformance import Add, BlobSourceSuite, BlobStoreSuite, Damage
from ocikit.testing.faults import FaultySource
from ocikit.testing.registry import RunningRegistry
from ocikit.testing.stores import MemoryBlobStore
from tests.conformance.conftest import OpenRepository
from tests.support.docker_registry import DockerRegistry


class TestMemoryBlobStore(BlobStoreSuite):
    @pytest.fixture
    def source(self) -> MemoryBlobStore:
        return MemoryBlobStore()

    @pytest.fixture
    def damage(self, source: MemoryBlobStore) -> Damage:
        return source.blobs.__setitem__


class TestFaultySourceWithAnEmptyScript(BlobSourceSuite):
    @pytest.fixture
    def memory(self) -> MemoryBlobStore:
        return MemoryBlobStore()

    @pytest.fixture
    def source(self, memory: MemoryBlobStore) -> BlobSource:
        return FaultySource(memory, [])

    @pytest.fixture
    def add(self, memory: MemoryBlobStore) -> Add:
        async def put(data: bytes) -> Digest:
            return memory.add(data)

        return put


class TestDiskBlobStore(BlobStoreSuite):
    @pytest.fixture
    def source(self, tmp_path: Path) -> DiskBlobStore:
        return DiskBlobStore(tmp_path / "store")

    @pytest.fixture
    def damage(self, source: DiskBlobStore) -> Damage:
        return lambda digest, data: source.path(digest).write_bytes(data)

    async def test_no_ingest_stays_behind(self, source: DiskBlobStore, add: Add) -> None:
        await add(b"content")
        async with source.ingest() as writer:
            await writer.write(b"not committed")
        assert list((source.root / "ingest").iterdir()) == []

    async def test_sweeping_removes_what_a_killed_process_left(self, source: DiskBlobStore, add: Add) -> None:
        await add(b"content")
        (source.root / "ingest" / "left").write_bytes(b"half")
        assert source.sweep_ingests() == 1
        assert source.sweep_ingests() == 0

    async def test_two_stores_on_one_directory_see_each_other(self, source: DiskBlobStore, add: Add) -> None:
        digest = await add(b"content")
        assert (await DiskBlobStore(source.root).stat(digest)).size == 7


class TestBlobsOfALayout(BlobStoreSuite):
    @pytest.fixture
    def source(self, tmp_path: Path) -> BlobSource:
        return LayoutRepository(tmp_path / "layout", create=True).blobs


class TestBlobsOfTheMemoryRegistry(BlobStoreSuite):
    is_managed = False

    @pytest.fixture
    def source(self, memory_registry: RunningRegistry, open_repository: OpenRepository) -> BlobSource:
        return open_repository(memory_registry.address, "team/image").blobs

    @pytest.fixture
    def damage(self, memory_registry: RunningRegistry) -> Damage:
        return memory_registry.repository("team/image").blobs.__setitem__


@pytest.mark.component("docker-registry")
class TestBlobsOfDockerRegistry(BlobStoreSuite):
    is_managed = False

    @pytest.fixture
    def source(self, docker_registry: DockerRegistry, open_repository: OpenRepository) -> BlobSource:
        return open_repository(docker_registry.address, "team/image").blobs

    @pytest.fixture
    def damage(self, docker_registry: DockerRegistry) -> Damage:
        return lambda digest, data: docker_registry.blob_path(digest).write_bytes(data)
