"""Layers made here from files: the same tar on every node, whenever it is made.

Owner is root, times are the epoch, modes keep only what execution needs, entries are in byte order. The tar
is not compressed: compressors differ between builds of the same library, and a digest must not.
"""

import contextlib
import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

import zstandard

from ocikit import media_types
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from registry_facade.errors import LayerUnavailable
from registry_facade.image_spec import FileLayer, InlineLayer

_READ_BYTES = 1 << 20
WriteLazy = Callable[[Path, IO[bytes]], Layer]
"""Writes an uncompressed tar as a format that is read in parts; see `toc.members` for what it raises."""
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """``path`` is a file of its own, the caller's to move or remove."""

    path: Path
    layer: Layer


def build_layer(spec: FileLayer | InlineLayer, directory: Path) -> BuiltLayer:
    """Writes the layer's blob into ``directory``; blocking. Raises LayerUnavailable."""
    descriptor, name = scratch_file(directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if isinstance(spec, InlineLayer):
                layer = _tar_of_inline(spec, file)
            elif spec.at == "" and _is_tar(spec.path):
                layer = _copy_of_tar(spec.path, file)
            else:
                layer = _tar_of_path(spec, file)
    except (OSError, tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        Path(name).unlink(missing_ok=True)
        raise LayerUnavailable(_title(spec), getattr(error, "strerror", None) or str(error)) from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return BuiltLayer(Path(name), layer)


def build_lazy(write: WriteLazy, spec: FileLayer | InlineLayer, directory: Path) -> BuiltLayer:
    """Like `build_layer`, as ``write`` has it; a tar that is there already stays as it is.

    So does one with a name that is not UTF-8, which a TOC cannot say.
    """
    plain = build_layer(spec, directory)
    if isinstance(spec, FileLayer) and spec.at == "" and _is_tar(spec.path):
        return plain
    descriptor, name = scratch_file(directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            layer = write(plain.path, file)
    except UnicodeEncodeError:
        Path(name).unlink()
        return plain
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        plain.path.unlink()
        if isinstance(error, OSError):
            raise LayerUnavailable(_title(spec), error.strerror or str(error)) from error
        raise
    plain.path.unlink()
    return BuiltLayer(Path(name), layer)


def scratch_file(directory: Path) -> tuple[int, str]:
    """(descriptor, path) of a new file, both the caller's to close and remove; blocking. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    return tempfile.mkstemp(dir=directory)


def fingerprint(spec: FileLayer | InlineLayer) -> str:
    """Changes when the files behind a layer do; blocking. Raises LayerUnavailable."""
    if isinstance(spec, InlineLayer):
        return repr(spec)
    seen = hashlib.sha256(f"{spec.path}\0{spec.at}".encode())
    try:
        for _, path in _walk(spec.path, ""):
            found = path.lstat()
            seen.update(
                f"{path}\0{found.st_mode}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}\n".encode()
            )
    except OSError as error:
        raise LayerUnavailable(_title(spec), error.strerror or str(error)) from error
    return seen.hexdigest()


def _title(spec: FileLayer | InlineLayer) -> str:
    return f"file {spec.path}" if isinstance(spec, FileLayer) else "inline files"


class Hashing(io.RawIOBase):
    """Counts and hashes what goes through to ``file``."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hasher = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override] # tarfile only ever passes bytes
        self._file.write(data)
        self._hasher.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def as_layer(self) -> Layer:
        digest = Digest(f"sha256:{self._hasher.hexdigest()}")
        return Layer(Descriptor(media_types.OCI_LAYER, digest, self._size), digest)


def _tar_of_inline(spec: InlineLayer, file: IO[bytes]) -> Layer:
    out = Hashing(file)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for place, item in sorted(spec.files.items()):
            entry = tarfile.TarInfo(place.lstrip("/"))
            entry.size, entry.mode = len(item.data), item.mode
            tar.addfile(entry, io.BytesIO(item.data))
    return out.as_layer()


def _tar_of_path(spec: FileLayer, file: IO[bytes]) -> Layer:
    at = spec.at
    if at.endswith("/") or (at == "" and not spec.path.is_dir()):
        at = f"{at.rstrip('/')}/{spec.path.name}" if not spec.path.is_dir() else at
    out = Hashing(file)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in _walk(spec.path, str(PurePosixPath(at or "/")).strip("/")):
            if name:
                _add(tar, name, path)
    return out.as_layer()


def _walk(path: Path, name: str) -> Iterator[tuple[str, Path]]:
    yield name, path
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir(), key=lambda item: os.fsencode(item.name)):
            yield from _walk(child, f"{name}/{child.name}".lstrip("/"))


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    found = path.lstat()
    entry = tarfile.TarInfo(name)
    if stat.S_ISLNK(found.st_mode):
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        tar.addfile(entry)
    elif stat.S_ISDIR(found.st_mode):
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    elif stat.S_ISREG(found.st_mode):
        entry.size = found.st_size
        entry.mode = 0o755 if found.st_mode & 0o111 else 0o644
        with path.open("rb") as content:
            tar.addfile(entry, content)
    else:
        raise LayerUnavailable(f"file {path}", "is neither file, directory nor symlink")


def _compression(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def _is_tar(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with _uncompressed(path) as file:
            head = file.read(512)
    except (OSError, EOFError, zstandard.ZstdError):
        return False
    return len(head) == 512 and head[257:262] == b"ustar"


@contextlib.contextmanager
def _uncompressed(path: Path) -> Iterator[IO[bytes]]:
    compression = _compression(path)
    with path.open("rb") as raw:
        if compression == "gzip":
            with gzip.GzipFile(fileobj=raw) as file:
                yield cast("IO[bytes]", file)
        elif compression == "zstd":
            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as reader:
                yield reader
        else:
            yield raw


def _copy_of_tar(path: Path, file: IO[bytes]) -> Layer:
    out = Hashing(file)
    with path.open("rb") as raw:
        while data := raw.read(_READ_BYTES):
            out.write(data)
    descriptor = out.as_layer().descriptor
    media_type, _, diff_id = look_into(path)
    return Layer(Descriptor(media_type, descriptor.digest, descriptor.size), diff_id)


def look_into(path: Path) -> tuple[str, int, Digest]:
    """(media type, size, diff_id) of a layer's blob; blocking. Raises LayerUnavailable."""
    unpacked = hashlib.sha256()
    try:
        with _uncompressed(path) as content:
            while data := content.read(_READ_BYTES):
                unpacked.update(data)
        media_type = media_types.layer_media_type(_compression(path))
        return media_type, path.stat().st_size, Digest(f"sha256:{unpacked.hexdigest()}")
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise LayerUnavailable("tar", getattr(error, "strerror", None) or str(error)) from error
