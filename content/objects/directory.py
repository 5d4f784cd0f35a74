"""An object store in a directory: no server, the same promises.

``objects/<key>`` holds the objects, ``uploads/<id>/`` what is on its way: ``data``, written at each part's
final offset, ``parts``, a line per part, and ``key``. Completion is an fsync and a rename. Part copy is
``copy_file_range``, which shares blocks where the file system can. Several processes may share a directory;
conditional puts take turns by a file lock.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from content.archive import crc32
from content.errors import (
    LocalDiskError,
    ObjectCorrupt,
    ObjectNotFound,
    PreconditionFailed,
    StoreRefused,
    StoreUnavailable,
    UploadGone,
)
from content.objects.base import (
    MultipartStore,
    ObjectInfo,
    ObjectReader,
    PartRef,
    Span,
    StoreProperties,
    Upload,
    UploadedPart,
)
from servicekit.atomic import atomic_write, durable_rename, fsync_dir
from servicekit.locks import exclusive
from servicekit.threads import in_thread

T = TypeVar("T")
_READ_BYTES = 4 << 20
_COPY_BYTES = 64 << 20
_PIECE_BYTES = 256 << 10


class DirectoryObjectStore:
    """A MultipartStore on ``root``, which is created when something is first written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "objects"
        self._uploads = root / "uploads"

    @property
    def name(self) -> str:
        return f"file://{self.root}"

    @property
    def properties(self) -> StoreProperties:
        return StoreProperties(conditional_put=True, part_copy=True, checks_crc32=True)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not all(parts) or not {".", ".."}.isdisjoint(parts) or "\0" in key:
            raise StoreRefused(self.name, f"key {key!r}", "it is not a path below the store")
        return self._objects.joinpath(*parts)

    async def _run(self, key: str, work: Callable[[], T]) -> T:
        return await in_thread(self._translated, key, work)

    def _translated(self, key: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except FileNotFoundError as error:
            raise ObjectNotFound(key, self.name) from error
        except OSError as error:
            raise LocalDiskError.from_os(f"{self.root}/{key}", error) from error

    async def stat(self, key: str) -> ObjectInfo:
        path = self._path(key)
        return await self._run(key, lambda: _info(key, path.stat()))

    @contextlib.asynccontextmanager
    async def open(
        self, key: str, span: Span | None = None, *, if_match: str | None = None
    ) -> AsyncIterator[ObjectReader]:
        path = self._path(key)
        descriptor = await self._run(key, lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        try:
            info = _info(key, os.fstat(descriptor))
            if if_match is not None and info.etag != if_match:
                raise PreconditionFailed(key)
            span = span or Span(0, info.size_bytes)
            if span.stop > info.size_bytes:
                raise ObjectCorrupt(key, f"it ends at byte {info.size_bytes}, before byte {span.stop}")
            yield _FileReader(self.name, descriptor, info, span)
        finally:
            os.close(descriptor)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for info in await self._run(prefix, lambda: list(self._scan(prefix))):
            yield info

    def _scan(self, prefix: str) -> Iterator[ObjectInfo]:
        top = self._objects.joinpath(*prefix.split("/")[:-1])
        found = [
            Path(directory, name)
            for directory, _, names in os.walk(top)
            for name in names
            if not name.startswith(".lapstrake-tmp-")
        ]
        for key, path in sorted((path.relative_to(self._objects).as_posix(), path) for path in found):
            if key.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):
                    yield _info(key, path.stat())

    async def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> ObjectInfo:
        path = self._path(key)
        return await self._run(key, lambda: self._put(key, path, data, if_match, if_absent))

    def _put(self, key: str, path: Path, data: bytes, if_match: str | None, if_absent: bool) -> ObjectInfo:  # noqa: FBT001 (private, by name above)
        self._create_parents(path)
        with exclusive(self.root / "lock"):
            if if_absent and path.exists():
                raise PreconditionFailed(key)
            if if_match is not None and (not path.exists() or _info(key, path.stat()).etag != if_match):
                raise PreconditionFailed(key)
            atomic_write(path, data)
            return _info(key, path.stat())

    def _create_parents(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalDiskError.from_os(str(self.root), error) from error

    async def delete(self, key: str) -> None:
        path = self._path(key)
        await self._run(key, lambda: self._delete(path))

    @staticmethod
    def _delete(path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            fsync_dir(path.parent)

    async def close(self) -> None:
        """Nothing is held open."""

    async def create_upload(self, key: str, *, copies: bool = False) -> Upload:
        del copies
        self._path(key)
        upload = Upload(key, secrets.token_hex(16))
        await self._run(key, lambda: self._create_upload(upload))
        return upload

    def _create_upload(self, upload: Upload) -> None:
        directory = self._uploads / upload.upload_id
        self._create_parents(directory)
        directory.mkdir()
        (directory / "data").touch()
        (directory / "parts").touch()
        atomic_write(directory / "key", upload.key.encode())

    def _directory(self, upload: Upload) -> Path:
        directory = self._uploads / upload.upload_id
        if not directory.is_dir():
            raise UploadGone(upload.key)
        return directory

    async def put_part(self, upload: Upload, ref: PartRef, data: bytes | bytearray) -> UploadedPart:
        return await self._run(upload.key, lambda: self._put_part(upload, ref, data))

    def _put_part(self, upload: Upload, ref: PartRef, data: bytes | bytearray) -> UploadedPart:
        directory = self._directory(upload)
        if len(data) != ref.size_bytes or crc32.of(data) != ref.crc32:
            raise StoreRefused(self.name, f"part {ref.number} of {upload.key}", "its checksum does not match")
        descriptor = os.open(directory / "data", os.O_WRONLY | os.O_CLOEXEC)
        try:
            view, at = memoryview(data), ref.offset
            while view:
                written = os.pwrite(descriptor, view, at)
                view, at = view[written:], at + written
        finally:
            os.close(descriptor)
        return self._note_part(directory, ref)

    @staticmethod
    def _note_part(directory: Path, ref: PartRef) -> UploadedPart:
        line = json.dumps([ref.number, ref.offset, ref.size_bytes, ref.crc32]).encode() + b"\n"
        descriptor = os.open(directory / "parts", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(descriptor, line)  # one small append: whole, or cut short by a crash and then ignored
        finally:
            os.close(descriptor)
        return UploadedPart(ref, f"{ref.crc32:08x}")

    async def copy_part(self, upload: Upload, ref: PartRef, source: ObjectInfo, start: int) -> UploadedPart:
        return await self._run(source.key, lambda: self._copy_part(upload, ref, source, start))

    def _copy_part(self, upload: Upload, ref: PartRef, source: ObjectInfo, start: int) -> UploadedPart:
        directory = self._directory(upload)
        reading = os.open(self._path(source.key), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _info(source.key, os.fstat(reading)).etag != source.etag:
                raise PreconditionFailed(source.key)
            writing = os.open(directory / "data", os.O_WRONLY | os.O_CLOEXEC)
            try:
                _copy_range(reading, writing, start, ref.offset, ref.size_bytes)
            finally:
                os.close(writing)
        finally:
            os.close(reading)
        return self._note_part(directory, ref)

    async def list_parts(self, upload: Upload) -> dict[int, UploadedPart]:
        return await self._run(upload.key, lambda: self._list_parts(upload))

    def _list_parts(self, upload: Upload) -> dict[int, UploadedPart]:
        """Those whose bytes are there: after a power cut a line may have outlived its data."""
        noted = self._noted_parts(upload)
        with (self._directory(upload) / "data").open("rb") as data:
            return {
                number: part for number, part in noted.items() if _crc32_at(data, part.ref) == part.ref.crc32
            }

    def _noted_parts(self, upload: Upload) -> dict[int, UploadedPart]:
        found: dict[int, UploadedPart] = {}
        for line in (self._directory(upload) / "parts").read_bytes().splitlines():
            try:
                row: list[Any] = json.loads(line)
                ref = PartRef(*row)
            except (ValueError, TypeError):
                continue  # a line that a crash cut short
            found[ref.number] = UploadedPart(ref, f"{ref.crc32:08x}")
        return found

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart], crc32: int) -> ObjectInfo:
        del crc32  # each part's was checked as it came
        return await self._run(upload.key, lambda: self._complete(upload, parts))

    def _complete(self, upload: Upload, parts: Sequence[UploadedPart]) -> ObjectInfo:
        directory, path = self._directory(upload), self._path(upload.key)
        known = self._noted_parts(upload)
        end = 0
        for part in parts:
            if known.get(part.ref.number) != part or part.ref.offset != end:
                raise StoreRefused(
                    self.name, f"completing {upload.key}", f"part {part.ref.number} is not there"
                )
            end += part.ref.size_bytes
        data = directory / "data"
        descriptor = os.open(data, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, end)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._create_parents(path)
        durable_rename(data, path)
        shutil.rmtree(directory)
        return _info(upload.key, path.stat())

    async def abort_upload(self, upload: Upload) -> None:
        directory = self._uploads / upload.upload_id
        await self._run(upload.key, lambda: shutil.rmtree(directory, ignore_errors=True))

    async def list_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        for upload in await self._run(prefix, self._scan_uploads):
            if upload.key.startswith(prefix):
                yield upload

    def _scan_uploads(self) -> Sequence[Upload]:
        found = []
        for directory in self._uploads.iterdir() if self._uploads.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                started_s = directory.stat().st_mtime
                found.append(Upload((directory / "key").read_text(), directory.name, started_s))
        return found


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    etag = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
    return ObjectInfo(key, status.st_size, etag, status.st_mtime)


def _crc32_at(file: BinaryIO, ref: PartRef) -> int:
    file.seek(ref.offset)
    value, left = 0, ref.size_bytes
    while left and (data := file.read(min(left, _READ_BYTES))):
        value, left = crc32.of(data, value), left - len(data)
    return value if not left else -1


def _copy_range(reading: int, writing: int, source: int, target: int, length: int) -> None:
    while length:
        try:
            count = os.copy_file_range(reading, writing, min(length, _COPY_BYTES), source, target)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
                raise
            count = os.pwrite(writing, os.pread(reading, min(length, _READ_BYTES), source), target)
        if not count:
            raise ObjectCorrupt("source", f"it ends before byte {source + length}")
        source, target, length = source + count, target + count, length - count


class _FileReader:
    def __init__(self, store: str, descriptor: int, info: ObjectInfo, span: Span) -> None:
        self._store = store
        self._descriptor = descriptor
        self._info = info
        self._at, self._stop = span.start, span.stop

    @property
    def info(self) -> ObjectInfo:
        return self._info

    async def pour(self, sink: Callable[[bytes], object], limit_bytes: int) -> int:
        start, stop = self._at, min(self._stop, self._at + limit_bytes)
        self._at = await in_thread(self._pour, sink, start, stop)
        if self._at < stop:
            detail = f"it ends at byte {self._at}"
            raise StoreUnavailable(self._store, f"reading {self._info.key}", detail)
        return self._at - start

    def _pour(self, sink: Callable[[bytes], object], at: int, stop: int) -> int:
        while at < stop:
            try:
                piece = os.pread(self._descriptor, min(_PIECE_BYTES, stop - at), at)
            except OSError as error:
                raise LocalDiskError.from_os(self._info.key, error) from error
            if not piece:
                break
            sink(piece)
            at += len(piece)
        return at


def _conforms(store: DirectoryObjectStore) -> MultipartStore:
    return store
