"""Repositories on local storage: blobs as files, everything else in SQLite.

A blob is visible in a repository it was pushed or mounted to, and only there. Uploads are files that grow;
their state is their length, so a restart loses none.
"""

import asyncio
import contextlib
import functools
import json
import os
import sqlite3
import uuid
from collections.abc import AsyncIterable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.disk_store import DiskBlobStore
from ocikit.errors import BlobNotFound, DigestMismatch, InvalidManifest, ManifestNotFound
from ocikit.manifest import Index, Manifest, RawManifest, parse_manifest_or_index
from registry_facade.errors import CacheUnusable, UploadUnknown
from servicekit.atomic import durable_rename
from servicekit.sqlite import Database

T = TypeVar("T")
_HASH_BYTES = 1 << 20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    repository TEXT, digest TEXT, PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifests (
    repository TEXT, digest TEXT, media_type TEXT, subject TEXT, descriptor TEXT,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS manifests_by_subject ON manifests (repository, subject);
CREATE TABLE IF NOT EXISTS tags (
    repository TEXT, tag TEXT, digest TEXT, PRIMARY KEY (repository, tag)) WITHOUT ROWID;
"""


class LocalStore:
    """Safe for concurrent use, also by several processes. Close it with `aclose`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = DiskBlobStore(root)
        self._uploads = root / "uploads"
        self._database = Database(root / "local.sqlite", _SCHEMA)

    async def aclose(self) -> None:
        await self._database.aclose()

    async def _do(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._unusable():
            return await self._database.rows(statement, *values)

    async def _guarded(self, work: Callable[[], T]) -> T:
        with self._unusable():
            return await asyncio.to_thread(work)

    @contextlib.contextmanager
    def _unusable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CacheUnusable(str(self._root), getattr(error, "strerror", None) or str(error)) from error

    # ----- blobs -----

    async def open_blob(self, repository: str, digest: Digest, stack: contextlib.AsyncExitStack) -> int:
        """A descriptor, closed with ``stack``. Raises BlobNotFound."""
        if not await self._do("SELECT 1 FROM blobs WHERE repository = ? AND digest = ?", repository, digest):
            raise BlobNotFound(digest, repository)
        try:
            descriptor = await asyncio.to_thread(
                os.open, self._blobs.path(digest), os.O_RDONLY | os.O_CLOEXEC
            )
        except FileNotFoundError as error:
            raise BlobNotFound(digest, repository) from error
        stack.callback(os.close, descriptor)
        return descriptor

    async def mount(self, repository: str, digest: Digest, source: str) -> bool:
        """False when ``source`` has no such blob."""
        found = await self._do("SELECT 1 FROM blobs WHERE repository = ? AND digest = ?", source, digest)
        if found:
            await self._do("INSERT OR IGNORE INTO blobs VALUES (?, ?)", repository, digest)
        return bool(found)

    async def delete_blob(self, repository: str, digest: Digest) -> None:
        """The file goes with the last repository that has it. Raises BlobNotFound."""
        gone = await self._do(
            "DELETE FROM blobs WHERE repository = ? AND digest = ? RETURNING 1", repository, digest
        )
        if not gone:
            raise BlobNotFound(digest, repository)
        if not await self._do(
            "SELECT 1 FROM blobs WHERE digest = ?1 UNION SELECT 1 FROM manifests WHERE digest = ?1", digest
        ):
            await self._blobs.delete(digest)

    # ----- uploads -----

    async def begin_upload(self) -> str:
        identity = uuid.uuid4().hex
        await self._guarded(lambda: self._touch(self._upload(identity)))
        return identity

    def _touch(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)

    def _upload(self, identity: str) -> Path:
        return self._uploads / identity

    async def uploaded_bytes(self, identity: str) -> int:
        """Raises UploadUnknown."""
        try:
            return (await asyncio.to_thread(self._upload(identity).stat)).st_size
        except FileNotFoundError as error:
            raise UploadUnknown(identity) from error

    async def append(self, identity: str, data: AsyncIterable[bytes]) -> int:
        """Adds to an upload; its length afterwards. Raises UploadUnknown."""
        await self.uploaded_bytes(identity)
        with await self._guarded(lambda: self._upload(identity).open("ab", buffering=0)) as file:
            async for piece in data:
                await self._guarded(functools.partial(file.write, piece))
        return await self.uploaded_bytes(identity)

    async def finish_upload(self, repository: str, identity: str, digest: Digest) -> None:
        """Raises UploadUnknown, or DigestMismatch, which ends the upload."""
        await self.uploaded_bytes(identity)
        path = self._upload(identity)
        actual = await self._guarded(lambda: _hash(path, digest))
        if actual != digest:
            await self.cancel_upload(identity)
            raise DigestMismatch(digest, actual, "the upload")
        await self._guarded(lambda: _publish(path, self._blobs.path(digest)))
        await self._do("INSERT OR IGNORE INTO blobs VALUES (?, ?)", repository, digest)

    async def cancel_upload(self, identity: str) -> None:
        await self.uploaded_bytes(identity)
        await self._guarded(lambda: self._upload(identity).unlink(missing_ok=True))

    # ----- manifests -----

    async def put_manifest(self, repository: str, raw: RawManifest, tag: str | None) -> Manifest | Index:
        """Raises InvalidManifest, or BlobNotFound for a blob that is not there yet."""
        document = parse_manifest_or_index(raw)
        if isinstance(document, Manifest):
            await self._require_blobs(repository, document)
        async with self._blobs.ingest(raw.digest, len(raw.data)) as writer:
            await writer.write(raw.data)
            await writer.commit()
        subject = document.subject.digest if document.subject is not None else ""
        described = json.dumps(_referrer(raw, document).dump())
        row = (repository, raw.digest, raw.media_type, subject, described)
        await self._do("INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?)", *row)
        if tag is not None:
            await self._do("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", repository, tag, raw.digest)
        return document

    async def _require_blobs(self, repository: str, manifest: Manifest) -> None:
        for item in (manifest.config, *manifest.layers):
            elsewhere = bool(item.extra.get("urls")) or "nondistributable" in item.media_type
            if not elsewhere and not await self._do(
                "SELECT 1 FROM blobs WHERE repository = ? AND digest = ?", repository, item.digest
            ):
                raise BlobNotFound(item.digest, repository)

    async def manifest(self, repository: str, reference: str | Digest) -> RawManifest:
        """Raises ManifestNotFound."""
        digest = reference if isinstance(reference, Digest) else await self._tagged(repository, reference)
        rows = await self._do(
            "SELECT media_type FROM manifests WHERE repository = ? AND digest = ?", repository, digest
        )
        if not rows:
            raise ManifestNotFound(f"{repository}@{digest}")
        data = await self._guarded(self._blobs.path(digest).read_bytes)
        if Digest.of(data, digest.algorithm) != digest:
            raise InvalidManifest("its file is damaged", str(digest))
        return RawManifest(rows[0][0], data, digest)

    async def _tagged(self, repository: str, tag: str) -> Digest:
        rows = await self._do("SELECT digest FROM tags WHERE repository = ? AND tag = ?", repository, tag)
        if not rows:
            raise ManifestNotFound(f"{repository}:{tag}")
        return Digest(rows[0][0])

    async def delete_manifest(self, repository: str, reference: str | Digest) -> None:
        """A tag only goes itself; a digest takes its tags along. Raises ManifestNotFound."""
        if not isinstance(reference, Digest):
            statement = "DELETE FROM tags WHERE repository = ? AND tag = ? RETURNING 1"
        else:
            statement = "DELETE FROM manifests WHERE repository = ? AND digest = ? RETURNING 1"
        if not await self._do(statement, repository, reference):
            raise ManifestNotFound(f"{repository}:{reference}")
        if isinstance(reference, Digest):
            await self._do("DELETE FROM tags WHERE repository = ? AND digest = ?", repository, reference)

    async def tags(self, repository: str) -> Sequence[str]:
        """In byte order. Raises ManifestNotFound for a repository nothing was pushed to."""
        rows = await self._do("SELECT tag FROM tags WHERE repository = ? ORDER BY tag", repository)
        if not rows and not await self._do("SELECT 1 FROM blobs WHERE repository = ? LIMIT 1", repository):
            raise ManifestNotFound(repository)
        return [row[0] for row in rows]

    async def referrers(self, repository: str, digest: Digest) -> Index:
        rows = await self._do(
            "SELECT descriptor FROM manifests WHERE repository = ? AND subject = ? ORDER BY digest",
            repository,
            digest,
        )
        return Index(tuple(Descriptor.parse(json.loads(row[0])) for row in rows))


def _referrer(raw: RawManifest, document: Manifest | Index) -> Descriptor:
    """distribution-spec v1.1, "Listing Referrers": the config's type stands in for an artifact type."""
    artifact_type = document.artifact_type
    if not artifact_type and isinstance(document, Manifest):
        artifact_type = document.config.media_type
    return Descriptor(
        raw.media_type, raw.digest, len(raw.data), document.annotations, artifact_type=artifact_type
    )


def _hash(path: Path, digest: Digest) -> Digest:
    hasher = digest.hasher()
    with path.open("rb") as file:
        while data := file.read(_HASH_BYTES):
            hasher.update(data)
    return Digest(f"{digest.algorithm}:{hasher.hexdigest()}")


def _publish(path: Path, target: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    durable_rename(path, target)
