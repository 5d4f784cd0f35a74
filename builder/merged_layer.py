"""A small layer of files that the builder itself writes."""

import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from builder.chunk_images import CHUNK_NAME, UNCOMPRESSED_BYTES
from builder.compression import compressed
from builder.contents import Contents, ContentsEntry
from builder.layer_publish import store_blob
from builder.layer_tar import TarEntry, header
from builder.project import Compression
from ocikit import media_types
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.repository import Repository

MERGED = "merged-files"
_BLOCK = 512
_DIRECTORY = ContentsEntry("dir", 0o755, 0, 0, "")
_FILE = ContentsEntry("file", 0o644, 0, 0, "")


async def publish_files(
    repository: Repository, files: Mapping[str, bytes], below: Sequence[Contents], name: str
) -> Layer:
    """``files`` by path; modes and owners, also of the directories, are those of the topmost of ``below``."""
    tar = files_tar(files, below)
    diff_id = Digest(f"sha256:{hashlib.sha256(tar).hexdigest()}")
    stored = await store_blob(repository, compressed([tar], Compression.GZIP))
    annotations = {CHUNK_NAME: name, UNCOMPRESSED_BYTES: str(len(tar))}
    descriptor = Descriptor(
        media_types.layer_media_type(Compression.GZIP), stored.digest, stored.size, annotations
    )
    return Layer(descriptor, diff_id)


def files_tar(files: Mapping[str, bytes], below: Sequence[Contents]) -> bytes:
    """In the layers' normal form, made in 1970."""
    directories = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    out = bytearray()
    for path in sorted([*files, *directories], key=lambda one: one.split("/")):
        data = files.get(path, b"")
        kind, default = (tarfile.REGTYPE, _FILE) if path in files else (tarfile.DIRTYPE, _DIRECTORY)
        seen = next((layer.entries[path] for layer in reversed(below) if path in layer.entries), default)
        entry = TarEntry(path, kind, seen.mode, seen.uid, seen.gid, len(data), 0, "", (0, 0), {}, 0)
        out += header(entry) + data + bytes(-len(data) % _BLOCK)
    return bytes(out) + bytes(2 * _BLOCK)
