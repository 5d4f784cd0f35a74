"""One image as one file: archives that container tools import, file systems that a virtual machine boots.

The same image gives the same bytes in every format; in squashfs all times are 1970. ext4 is made without
mounting anything.
"""

import contextlib
import enum
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from builder.compression import decompressed
from builder.errors import EngineUnavailable, WorkspaceError
from builder.flatten import flattened_tar
from builder.layer_tar import TarEntry, tar_stream
from builder.processes import run_logged
from builder.unpack import unpack_tar
from ocikit import media_types
from ocikit.blobs import copy_blob
from ocikit.compose import paired_layers
from ocikit.descriptor import Descriptor
from ocikit.disk_store import DiskBlobStore
from ocikit.layout import REF_NAME
from ocikit.manifest import Index, canonical_json
from ocikit.repository import Image, Repository
from servicekit.threads import in_thread

_READ_BYTES = 1 << 20
_UUID = "6c617073-7472-616b-6520-000000000001"
"""A file system's identity, fixed: it is the content that tells images apart."""
_EXT4_BLOCK = 4096
_EXT4_INODE = 256
_EXT4_ROOT, _EXT4_FIRST = 2, 11
"""Inodes: of the root directory, and the first that is not reserved, of lost+found."""


class ExportFormat(enum.StrEnum):
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    ROOTFS_TAR = "rootfs-tar"
    EXT4 = "ext4"
    EROFS = "erofs"
    SQUASHFS = "squashfs"


async def export_image(
    image: Image, repository: Repository, name: str, kind: ExportFormat, target: Path, scratch: Path
) -> None:
    """Writes ``target``, which appears when it is complete. ``name`` is what importers call the image.

    ``scratch`` is an empty directory with room for the image unpacked. Raises EngineUnavailable when a
    program is missing.
    """
    blobs = await _fetch(image, repository, scratch / "blobs")
    partial = scratch / "partial"
    if kind is ExportFormat.OCI_ARCHIVE:
        await in_thread(_write, partial, _oci_archive(image, blobs, name))
    else:
        layers = await in_thread(_plain_layers, image, blobs, scratch / "layers")
        if kind is ExportFormat.DOCKER_ARCHIVE:
            await in_thread(_write, partial, _docker_archive(image, layers, name))
        else:
            await _export_tree(layers, kind, partial, scratch)
    try:
        await in_thread(shutil.move, partial, target)
    except OSError as error:
        raise WorkspaceError(str(target), error.strerror or str(error)) from error


async def _fetch(image: Image, repository: Repository, directory: Path) -> Mapping[str, Path]:
    """Every blob of the image, verified by size and digest on its way."""
    store = DiskBlobStore(directory)
    for descriptor in (image.manifest.config, *image.manifest.layers):
        await copy_blob(repository.blobs, store, descriptor)
    return {
        descriptor.digest: store.path(descriptor.digest)
        for descriptor in (image.manifest.config, *image.manifest.layers)
    }


def _plain_layers(image: Image, blobs: Mapping[str, Path], directory: Path) -> Sequence[Path]:
    directory.mkdir()
    made: list[Path] = []
    for at, layer in enumerate(paired_layers(image.manifest, image.config)):
        made.append(directory / f"{at:03}.tar")
        with blobs[layer.descriptor.digest].open("rb") as source:
            kind = media_types.layer_compression(layer.descriptor.media_type)
            _write(made[-1], decompressed(_pieces(source), kind, layer.descriptor.digest.short))
    return made


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(_READ_BYTES), b"")


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)


def _archive(members: Sequence[tuple[str, bytes | Path]]) -> Iterator[bytes]:
    """A tar of small texts and of files; directories are not needed by any importer."""
    with contextlib.ExitStack() as stack:

        def opened() -> Iterator[tuple[TarEntry, BinaryIO]]:
            for path, content in members:
                size = len(content) if isinstance(content, bytes) else content.stat().st_size
                entry = TarEntry(path, tarfile.REGTYPE, 0o644, 0, 0, size, 0, "", (0, 0), {}, 0)
                file: BinaryIO = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
                yield entry, stack.enter_context(file)

        yield from tar_stream(opened())


def _oci_archive(image: Image, blobs: Mapping[str, Path], name: str) -> Iterator[bytes]:
    """An OCI image layout as a tar (image-spec v1.1, image-layout.md)."""
    named = image.descriptor.with_annotations({REF_NAME: name.rpartition(":")[2], _CONTAINERD_NAME: name})
    index = Index((named,)).dump()
    members: list[tuple[str, bytes | Path]] = [
        ("oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"})),
        ("index.json", index),
        (_blob_path(image.descriptor), image.raw.data),
        *((_blob_path(item), blobs[item.digest]) for item in (image.manifest.config, *image.manifest.layers)),
    ]
    return _archive(list(dict(members).items()))


_CONTAINERD_NAME = "io.containerd.image.name"
"""What ``ctr image import`` calls the image."""


def _blob_path(descriptor: Descriptor) -> str:
    return f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.encoded}"


def _docker_archive(image: Image, layers: Sequence[Path], name: str) -> Iterator[bytes]:
    """What ``docker load`` reads: layers uncompressed, listed in manifest.json."""
    config = image.config.dump()
    config_name = f"{image.manifest.config.digest.encoded}.json"
    paths = [f"{diff_id.encoded}.tar" for diff_id in image.config.diff_ids]
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": paths}]
    members: dict[str, bytes | Path] = {config_name: config}
    members |= dict(zip(paths, layers, strict=True))
    members["manifest.json"] = json.dumps(manifest, sort_keys=True).encode()
    return _archive(list(members.items()))


async def _export_tree(layers: Sequence[Path], kind: ExportFormat, target: Path, scratch: Path) -> None:
    tar = target if kind is ExportFormat.ROOTFS_TAR else scratch / "rootfs.tar"
    await in_thread(_flatten, layers, tar)
    if kind is ExportFormat.ROOTFS_TAR:
        return
    if kind is ExportFormat.SQUASHFS:
        flags = ["-quiet", "-no-progress", "-mkfs-time", "0", "-all-time", "0", "-reproducible"]
        await _run("sqfstar", "squashfs-tools", f'sqfstar {" ".join(flags)} "$1" < "$2"', target, tar)
        return
    if os.geteuid() != 0:
        raise EngineUnavailable(f"the export to {kind}", "it needs root, to keep owners")
    root = scratch / "root"
    await in_thread(_unpack, tar, root)
    if kind is ExportFormat.EROFS:
        await _run("mkfs.erofs", "erofs-utils", f'mkfs.erofs -T0 -U {_UUID} "$1" "$2"', target, root)
    else:
        await _make_ext4(root, target, scratch)


def _flatten(layers: Sequence[Path], target: Path) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(layer.open("rb")) for layer in layers]
        _write(target, flattened_tar(files))


def _unpack(tar: Path, root: Path) -> None:
    root.mkdir(mode=0o755)
    with tar.open("rb") as file:
        unpack_tar(_pieces(file), root, "rootfs", overlay=False)


async def _make_ext4(root: Path, target: Path, scratch: Path) -> None:
    """By mke2fs -d; then every inode's change time, which is that of the copy, is set to 1970."""
    entries, size = await in_thread(_measure, root)
    await in_thread(_allocate, target, size)
    options = f"hash_seed={_UUID},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    script = (
        f"E2FSPROGS_FAKE_TIME=1 mke2fs -q -t ext4 -F -b {_EXT4_BLOCK} -I {_EXT4_INODE} -U {_UUID} "
        f'-N {entries + entries // 8 + 1024} -E {options} -d "$2" "$1"'
    )
    await _run("mke2fs", "e2fsprogs", script, target, root)
    commands = scratch / "debugfs"
    await in_thread(_write_time_commands, entries, commands)
    await _run(
        "debugfs", "e2fsprogs", 'E2FSPROGS_FAKE_TIME=1 debugfs -w -f "$2" "$1" > /dev/null', target, commands
    )


def _measure(root: Path) -> tuple[int, int]:
    """Entries, and bytes of a file system that holds them with a tenth to spare."""
    entries, blocks = 1, 0
    for directory, names, files in os.walk(root):
        entries += len(names) + len(files)
        blocks += len(names) + 1
        for name in files:
            size = Path(directory, name).lstat().st_size
            blocks += -(-size // _EXT4_BLOCK) + 1
    data = blocks * _EXT4_BLOCK + entries * _EXT4_INODE
    size = int(data * 1.1) + (24 << 20)  # the journal and the tables of block groups
    return entries, size - size % (1 << 20)


def _allocate(target: Path, size: int) -> None:
    with target.open("wb") as file:
        file.truncate(size)


def _write_time_commands(entries: int, commands: Path) -> None:
    """By number: a name could hold a line break, and behind it another command."""
    lines = [
        f"set_inode_field <{inode}> {field} {value}"
        for inode in (_EXT4_ROOT, *range(_EXT4_FIRST, _EXT4_FIRST + entries))
        for field, value in (("ctime", "@0"), ("ctime_extra", "0"), ("atime", "@0"), ("atime_extra", "0"),
                             ("crtime", "@0"), ("crtime_extra", "0"), ("mtime_extra", "0"))
    ]  # fmt: skip
    commands.write_text("\n".join([*lines, ""]))


async def _run(program: str, package: str, script: str, target: Path, source: Path) -> None:
    """``script`` with the paths as $1 and $2."""
    if shutil.which(program) is None:
        raise EngineUnavailable(program, f"it is not installed (apt install {package})")
    status, tail = await run_logged(["sh", "-ec", script, "sh", str(target), str(source)], lambda _: None)
    if status != 0:
        raise EngineUnavailable(program, " / ".join(tail[-3:]) or f"it ends with {status}")
