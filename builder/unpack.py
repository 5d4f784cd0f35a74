"""Layers as directories, each unpacked once whatever the number of images it is in.

Every path is walked component by component without following links, so that a layer cannot write outside
its directory. Ownership needs root.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from builder.compression import decompressed
from builder.errors import InvalidLayer
from builder.layer_tar import OPAQUE, WHITEOUT, clean_path
from builder.pieces import PieceReader
from builder.scratch import Scratch
from ocikit import media_types
from ocikit.compose import Layer
from ocikit.digest import Hasher
from ocikit.errors import DigestMismatch
from ocikit.repository import Repository
from servicekit.single_flight import SingleFlight
from servicekit.threads import in_thread

_XATTR = "SCHILY.xattr."
_COPY_BYTES = 1 << 20
_NAME_LENGTH = 24
"""Of the diff_id's digits in a directory's name: a mount's options must fit a page, with 127 layers."""


class UnpackedLayers:
    """Directories under ``root``, named by diff_id, in the form of overlayfs. One event loop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scratch = Scratch(root / ".scratch")
        self._flights: SingleFlight[str, None] = SingleFlight()

    async def ensure(self, layer: Layer, repository: Repository) -> str:
        """The name of the layer's directory. Raises DigestMismatch when its content is not its diff_id."""
        name = layer.diff_id.encoded[:_NAME_LENGTH]
        if not await in_thread((self.root / name).exists):
            await self._flights.do(name, lambda: self._unpack(layer, repository, self.root / name))
        return name

    async def _unpack(self, layer: Layer, repository: Repository, target: Path) -> None:
        with tempfile.TemporaryFile() as spool:
            async with repository.blobs.open(layer.descriptor.digest) as reader:
                async for data in reader:
                    await in_thread(spool.write, data)
            spool.seek(0)
            pieces = iter(lambda: spool.read(_COPY_BYTES), b"")
            await in_thread(self._unpack_now, layer, pieces, target)

    def _unpack_now(self, layer: Layer, pieces: Iterable[bytes], target: Path) -> None:
        with self.scratch.directory() as directory:
            temp = directory / "layer"
            temp.mkdir(0o755)
            kind = media_types.layer_compression(layer.descriptor.media_type)
            short = layer.descriptor.digest.short
            hasher = hashlib.sha256()
            plain = _hashed(decompressed(pieces, kind, short), hasher)
            unpack_tar(plain, temp, short, overlay=True)
            if (actual := f"sha256:{hasher.hexdigest()}") != layer.diff_id:
                raise DigestMismatch(layer.diff_id, actual, f"layer {short}")
            with contextlib.suppress(OSError):  # another process was as quick
                temp.rename(target)


def _hashed(pieces: Iterable[bytes], hasher: Hasher) -> Iterator[bytes]:
    for piece in pieces:
        hasher.update(piece)
        yield piece


def unpack_tar(pieces: Iterable[bytes], root: Path, layer: str, *, overlay: bool) -> None:
    """Applies a layer's tar onto ``root``; blocking. Raises InvalidLayer.

    With ``overlay`` whiteouts become overlayfs's own marks; without, they delete what is there.
    """
    stream = PieceReader(pieces)
    try:
        with (
            _Tree(root, layer, overlay=overlay) as tree,
            tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as archive,
        ):
            for member in archive:
                tree.apply(member, archive)
                setattr(archive, "members", [])  # noqa: B010 (unknown to its stubs; else every member is kept)
            stream.drain()
    except InvalidLayer:  # a ValueError too, which says already what is wrong
        raise
    except (tarfile.TarError, ValueError) as error:
        raise InvalidLayer(layer, f"not a tar: {error}") from error


class _Tree:
    """A directory that is written below and nowhere else."""

    def __init__(self, root: Path, layer: str, *, overlay: bool) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._layer = layer
        self._overlay = overlay
        self._directory_times: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        if kind is None:
            for path, mtime_s in reversed(self._directory_times):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    self._set_time(path, mtime_s)
        os.close(self._root)

    def _set_time(self, path: str, mtime_s: int) -> None:
        with self._parent(path) as (parent, name):
            os.utime(name or ".", (mtime_s, mtime_s), dir_fd=parent, follow_symlinks=False)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The open directory that holds ``path``, made where it is missing, and the last component."""
        *parents, name = path.split("/")
        current = os.dup(self._root)
        try:
            for part in parents:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
                try:
                    inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
                except OSError as error:
                    raise InvalidLayer(self._layer, f"{path} lies behind {part}, no directory") from error
                os.close(current)
                current = inner
            yield current, name
        finally:
            os.close(current)

    def apply(self, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        path = clean_path(member.name, self._layer)
        with self._parent(path) as (parent, name):
            if name.startswith(WHITEOUT):
                self._whiteout(parent, name)
                return
            if not path:
                self._attributes(member, parent, ".")
                self._directory_times.append(("", int(member.mtime)))
                return
            self._create(member, archive, parent, name)
            if not member.islnk():
                self._attributes(member, parent, name)
            if member.isdir():
                self._directory_times.append((path, int(member.mtime)))

    def _whiteout(self, parent: int, name: str) -> None:
        hidden = name.removeprefix(WHITEOUT)
        if name == OPAQUE:
            if self._overlay:
                os.setxattr(parent, "trusted.overlay.opaque", b"y")
            else:
                for entry in os.listdir(parent):
                    _remove(parent, entry)
        elif hidden.startswith(WHITEOUT) or not hidden:
            return  # aufs's own bookkeeping
        elif self._overlay:
            _remove(parent, hidden)
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
        else:
            _remove(parent, hidden)

    def _create(self, member: tarfile.TarInfo, archive: tarfile.TarFile, parent: int, name: str) -> None:
        if member.isdir():
            if not _is_directory(parent, name):
                _remove(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
            return
        _remove(parent, name)
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.islnk():
            with self._parent(clean_path(member.linkname, self._layer)) as (source, source_name):
                try:
                    os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                except (FileNotFoundError, PermissionError) as error:
                    reason = f"{member.name} is a link to {member.linkname}, no file of this layer"
                    raise InvalidLayer(self._layer, reason) from error
        elif member.isreg():
            self._write(member, archive, parent, name)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(name, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=parent)
        else:
            raise InvalidLayer(self._layer, f"{member.name} is of an unknown kind")

    def _write(self, member: tarfile.TarInfo, archive: tarfile.TarFile, parent: int, name: str) -> None:
        source = archive.extractfile(member)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=parent), "wb") as target:
            if source is not None:
                shutil.copyfileobj(source, target, _COPY_BYTES)

    def _attributes(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        """Owner first: changing it clears set-id bits and capabilities."""
        if os.geteuid() == 0:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, member.mode & 0o7777, dir_fd=parent)
            for key, value in _xattrs(member.pax_headers).items():
                os.setxattr(f"/proc/self/fd/{parent}/{name}", key, value, follow_symlinks=False)
        if not member.isdir():
            os.utime(name, (int(member.mtime), int(member.mtime)), dir_fd=parent, follow_symlinks=False)


def _xattrs(pax_headers: Mapping[str, str]) -> Mapping[str, bytes]:
    return {
        key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for key, value in pax_headers.items()
        if key.startswith(_XATTR)
    }


def _is_directory(parent: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove(parent: int, name: str) -> None:
    """Whatever ``name`` is; absent is success."""
    if _is_directory(parent, name):
        shutil.rmtree(name, dir_fd=parent)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)
