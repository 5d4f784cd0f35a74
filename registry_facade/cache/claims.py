"""Who downloads a blob when several processes share a cache: whoever holds the lock on its claim file.

The file says under which Unix socket the holder serves what it has got so far, and its process id for
people. The kernel drops the lock
when a process dies, however it dies; the next one to ask takes over, with all that is on disk.
"""

import asyncio
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from ocikit.digest import Digest
from registry_facade.errors import CacheUnusable


@dataclass(frozen=True, slots=True)
class Claim:
    """Held until `release`; blocking, but only for a system call."""

    path: Path
    descriptor: int

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


class Claims:
    """``address`` is this process's socket. Safe for concurrent use, once per digest at a time."""

    def __init__(self, directory: Path, address: str) -> None:
        self._directory = directory
        self._address = address

    async def take(self, digest: Digest) -> Claim | str:
        """The claim, or the address of the process that holds it. Raises CacheUnusable."""
        path = self._directory / f"{digest.algorithm}-{digest.encoded}.claim"
        taking = asyncio.create_task(asyncio.to_thread(self._take, path))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            if isinstance(taken := await taking, Claim):
                taken.release()  # a lock that nobody holds on purpose would never be given up
            raise
        except OSError as error:
            raise CacheUnusable(str(path), error.strerror or str(error)) from error

    def _take(self, path: Path) -> Claim | str:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                address = os.pread(descriptor, 4096, 0).decode().partition("\n")[0]
                os.close(descriptor)
                return address
            claim = Claim(path, descriptor)
            if not _is_at(path, descriptor):
                os.close(descriptor)  # its last holder removed the file between our open and our lock
                continue
            try:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{self._address}\n{os.getpid()}\n".encode(), 0)
            except OSError:  # a full disk; a lock without an address would lead everybody astray
                claim.release()
                raise
            return claim


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
