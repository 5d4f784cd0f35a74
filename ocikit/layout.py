"""An OCI image layout directory as a repository (image-spec v1.1, image-layout.md).

Tags are ``org.opencontainers.image.ref.name`` annotations in ``index.json``. Writers exclude one another
by a lock file; readers need none, for every file is replaced atomically.
"""

import asyncio
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ocikit.blobs import BlobStore
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.disk_store import DiskBlobStore
from ocikit.errors import BlobNotFound, DigestMismatch, InvalidManifest, ManifestNotFound, StoreError
from ocikit.manifest import (
    Index,
    RawManifest,
    canonical_json,
    child_descriptors,
    detect_media_type,
    parse_manifest_or_index,
)
from ocikit.repository import Repository
from servicekit.atomic import atomic_write
from servicekit.locks import exclusive

REF_NAME = "org.opencontainers.image.ref.name"
_VERSION = "1.0.0"


class LayoutRepository:
    """One repository in ``directory``. Safe for concurrent use, also by several processes.

    ``create`` makes the directory a layout on first write; without it a missing layout is an error.
    """

    def __init__(self, directory: Path, *, create: bool = False) -> None:
        self.directory = directory
        self._create = create
        self._blobs = DiskBlobStore(directory, name="layout")
        self._index: tuple[tuple[int, int, int], Index] | None = None

    @property
    def title(self) -> str:
        return f"oci:{self.directory}"

    @property
    def blobs(self) -> BlobStore:
        return self._blobs

    async def resolve(self, reference: str | Digest) -> Descriptor:
        return (await self.manifest(reference)).descriptor

    async def manifest(self, reference: str | Digest) -> RawManifest:
        return await asyncio.to_thread(self.read_manifest, reference)

    def read_manifest(self, reference: str | Digest) -> RawManifest:
        """`manifest` for callers without an event loop; blocking."""
        index = self._read_index()
        if isinstance(reference, Digest):
            digest = reference
            media_type = next((item.media_type for item in index.manifests if item.digest == digest), "")
        else:
            named = [item for item in index.manifests if item.annotations.get(REF_NAME) == reference]
            if not named:
                raise ManifestNotFound(f"{self.title}:{reference}")
            digest, media_type = named[-1].digest, named[-1].media_type
        try:
            data = self._blobs.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise ManifestNotFound(f"{self.title}@{digest}") from error
        except OSError as error:
            raise StoreError(str(self._blobs.path(digest)), error.strerror or str(error)) from error
        actual = Digest.of(data, digest.algorithm)
        if actual != digest:
            raise DigestMismatch(digest, actual, self.title)
        return RawManifest(detect_media_type(data, media_type), data, digest)

    async def tags(self) -> Sequence[str]:
        index = await asyncio.to_thread(self._read_index)
        return sorted({name for item in index.manifests if (name := item.annotations.get(REF_NAME))})

    async def put_manifest(self, raw: RawManifest, tag: str | None = None) -> Descriptor:
        await self._require_children(raw)
        async with self._blobs.ingest(raw.digest, len(raw.data)) as writer:
            await writer.write(raw.data)
            await writer.commit()
        await asyncio.to_thread(self._point, raw.descriptor, tag)
        return raw.descriptor

    async def _require_children(self, raw: RawManifest) -> None:
        for child in child_descriptors(parse_manifest_or_index(raw)):
            try:
                await self._blobs.stat(child.digest)
            except BlobNotFound as error:
                raise InvalidManifest(
                    f"needs {child.digest}, which {self.title} lacks", "manifest"
                ) from error

    async def delete_tag(self, tag: str) -> None:
        """Forgets the name; blobs stay. Absent is success."""
        await asyncio.to_thread(self._update, lambda index: _without(index, tag))

    async def mount(self, digest: Digest, size: int, source: Repository) -> bool:
        """Hard-links the blob of another layout on the same file system."""
        if not isinstance(source, LayoutRepository):
            return False
        return await asyncio.to_thread(self._link, digest, size, source)

    def _link(self, digest: Digest, size: int, source: "LayoutRepository") -> bool:
        origin, target = source._blobs.path(digest), self._blobs.path(digest)  # noqa: SLF001 (same class)
        try:
            if origin.stat().st_size != size:
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(origin, target)
        except FileExistsError:
            return True
        except OSError:
            return False
        return True

    def _point(self, descriptor: Descriptor, tag: str | None) -> None:
        entry = descriptor if tag is None else descriptor.with_annotations({REF_NAME: tag})

        def update(index: Index) -> Index:
            kept = index if tag is None else _without(index, tag)
            if tag is None and any(item.digest == descriptor.digest for item in kept.manifests):
                return kept
            return dataclasses.replace(kept, manifests=(*kept.manifests, entry))

        self._update(update)

    def _update(self, change: Callable[[Index], Index]) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with exclusive(self.directory / ".lock"):
                marker = self.directory / "oci-layout"
                if not marker.exists():
                    atomic_write(marker, canonical_json({"imageLayoutVersion": _VERSION}))
                current = self._read_index(missing_ok=True)
                atomic_write(self.directory / "index.json", change(current).dump())
        except OSError as error:
            raise StoreError(str(self.directory), error.strerror or str(error)) from error

    def _read_index(self, *, missing_ok: bool = False) -> Index:
        path = self.directory / "index.json"
        try:
            status = path.stat()
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._index is not None and self._index[0] == signature:  # a new index is always a new file
                return self._index[1]
            data = path.read_bytes()
        except FileNotFoundError as error:
            if missing_ok or (self._create and not path.exists()):
                return Index(())
            raise StoreError(str(self.directory), "is not an OCI image layout (no index.json)") from error
        except OSError as error:
            raise StoreError(str(path), error.strerror or str(error)) from error
        index = Index.parse(data, subject=str(path))
        self._index = (signature, index)
        return index


def _without(index: Index, tag: str) -> Index:
    kept = tuple(item for item in index.manifests if item.annotations.get(REF_NAME) != tag)
    return dataclasses.replace(index, manifests=kept)


def _conforms(repository: LayoutRepository) -> Repository:
    return repository
