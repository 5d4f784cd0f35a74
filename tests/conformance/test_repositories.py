from pathlib import Path

import pytest

from ocikit.digest import Digest
from ocikit.layout import LayoutRepository
from ocikit.manifest import RawManifest
from ocikit.repository import Repository
from ocikit.testing.conformance import Damage, RepositorySuite
from ocikit.testing.registry import RunningRegistry
from tests.conformance.conftest import OpenRepository
from tests.support.docker_registry import DockerRegistry


class TestLayoutRepository(RepositorySuite):
    @pytest.fixture
    def repository(self, tmp_path: Path) -> LayoutRepository:
        return LayoutRepository(tmp_path / "one", create=True)

    @pytest.fixture
    def sibling(self, tmp_path: Path) -> LayoutRepository:
        return LayoutRepository(tmp_path / "two", create=True)

    @pytest.fixture
    def damage(self, repository: LayoutRepository) -> Damage:
        blobs = repository.directory / "blobs"
        return lambda digest, data: (blobs / digest.algorithm / digest.encoded).write_bytes(data)


class TestMemoryRegistry(RepositorySuite):
    @pytest.fixture
    def repository(self, memory_registry: RunningRegistry, open_repository: OpenRepository) -> Repository:
        return open_repository(memory_registry.address, "team/one")

    @pytest.fixture
    def sibling(self, memory_registry: RunningRegistry, open_repository: OpenRepository) -> Repository:
        return open_repository(memory_registry.address, "team/two")

    @pytest.fixture
    def damage(self, memory_registry: RunningRegistry) -> Damage:
        manifests = memory_registry.repository("team/one").manifests

        def change(digest: Digest, data: bytes) -> None:
            manifests[digest] = RawManifest(manifests[digest].media_type, data, digest)

        return change


@pytest.mark.component("docker-registry")
class TestDockerRegistry(RepositorySuite):
    @pytest.fixture
    def repository(self, docker_registry: DockerRegistry, open_repository: OpenRepository) -> Repository:
        return open_repository(docker_registry.address, "team/one")

    @pytest.fixture
    def sibling(self, docker_registry: DockerRegistry, open_repository: OpenRepository) -> Repository:
        return open_repository(docker_registry.address, "team/two")

    @pytest.fixture
    def damage(self, docker_registry: DockerRegistry) -> Damage:
        return lambda digest, data: docker_registry.blob_path(digest).write_bytes(data)
