"""Finds out what a server really does, because some say yes and do nothing.

Tried with tiny objects under a key of its own, which are removed: a put that must be refused because the
object exists, a part with a wrong checksum that must be refused, and a copied part that must be there.
"""

import dataclasses
import secrets
import zlib
from collections.abc import Awaitable, Callable

from content import keys
from content.errors import ContentError, StoreDenied, StoreUnavailable
from content.objects.base import MultipartStore, PartRef, StoreProperties, read_all
from servicekit.backoff import Backoff, retry

_MIN_COPY_BYTES = 5 << 20
_BACKOFF = Backoff(attempts=4)


async def probe(store: MultipartStore, learn: Callable[[StoreProperties], None]) -> StoreProperties:
    """What ``store`` was seen to do; ``learn`` makes it act on what is known so far. Raises what
    makes it unusable altogether (StoreUnavailable,
    StoreDenied, StoreRefused for a bucket that is not there).
    """
    key = keys.probe_key(secrets.token_hex(8))
    await store.put(key, b"probe")
    try:
        seen = dataclasses.replace(
            store.properties,
            conditional_put=await retry(lambda: _refuses_overwrite(store, key), backoff=_BACKOFF),
            checks_crc32=await _can(lambda: _refuses_wrong_crc32(store, key)),
        )
        # Some check, and copy, but cannot do both in one upload.
        for checks_copies in (True, False):
            seen = dataclasses.replace(seen, checks_copies=checks_copies and seen.checks_crc32)
            learn(seen)
            if await _can(lambda: _copies_parts(store, key)):
                return dataclasses.replace(seen, part_copy=True)
        return dataclasses.replace(seen, part_copy=False, checks_copies=False)
    finally:
        await store.delete(key)


async def _can(attempt: Callable[[], Awaitable[bool]]) -> bool:
    """A bad moment is no answer; a server that fails each time cannot."""
    try:
        return await retry(attempt, backoff=_BACKOFF)
    except StoreUnavailable:
        return False


async def _refuses_overwrite(store: MultipartStore, key: str) -> bool:
    try:
        await store.put(key, b"over", if_absent=True)
    except ContentError as error:
        if error.retryable:
            raise
    else:
        return False
    etag = (await store.stat(key)).etag
    try:
        await store.put(key, b"over", if_match='"00000000000000000000000000000000"')
    except ContentError as error:
        if error.retryable:
            raise
    else:
        return False
    try:
        await store.put(key, b"probe", if_match=etag)
    except ContentError as error:
        if error.retryable:
            raise
        return False
    return True


async def _refuses_wrong_crc32(store: MultipartStore, key: str) -> bool:
    """Also whether the whole object's checksum is compared on completion."""
    data = b"checked"
    right = zlib.crc32(data)
    try:
        upload = await store.create_upload(key)
    except (StoreUnavailable, StoreDenied):
        raise
    except ContentError:
        return False
    try:
        part = await store.put_part(upload, PartRef(1, 0, len(data), right), data)
        try:
            await store.complete_upload(upload, [part], right ^ 1)
        except ContentError:
            pass
        else:
            return False
        upload_2 = await store.create_upload(key)
        part = await store.put_part(upload_2, PartRef(1, 0, len(data), right), data)
        return (await store.complete_upload(upload_2, [part], right)).size_bytes == len(data)
    except ContentError as error:
        if error.retryable:
            raise
        return False
    finally:
        await store.abort_upload(upload)


async def _copies_parts(store: MultipartStore, key: str) -> bool:
    """Copies a tail of an object just over the least size that may be copied from, and reads it back."""
    data = secrets.token_bytes(4096) * (_MIN_COPY_BYTES // 4096 + 1)
    start, length = len(data) - 4096 - 7, 4096
    expected = data[start : start + length]
    ref = PartRef(1, 0, length, zlib.crc32(expected))
    try:
        await store.put(key, data)
        source = await store.stat(key)
        upload = await store.create_upload(key + "-copy", copies=True)
        try:
            part = await store.copy_part(upload, ref, source, start)
            await store.complete_upload(upload, [part], ref.crc32)
            return await read_all(store, upload.key) == expected
        finally:
            await store.abort_upload(upload)
            await store.delete(upload.key)
    except ContentError as error:
        if error.retryable:
            raise
        return False
