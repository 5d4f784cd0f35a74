"""The index of a snapshot: fetched, or made again from the tar when it is lost."""

import asyncio
import shutil
from dataclasses import replace
from typing import IO

import structlog

from content import transfer
from content.archive.rebuild import rebuild
from content.catalog import Catalog
from content.errors import IntegrityError, NotFound
from content.objects.base import MultipartStore, ObjectSource, Span
from content.snapshot import Pointer, Snapshot
from content.streams import SpanStream

_log = structlog.get_logger(__name__)


async def fetch(store: ObjectSource, snapshot: Snapshot, file: IO[bytes]) -> None:
    """The index into ``file``, left at its start. Raises ObjectNotFound, ObjectCorrupt."""
    await transfer.get_file(
        store, snapshot.index_key, file, size_bytes=snapshot.index_bytes, sha256=snapshot.index_sha256
    )


async def fetch_or_rebuild(store: ObjectSource, snapshot: Snapshot, file: IO[bytes]) -> bool:
    """As `fetch`; a lost index is made again by reading the whole tar, and then the answer is True. Raises
    ObjectNotFound, ObjectCorrupt, MalformedArchive of the tar.
    """
    try:
        await fetch(store, snapshot, file)
    except (IntegrityError, NotFound) as error:
        _log.warning("index_lost", snapshot=snapshot.id, error=str(error))
    else:
        return False
    made = await _rebuilt(store, snapshot)
    try:
        file.seek(0)
        file.truncate()
        await asyncio.to_thread(shutil.copyfileobj, made, file, 1 << 20)
        file.seek(0)
    finally:
        made.close()
    return True


async def _rebuilt(store: ObjectSource, snapshot: Snapshot) -> IO[bytes]:
    span = Span(0, snapshot.tar_bytes)
    async with SpanStream(store, snapshot.tar_key, span) as stream:
        return await stream.consume(
            lambda: rebuild(
                stream,
                snapshot.id,
                snapshot.tar_key,
                tar_bytes=snapshot.tar_bytes,
                tar_crc32=snapshot.tar_crc32,
            )
        )


async def repair(store: MultipartStore, catalog: Catalog, snapshot: Snapshot, file: IO[bytes]) -> Snapshot:
    """Puts a lost index back, and its new size and checksum into the record; ``file`` is for its bytes.
    Returns the record as it is then, the same when nothing was lost. Raises as `fetch_or_rebuild`.
    """
    if not await fetch_or_rebuild(store, snapshot, file):
        return snapshot
    stored = await transfer.put_file(store, snapshot.index_key, file)
    mended = replace(snapshot, index_bytes=stored.size_bytes, index_sha256=stored.sha256)

    def edit(now: Pointer) -> Pointer:
        return replace(now, snapshots=tuple(mended if s.id == mended.id else s for s in now.snapshots))

    await catalog.change(edit)
    return mended
