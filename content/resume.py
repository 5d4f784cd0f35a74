"""Continues an upload that a killed process left open.

The tar is made again from the tree as it is now, part by part; a part that the store has already is not sent
again. "Has already" is decided by bytes, not by times: number, place, size and CRC-32 of the part just made
must be those that the journal noted, the store must list the part under the same ETag, and where that ETag is
an MD5 it must be the part's. So a file that changed since costs the parts that differ from before, and cannot
make a snapshot that is neither the old tree nor the new one.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from content import keys
from content.errors import ObjectNotFound, UploadGone
from content.journal import NotedPart, OpenUpload, UploadJournal
from content.keys import Workspace
from content.objects.base import MultipartStore, PartRef, Upload
from content.snapshot import Pointer

MAX_AGE_S = 43_200.0
"""Half of what a sweep, or a bucket's lifecycle rule of a day, leaves an upload."""
_MD5 = re.compile(r'^"?([0-9a-f]{32})"?$')


@dataclass(frozen=True, slots=True)
class Resumed:
    """An upload to continue; empty ``parts`` for a new one."""

    upload: Upload
    snapshot_id: str
    parts: Mapping[int, NotedPart] = field(default_factory=dict)


class CannotResume(Exception):
    """There is an upload, and it is better to start again; says why."""


def is_same(noted: NotedPart | None, ref: PartRef, data: bytes | bytearray | None, source: str) -> bool:
    """Whether the store has this part already. ``data`` is None for one that the store copies from
    ``source``. Hashes ``data``: not for the event loop.
    """
    if noted is None or noted.source != source:
        return False
    if (noted.offset, noted.size_bytes, noted.crc32) != (ref.offset, ref.size_bytes, ref.crc32):
        return False
    etag = _MD5.match(noted.etag)
    if data is None or etag is None:
        return True
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == etag[1]  # noqa: TID251 (the store's choice)


async def find(
    store: MultipartStore,
    journal: UploadJournal,
    pending: OpenUpload,
    pointer: Pointer,
    *,
    copies: bool,
    now_s: float,
) -> Resumed:
    """The upload to continue. Raises CannotResume."""
    if pending.upload_id is None:
        raise CannotResume("the store may not have begun it")
    if now_s - pending.started_s > MAX_AGE_S:
        raise CannotResume("it is too old")
    if pending.parent != (pointer.latest.id if pointer.latest else None):
        raise CannotResume("another backup was committed since")
    if pending.copies != copies:
        raise CannotResume("it was planned otherwise")
    upload = Upload(pending.key, pending.upload_id, pending.started_s, pending.checked)
    noted = await journal.parts()
    try:
        listed = await store.list_parts(upload)
    except UploadGone:
        # Completed, perhaps, when only the answer was lost: then every part must be as it was.
        try:
            await store.stat(pending.key)
        except ObjectNotFound:
            raise CannotResume("the store does not have it any more") from None
        return Resumed(upload, pending.snapshot_id, noted)
    held = {
        number: part
        for number, part in noted.items()
        if (there := listed.get(number)) is not None
        and (there.etag, there.ref.size_bytes) == (part.etag, part.size_bytes)
        and there.ref.crc32 in {0, part.crc32}
    }
    return Resumed(upload, pending.snapshot_id, held)


async def abandon(store: MultipartStore, workspace: Workspace, gone: OpenUpload | Resumed) -> None:
    """Removes what an upload that became no snapshot left in the store."""
    tar_key = keys.tar_key(workspace, gone.snapshot_id)
    if isinstance(gone, Resumed):
        await store.abort_upload(gone.upload)
    elif gone.upload_id is not None:
        await store.abort_upload(Upload(tar_key, gone.upload_id))
    for key in (tar_key, keys.index_key(workspace, gone.snapshot_id)):
        async for upload in store.list_uploads(key):
            await store.abort_upload(upload)
        await store.delete(key)
