"""Creates a tree from archive members so that nothing outside it can be touched.

Every directory on the way is opened by descriptor with ``O_NOFOLLOW``; symbolic links are created when all
files are written, hard links after them, and directories get their owners, modes and times last. A later
member of a name replaces an earlier one, as with any tar.
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from content.archive.directories import Directories
from content.archive.id_map import IdMap
from content.archive.tar_format import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Member,
)
from content.archive.walk import LeftOut
from content.errors import LocalDiskError, UnsafeArchiveEntry

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_PATH_BYTES = 1 << 16
_NOT_NAMES = frozenset((b"", b".", b".."))
_SPECIAL = {CHAR: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK}


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may at most become; each check names the entry that goes beyond."""

    bytes: int
    entries: int
    devices: bool

    @classmethod
    def of_free_space(cls, directory: int, *, devices: bool) -> "Limits":
        """What the file system can still take."""
        free = os.fstatvfs(directory)
        entries = free.f_favail or (1 << 62)  # btrfs and others do not count inodes
        return cls(free.f_bavail * free.f_frsize, entries, devices)


@dataclass(slots=True)
class HandedOver:
    """What a tree writer leaves to another one's `TreeWriter.finish`."""

    deferred: "_Deferred"
    entries: int
    left_out: list[LeftOut]


@dataclass(slots=True)
class _Deferred:
    symlinks: dict[bytes, Member] = field(default_factory=dict)
    hard_links: dict[bytes, bytes] = field(default_factory=dict)
    directories: dict[bytes, Member] = field(default_factory=dict)


def safe_path(path: bytes) -> bytes:
    """``path`` relative and without ``.``; empty for the root. Raises UnsafeArchiveEntry."""
    if path.startswith(b"/"):
        raise UnsafeArchiveEntry(os.fsdecode(path), "its path is absolute")
    if b"\0" in path or len(path) > _MAX_PATH_BYTES:
        raise UnsafeArchiveEntry(os.fsdecode(path)[:200], "its path cannot be one of a file")
    parts = path.split(b"/")
    if _NOT_NAMES.isdisjoint(parts):
        return path
    if b".." in parts:
        raise UnsafeArchiveEntry(os.fsdecode(path), "its path leads out of the tree by '..'")
    return b"/".join([part for part in parts if part not in _NOT_NAMES])


class TreeWriter:
    """Writes into the directory ``root``, which starts empty and stays the caller's to close. Blocking;
    `add` may be called from several threads, `finish` once, after them. Writers in several processes may
    share a root; one finishes for all of them.

    Raises UnsafeArchiveEntry and LocalDiskError. ``left_out`` tells what could not be restored.
    """

    def __init__(self, root: int, limits: Limits, *, where: str, ids: IdMap | None = None) -> None:
        self.root = root
        self.limits = limits
        self.where = where
        self.ids = ids
        self._is_root = os.geteuid() == 0
        self._own = (os.geteuid(), os.getegid())
        self._umask = _current_umask()
        self._deferred = _Deferred()
        self._local = threading.local()
        self._opened: list[Directories] = []
        self._lock = threading.Lock()
        self._bytes = 0
        self.entries = 0
        self.left_out: list[LeftOut] = []

    def add(self, member: Member, chunks: Iterable[bytes | memoryview]) -> None:
        """Creates ``member``, or notes it for `finish`."""
        path = safe_path(member.path)
        try:
            self._account(path, member)
            self._add(path, member, chunks)
        except OSError as error:
            raise self._failed(path, error) from error

    def _account(self, path: bytes, member: Member) -> None:
        with self._lock:
            self.entries += 1
            self._bytes += member.size_bytes
            if self._bytes > self.limits.bytes:
                reason = f"with it the archive needs more than the {self.limits.bytes} bytes there are"
                raise UnsafeArchiveEntry(os.fsdecode(path), reason)
            if self.entries > self.limits.entries:
                raise UnsafeArchiveEntry(
                    os.fsdecode(path), "the archive has more entries than inodes are free"
                )

    def begin_file(self, member: Member) -> int:
        """Creates ``member``, a regular file, empty. Its descriptor, which is the caller's to write to and to
        close after `end_file`.
        """
        path = safe_path(member.path)
        try:
            self._account(path, member)
            return self._begin_file(path, member)
        except OSError as error:
            raise self._failed(path, error) from error

    def end_file(self, descriptor: int, member: Member) -> None:
        """Gives a file that is written its owner, mode, attributes and times."""
        path = safe_path(member.path)
        try:
            self._finish_file(descriptor, path, member)
        except OSError as error:
            raise self._failed(path, error) from error

    def discount(self, member: Member) -> None:
        """``member`` will be added a second time, over what it is now."""
        with self._lock:
            self.entries -= 1
            self._bytes -= member.size_bytes

    def _add(self, path: bytes, member: Member, chunks: Iterable[bytes | memoryview]) -> None:
        if member.kind == DIRECTORY:
            self._directories().open(path)
            self._deferred.directories[path] = member
            return
        if member.kind == REGULAR:
            self._write_file(path, member, chunks)
            return
        self._replace(path)
        if member.kind == SYMLINK:
            self._deferred.symlinks[path] = member
        elif member.kind == HARD_LINK:
            self._deferred.hard_links[path] = safe_path(member.link)
        elif member.kind in {FIFO, CHAR, BLOCK_DEVICE}:
            self._make_special(path, member)
        else:
            raise UnsafeArchiveEntry(os.fsdecode(path), f"its type {member.kind!r} is unknown")

    def _replace(self, path: bytes) -> None:
        """What comes now is what ``path`` is, whatever was to be made there."""
        if not path:
            raise UnsafeArchiveEntry(".", "the root of the tree can only be a directory")
        if self._deferred.symlinks or self._deferred.hard_links:
            self._deferred.symlinks.pop(path, None)
            self._deferred.hard_links.pop(path, None)

    def _directories(self) -> Directories:
        mine: Directories | None = getattr(self._local, "directories", None)
        if mine is None:
            mine = self._local.directories = Directories(self.root, self._deferred.symlinks)
            with self._lock:
                self._opened.append(mine)
        return mine

    def _write_file(self, path: bytes, member: Member, chunks: Iterable[bytes | memoryview]) -> None:
        descriptor = self._begin_file(path, member)
        try:
            if member.sparse is None:
                for data in chunks:
                    _write_all(descriptor, data)
            else:
                _write_sparse(descriptor, member, chunks)
            self._finish_file(descriptor, path, member)
        finally:
            os.close(descriptor)

    def _begin_file(self, path: bytes, member: Member) -> int:
        self._replace(path)
        parent, name = self._directories().parent(path)
        return _create(parent, name, member.mode & 0o777)

    def _finish_file(self, descriptor: int, path: bytes, member: Member) -> None:
        self._finish_open(descriptor, path, member, member.mode & 0o777 & ~self._umask)

    def _finish_open(self, descriptor: int, path: bytes, member: Member, mode: int | None) -> None:
        """Owner, then mode (chown clears setuid), attributes, times; ``mode`` is the one it has, if known."""
        uid, gid = self._owner(path, member)
        if (uid, gid) != self._own and self._is_root:
            os.fchown(descriptor, uid, gid)
            mode = None
        if member.mode != mode:
            os.fchmod(descriptor, member.mode)
        for key, value in member.xattrs:
            self._set_xattr(descriptor, path, key, value)
        os.utime(descriptor, ns=(member.mtime_ns, member.mtime_ns))

    def _owner(self, path: bytes, member: Member) -> tuple[int, int]:
        if self.ids is None:
            return member.uid, member.gid
        return self.ids.to_host(os.fsdecode(path), member.uid, member.gid)

    def _set_xattr(self, descriptor: int, path: bytes, key: bytes, value: bytes) -> None:
        if self.ids is not None:
            value = self.ids.xattr_to_host(os.fsdecode(path), key, value)
        try:
            os.setxattr(descriptor, key, value)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP}:
                raise
            reason = f"attribute {os.fsdecode(key)} cannot be set: {error.strerror}"
            self.left_out.append(LeftOut(os.fsdecode(path), reason))

    def _make_special(self, path: bytes, member: Member) -> None:
        if member.kind in _SPECIAL and not self.limits.devices:
            raise UnsafeArchiveEntry(os.fsdecode(path), "it is a device node")
        parent, name = self._directories().parent(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        if member.kind == FIFO:
            os.mkfifo(name, 0o600, dir_fd=parent)
        else:
            os.mknod(name, 0o600 | _SPECIAL[member.kind], os.makedev(*member.device), dir_fd=parent)
        if self._is_root:
            os.chown(name, *self._owner(path, member), dir_fd=parent, follow_symlinks=False)
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{descriptor}", member.mode)  # noqa: PTH101 (a descriptor, as a name)
        finally:
            os.close(descriptor)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def hand_over(self) -> HandedOver:
        """Instead of `finish`, where another writer on the same root does that for both."""
        return HandedOver(self._deferred, self.entries, self.left_out)

    def take_over(self, other: HandedOver) -> None:
        self._deferred.symlinks |= other.deferred.symlinks
        self._deferred.hard_links |= other.deferred.hard_links
        self._deferred.directories |= other.deferred.directories
        self.entries += other.entries
        self.left_out += other.left_out

    def finish(self) -> None:
        """Symbolic links, hard links, then what directories are like, deepest first."""
        deferred = self._deferred
        path = b""
        try:
            for path, member in deferred.symlinks.items():
                self._make_symlink(path, member)
            Directories.forbid_none(self._opened)
            for path, target in deferred.hard_links.items():
                self._make_hard_link(path, target)
            for path in sorted(deferred.directories, key=lambda at: -at.count(b"/") if at else 1):
                self._finish_directory(path, deferred.directories[path])
        except OSError as error:
            raise self._failed(path, error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Lets go of the directories; also after a failure."""
        for directories in self._opened:
            directories.close()
        self._opened.clear()

    def _make_symlink(self, path: bytes, member: Member) -> None:
        if not member.link or b"\0" in member.link:
            raise UnsafeArchiveEntry(os.fsdecode(path), "it is a symbolic link to nothing")
        parent, name = self._directories().parent(path)
        try:
            os.symlink(member.link, name, dir_fd=parent)
        except FileExistsError:
            _remove(parent, name)
            os.symlink(member.link, name, dir_fd=parent)
        if self._is_root:
            uid, gid = self._owner(path, member)
            if (uid, gid) != self._own:
                os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _make_hard_link(self, path: bytes, target: bytes) -> None:
        shown = os.fsdecode(path)
        if not target:
            raise UnsafeArchiveEntry(shown, "it is a hard link to nothing")
        directories = self._directories()
        parent, name = directories.parent(path)
        try:
            source, source_name = directories.parent(target, create=False)
        except FileNotFoundError as error:
            raise UnsafeArchiveEntry(
                shown, f"its hard link's target {os.fsdecode(target)!r} is not there"
            ) from error
        for _ in range(2):
            try:
                os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                _remove(parent, name)
            except FileNotFoundError as error:
                raise UnsafeArchiveEntry(
                    shown, f"its hard link's target {os.fsdecode(target)!r} is not there"
                ) from error
            else:
                return

    def _finish_directory(self, path: bytes, member: Member) -> None:
        descriptor = os.dup(self._directories().open(path))
        try:
            self._finish_open(descriptor, path, member, None)
        finally:
            os.close(descriptor)

    def _failed(self, path: bytes, error: OSError) -> Exception:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            return UnsafeArchiveEntry(
                os.fsdecode(path), "its path passes through something that is no directory"
            )
        return LocalDiskError.from_os(f"{self.where}/{os.fsdecode(path)}", error)


def _current_umask() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123 (no path of ours)
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o7777  # unknown: then every mode is set


def _create(parent: int, name: bytes, mode: int) -> int:
    try:
        return os.open(name, _CREATE, mode, dir_fd=parent)
    except FileExistsError:
        _remove(parent, name)
        return os.open(name, _CREATE, mode, dir_fd=parent)


def _remove(parent: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        os.rmdir(name, dir_fd=parent)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def _write_sparse(descriptor: int, member: Member, chunks: Iterable[bytes | memoryview]) -> None:
    extents = iter(member.sparse or ())
    offset, room = 0, 0
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            while not room:
                offset, room = next(extents)
            step = os.pwrite(descriptor, view[:room], offset)
            offset, room, view = offset + step, room - step, view[step:]
    os.ftruncate(descriptor, member.real_size_bytes or 0)
