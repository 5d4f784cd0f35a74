"""One repository of a registry, as everything else uses it: blobs with resume, manifests, mounts."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence

from ocikit.blobs import BlobInfo, BlobReader, BlobStore, BlobWriter
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.distribution.client import BlobResponse, RegistryClient
from ocikit.errors import DigestMismatch, RegistryError, SizeMismatch, TransportError
from ocikit.manifest import RawManifest
from ocikit.ranges import ByteRange, ContentRange
from ocikit.repository import Repository
from servicekit.threads import in_thread

_MAX_STALLED_RESUMES = 3
_SPOOL_BYTES = 8 << 20
_READ_BYTES = 1 << 20


class RegistryRepository:
    """Safe for concurrent use; the client is its owner's."""

    def __init__(self, client: RegistryClient, repository: str) -> None:
        self.client = client
        self.repository = repository
        self._blobs = RegistryBlobs(client, repository)

    @property
    def title(self) -> str:
        return f"{self.client.host.name}/{self.repository}"

    @property
    def blobs(self) -> BlobStore:
        return self._blobs

    async def resolve(self, reference: str | Digest) -> Descriptor:
        return await self.client.resolve(self.repository, reference)

    async def manifest(self, reference: str | Digest) -> RawManifest:
        return await self.client.manifest(self.repository, reference)

    async def tags(self) -> Sequence[str]:
        return await self.client.tags(self.repository)

    async def put_manifest(self, raw: RawManifest, tag: str | None = None) -> Descriptor:
        await self.client.push_manifest(self.repository, raw, tag or raw.digest)
        return raw.descriptor

    async def mount(self, digest: Digest, size: int, source: Repository) -> bool:
        del size
        if not isinstance(source, RegistryRepository) or source.client.host != self.client.host:
            return False
        return await self.client.mount_blob(self.repository, digest, source.repository)


class RegistryBlobs:
    """The blobs of one repository. Reads resume where they broke off."""

    def __init__(self, client: RegistryClient, repository: str) -> None:
        self._client = client
        self._repository = repository

    @property
    def name(self) -> str:
        return "registry"

    async def stat(self, digest: Digest) -> Descriptor:
        return await self._client.stat_blob(self._repository, digest)

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        async with self._client.blob(self._repository, digest, byte_range) as response:
            content_range = response.content_range
            if byte_range is not None:
                content_range = byte_range.resolve(content_range.size)
            yield _ResumingReader(self._client, self._repository, digest, response, content_range)

    @contextlib.asynccontextmanager
    async def ingest(
        self, expected: Digest | None = None, size: int | None = None
    ) -> AsyncIterator[BlobWriter]:
        """Spools to a temporary file (in memory below 8 MiB): an upload may have to be sent twice."""
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
            yield _SpoolingWriter(self._client, self._repository, spool, expected, size)

    async def delete(self, digest: Digest) -> None:
        raise RegistryError(
            "DELETE", f"{self._client.host.name}/{self._repository}@{digest}", 405, "blobs stay"
        )

    def walk(self) -> AsyncIterator[BlobInfo]:
        raise RegistryError("GET", self._client.host.name, 405, "a registry lists no blobs")


class _ResumingReader:
    def __init__(
        self,
        client: RegistryClient,
        repository: str,
        digest: Digest,
        first: BlobResponse,
        content_range: ContentRange,
    ) -> None:
        self._client = client
        self._repository = repository
        self._digest = digest
        self._first = first
        self._content_range = content_range

    @property
    def content_range(self) -> ContentRange:
        return self._content_range

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The budget counts failures without a byte in between, so progress renews it."""
        at, failures = self._content_range.start, 0
        async with contextlib.AsyncExitStack() as stack:
            response = self._first
            while True:
                try:
                    async for data in _within(response, at, self._content_range.stop):
                        at, failures = at + len(data), 0
                        yield data
                    return
                except TransportError:
                    failures += 1
                    if failures > _MAX_STALLED_RESUMES:
                        raise
                rest = ByteRange(at, self._content_range.stop)
                response = await stack.enter_async_context(
                    self._client.blob(self._repository, self._digest, rest)
                )
                if response.content_range.size != self._content_range.size:
                    raise SizeMismatch(
                        self._digest,
                        self._content_range.size,
                        response.content_range.size,
                        self._client.host.name,
                    )


async def _within(response: BlobResponse, start: int, stop: int) -> AsyncIterator[bytes]:
    """Bytes ``start`` to ``stop`` out of a response that may begin earlier (Range was ignored)."""
    at = response.content_range.start
    async for data in response.pieces():
        piece = data[max(0, start - at) : max(0, stop - at)] if at < start or at + len(data) > stop else data
        at += len(data)
        if piece:
            yield piece
        if at >= stop:
            return


class _SpoolingWriter:
    def __init__(
        self,
        client: RegistryClient,
        repository: str,
        spool: "tempfile.SpooledTemporaryFile[bytes]",
        expected: Digest | None,
        size: int | None,
    ) -> None:
        self._client = client
        self._repository = repository
        self._spool = spool
        self._expected = expected
        self._size = size
        self._hasher = (expected or Digest.of(b"")).hasher()
        self._offset = 0

    @property
    def offset(self) -> int:
        return self._offset

    async def write(self, data: bytes) -> None:
        await in_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        self._spool.write(data)
        self._hasher.update(data)
        self._offset += len(data)

    async def commit(self) -> Descriptor:
        algorithm = self._expected.algorithm if self._expected is not None else "sha256"
        actual = Digest(f"{algorithm}:{self._hasher.hexdigest()}")
        if self._size is not None and self._offset != self._size:
            raise SizeMismatch(self._expected or actual, self._size, self._offset, self._client.host.name)
        if self._expected is not None and actual != self._expected:
            raise DigestMismatch(self._expected, actual, self._client.host.name)
        await self._client.push_blob(self._repository, actual, self._offset, self._stream)
        return Descriptor("application/octet-stream", actual, self._offset)

    async def _stream(self) -> AsyncIterator[bytes]:
        self._spool.seek(0)
        while data := await in_thread(self._spool.read, _READ_BYTES):
            yield data


def _conforms(repository: RegistryRepository) -> Repository:
    return repository
