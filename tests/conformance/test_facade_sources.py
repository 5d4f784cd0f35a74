"""The facade's own sources of blobs keep the promises of every BlobSource."""

from collections.abc import AsyncIterator, Iterator

import pytest

from ocikit.blobs import BlobSource
from ocikit.digest import Digest
from ocikit.distribution.transport import Transport
from ocikit.testing.conformance import Add, BlobSourceSuite, Damage
from ocikit.testing.stores import MemoryBlobStore
from registry_facade.breaker import Breaker, Guarded
from registry_facade.digest_index.testing.memory import MemoryIndex
from registry_facade.ipfs import gateway, kubo
from registry_facade.ipfs.metrics import IpfsMetrics
from registry_facade.ipfs.source import IpfsSource
from servicekit.clock import SystemClock
from servicekit.metrics import Metrics
from tests.support.kubo import KuboNode, kubo_node, new_swarm_key


class TestGuarded(BlobSourceSuite):
    @pytest.fixture
    def memory(self) -> MemoryBlobStore:
        return MemoryBlobStore()

    @pytest.fixture
    def source(self, memory: MemoryBlobStore) -> BlobSource:
        return Guarded(memory, Breaker(SystemClock()))

    @pytest.fixture
    def add(self, memory: MemoryBlobStore) -> Add:
        async def put(data: bytes) -> Digest:
            return memory.add(data)

        return put

    @pytest.fixture
    def damage(self, memory: MemoryBlobStore) -> Damage:
        return memory.blobs.__setitem__


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboNode]:
    with kubo_node(tmp_path_factory.mktemp("kubo"), swarm_key=new_swarm_key()) as made:
        yield made


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with Transport(kubo.READ_DEADLINES) as made:
        yield made


class _OfIpfs(BlobSourceSuite):
    """What is damaged is what the index leads to: other bytes under a CID of their own."""

    @pytest.fixture
    def index(self) -> MemoryIndex:
        return MemoryIndex()

    @pytest.fixture
    def add(self, node: KuboNode, transport: Transport, index: MemoryIndex) -> Add:
        client = kubo.Kubo(transport, node.api_url)

        async def put(data: bytes) -> Digest:
            async def pieces() -> AsyncIterator[bytes]:
                yield data

            digest = Digest.of(data)
            await index.put(digest, await client.add(pieces(), pin_name="x"))
            return digest

        return put

    @pytest.fixture
    def damage(self, node: KuboNode, index: MemoryIndex) -> Damage:
        def other(digest: Digest, data: bytes) -> None:
            path = node.root / "damaged"
            path.write_bytes(data)
            index.cids[digest] = node.ipfs("add", "-Q", "--cid-version=1", str(path)).strip()

        return other


@pytest.mark.component("kubo")
class TestIpfsSource(_OfIpfs):
    @pytest.fixture
    def source(self, node: KuboNode, transport: Transport, index: MemoryIndex) -> BlobSource:
        return IpfsSource(kubo.Kubo(transport, node.api_url), index, IpfsMetrics.on(Metrics()))


@pytest.mark.component("kubo")
class TestIpfsSourceOfAGateway(_OfIpfs):
    @pytest.fixture
    def source(self, node: KuboNode, transport: Transport, index: MemoryIndex) -> BlobSource:
        return IpfsSource(
            gateway.Gateway(transport, node.gateway_url),
            index,
            IpfsMetrics.on(Metrics()),
            name=gateway.NAME,
            unmaps=False,
        )
