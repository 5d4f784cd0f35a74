"""One file per blob that is filled in any order, and the map of what is in it.

Two things are told apart: bytes that are *present*, and bytes that may be *read*. What a trusted source
sent may be read at once, except for the last few bytes, which are held back until the whole blob has been
verified: a reader of a corrupt blob never gets a complete one. What an untrusted source sent may be read
only after verification. Small blobs are verified whole before anything of them is read.

A growing blob that was given up is kept with its map and taken up again later, but only within the same
boot: after a power cut nobody knows which pages reached the disk.
"""

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ocikit.digest import Digest
from registry_facade.cache.intervals import Intervals
from registry_facade.errors import AlreadyStored, CacheUnusable
from servicekit.atomic import durable_rename

WHOLE_BYTES = 256 << 10
"""Blobs up to this size are verified before their first byte is read; beyond it, time matters more."""
HELD_BACK_BYTES = 4096
_HASH_BYTES = 1 << 20
_SAVE_EVERY_BYTES = 64 << 20
_IOV_MAX = 1024
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else ""


class GrowingBlob:
    """Belongs to one event loop; at most one `write` per byte position at a time.

    Make it with `create`; whoever made it calls `close`.
    """

    def __init__(self, path: Path, digest: Digest, size: int, descriptor: int, trusted: Intervals) -> None:
        self.path = path
        self.digest = digest
        self.size = size
        self.verified = False
        self.untrusted_sources: set[str] = set()
        self.present = Intervals(trusted)
        self.was_resumed = len(trusted) > 0
        self._trusted = trusted
        self._descriptor = descriptor
        self._hasher = digest.hasher()
        self._hashed_bytes = 0
        self._hashing = threading.Lock()
        self._unsaved_bytes = 0
        self._error: BaseException | None = None
        self._closed = False
        self._progress: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def resume(cls, path: Path, digest: Digest) -> Self | None:
        """What an earlier download left at ``path``, or None."""
        size = await asyncio.to_thread(_kept_size, path)
        return await cls.create(path, digest, size) if size is not None else None

    @classmethod
    async def create(cls, path: Path, digest: Digest, size: int) -> Self:
        """Takes up what an earlier download left, else reserves the space. Raises CacheUnusable."""
        try:
            descriptor, trusted = await asyncio.to_thread(_open_or_reserve, path, size)
        except OSError as error:
            raise CacheUnusable(str(path), error.strerror or str(error)) from error
        return cls(path, digest, size, descriptor, trusted)

    @property
    def is_complete(self) -> bool:
        return self.present.covers(0, self.size)

    def duplicate(self) -> int:
        """A descriptor of the file, the caller's to close; it survives publishing, removal and `close`.

        Raises what ended the download, or AlreadyStored, when it is over.
        """
        if self._closed:
            raise self._error or AlreadyStored(self.digest)
        return os.dup(self._descriptor)

    def readable_until(self, at: int) -> int:
        """Where the bytes that may be read from ``at`` on end; ``at`` when the first is not there."""
        if self.verified:
            return self.size
        if self.size <= WHOLE_BYTES:
            return at
        return max(at, min(self._trusted.run_from(at), self.size - HELD_BACK_BYTES))

    async def wait_readable(self, at: int) -> int:
        """Like `readable_until`, but waits for at least one byte. Raises what ended the download."""
        while (until := self.readable_until(at)) == at < self.size:
            if self._error is not None:
                raise self._error
            await asyncio.shield(self._progress)
        return until

    def _wake(self) -> None:
        if not self._progress.done():
            self._progress.set_result(None)
        self._progress = asyncio.get_running_loop().create_future()

    async def write(self, at: int, pieces: Sequence[bytes], source: str, *, trusted: bool) -> int:
        """Puts ``pieces`` at ``at``; returns how many bytes that were. Raises CacheUnusable."""
        try:
            written = await asyncio.to_thread(self._write, at, pieces)
        except OSError as error:
            raise CacheUnusable(str(self.path), error.strerror or str(error)) from error
        self.present.add(at, at + written)
        if trusted:
            self._trusted.add(at, at + written)
        else:
            self.untrusted_sources.add(source)
        self._wake()
        self._unsaved_bytes += written
        if self._unsaved_bytes >= _SAVE_EVERY_BYTES:
            self._unsaved_bytes = 0
            await asyncio.to_thread(self._save, self._map())
        return written

    def _write(self, at: int, pieces: Sequence[bytes]) -> int:
        wanted = sum(map(len, pieces))
        if len(pieces) <= _IOV_MAX and os.pwritev(self._descriptor, pieces, at) == wanted:
            pass
        else:  # a short write: start over with one buffer, byte positions make that harmless
            view, done = memoryview(b"".join(pieces)), 0
            while done < wanted:
                done += os.pwrite(self._descriptor, view[done:], at + done)
        with self._hashing:
            if at == self._hashed_bytes:
                for piece in pieces:
                    self._hasher.update(piece)
                self._hashed_bytes += wanted
        return wanted

    async def actual_digest(self) -> Digest:
        """Of the complete file; reads again only what did not come in order."""
        return await asyncio.to_thread(self._finish_hash)

    def _finish_hash(self) -> Digest:
        while self._hashed_bytes < self.size:
            data = os.pread(
                self._descriptor, min(_HASH_BYTES, self.size - self._hashed_bytes), self._hashed_bytes
            )
            if not data:
                raise CacheUnusable(str(self.path), f"truncated at byte {self._hashed_bytes} of {self.size}")
            self._hasher.update(data)
            self._hashed_bytes += len(data)
        return Digest(f"{self.digest.algorithm}:{self._hasher.hexdigest()}")

    def release(self) -> None:
        """The blob was verified: everything may be read."""
        self.verified = True
        self._wake()

    def drop_untrusted(self) -> None:
        """Forgets what untrusted sources sent, and the hash with it."""
        self.present = Intervals(self._trusted)
        self.untrusted_sources.clear()
        self._hasher, self._hashed_bytes = self.digest.hasher(), 0

    def fail(self, error: BaseException) -> None:
        """Whoever waits, or comes to wait, gets ``error``; what may be read already can still be read."""
        self._error = error
        self._wake()

    async def publish(self, target: Path) -> os.stat_result:
        """Moves the verified file to its final name, durably; how it looked before. Raises CacheUnusable."""
        try:
            return await asyncio.to_thread(self._publish, target)
        except OSError as error:
            raise CacheUnusable(str(target), error.strerror or str(error)) from error

    def _publish(self, target: Path) -> os.stat_result:
        os.fchmod(self._descriptor, 0o644)
        os.fsync(self._descriptor)
        before = os.fstat(self._descriptor)
        target.parent.mkdir(parents=True, exist_ok=True)
        durable_rename(self.path, target)
        _map_path(self.path).unlink(missing_ok=True)
        return before

    def _map(self) -> bytes:
        return json.dumps({"boot": _boot_id(), "size": self.size, "present": list(self._trusted)}).encode()

    def _save(self, content: bytes) -> None:
        with contextlib.suppress(OSError):  # without a map the next download starts anew
            _map_path(self.path).write_bytes(content)

    async def close(self, *, keep: bool) -> None:
        """Ends the writing; ``keep`` leaves file and map for a later download. After `publish`: keep."""
        self._closed = True
        content = self._map()
        await asyncio.to_thread(self._close, content if keep and not self.verified else None, keep=keep)

    def _close(self, content: bytes | None, *, keep: bool) -> None:
        os.close(self._descriptor)
        if content is not None:
            self._save(content)
        elif not keep:
            self.path.unlink(missing_ok=True)
            _map_path(self.path).unlink(missing_ok=True)


def _map_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.map")


def _open_or_reserve(path: Path, size: int) -> tuple[int, Intervals]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        trusted = _read_map(_map_path(path), size) if os.fstat(descriptor).st_size == size else Intervals()
        if not len(trusted):
            os.ftruncate(descriptor, 0)
            if size:
                os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor, trusted


def _kept_size(path: Path) -> int | None:
    try:
        size = path.stat().st_size
    except OSError:
        return None
    return size if len(_read_map(_map_path(path), size)) else None


def _read_map(path: Path, size: int) -> Intervals:
    try:
        document = json.loads(path.read_bytes())
        fits = document["boot"] == _boot_id() and document["size"] == size
        spans = [(int(start), int(stop)) for start, stop in document["present"]] if fits else []
    except (OSError, ValueError, KeyError, TypeError):
        return Intervals()
    return Intervals((start, stop) for start, stop in spans if 0 <= start < stop <= size)
