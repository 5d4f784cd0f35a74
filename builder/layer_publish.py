"""From an engine's tar to a layer in a repository, doing for each content only once what is costly."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from pathlib import Path

from builder.chunk_images import UNCOMPRESSED_BYTES
from builder.compression import compressed
from builder.contents import ContentsCache, contents_of
from builder.layer_tar import NormalTar
from builder.project import Compression
from ocikit import media_types
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, OciError
from ocikit.repository import Repository
from servicekit.atomic import atomic_write
from servicekit.threads import in_thread


class LayerRecords:
    """diff_id -> descriptor, per compression: which bytes a content was given when it was compressed.

    A record is a hint; whether the blob is still there is asked of the repository. Blocking.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def _path(self, diff_id: Digest, compression: Compression) -> Path:
        return self._root / f"{diff_id.encoded}.{compression}.json"

    def find(self, diff_id: Digest, compression: Compression) -> Descriptor | None:
        try:
            return Descriptor.parse(json.loads(self._path(diff_id, compression).read_bytes()))
        except (OSError, ValueError, OciError):
            return None

    def remember(self, diff_id: Digest, compression: Compression, descriptor: Descriptor) -> None:
        atomic_write(self._path(diff_id, compression), json.dumps(descriptor.dump()).encode())


async def publish_layer(
    tar: Path,
    repository: Repository,
    records: LayerRecords,
    contents: ContentsCache,
    *,
    compression: Compression,
    clamp_s: int,
    annotations: Mapping[str, str],
) -> Layer | None:
    """Normalises ``tar`` and stores it unless its content is there; None for one that changes nothing."""
    normal = await in_thread(NormalTar, tar, clamp_s=clamp_s)
    if normal.is_empty:
        return None
    async with asyncio.TaskGroup() as group:
        hashing = group.create_task(in_thread(_hash, normal))
        listing = group.create_task(in_thread(contents_of, normal))
    diff_id, size = hashing.result()
    await in_thread(contents.put, diff_id, listing.result().dump())
    found = await in_thread(records.find, diff_id, compression)
    if found is None or not await _is_there(repository, found.digest):
        stored = await store_blob(repository, compressed(normal, compression))
        found = Descriptor(media_types.layer_media_type(compression), stored.digest, stored.size)
        await in_thread(records.remember, diff_id, compression, found)
    return Layer(found.with_annotations({**annotations, UNCOMPRESSED_BYTES: str(size)}), diff_id)


def _hash(pieces: Iterable[bytes]) -> tuple[Digest, int]:
    hasher, size = hashlib.sha256(), 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
    return Digest(f"sha256:{hasher.hexdigest()}"), size


async def _is_there(repository: Repository, digest: Digest) -> bool:
    try:
        await repository.blobs.stat(digest)
    except BlobNotFound:
        return False
    return True


async def store_blob(repository: Repository, pieces: Iterable[bytes]) -> Descriptor:
    """Ingests what a blocking iterator gives."""
    async with repository.blobs.ingest() as writer:
        async with contextlib.aclosing(ahead(pieces)) as produced:
            async for data in produced:
                await writer.write(data)
        return await writer.commit()


async def ahead(pieces: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The pieces of a blocking iterator, the next one made in a thread while this one is used."""
    iterator = iter(pieces)
    pending = asyncio.create_task(in_thread(next, iterator, None))
    try:
        while (data := await pending) is not None:
            pending = asyncio.create_task(in_thread(next, iterator, None))
            yield data
    finally:
        if not pending.done():
            pending.cancel()
            await asyncio.wait({pending})
