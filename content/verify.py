"""Proves a snapshot by reading it again: the index, its sums, and every member or a sample of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from content import transfer, workers
from content.archive import crc32
from content.errors import IntegrityError, NotFound, ObjectCorrupt
from content.objects.base import ObjectSource
from content.restore import select
from content.selection import Window
from content.snapshot import Snapshot
from content.streams import SpanStream


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """``problems`` is empty when everything that was read is what was written."""

    snapshot_id: str
    entries: int
    bytes_read: int
    bytes_total: int
    problems: Sequence[str]


async def verify(
    store: ObjectSource, snapshot: Snapshot, *, sample: float = 1.0, seed: int = 0
) -> VerifyResult:
    """Reads a share ``sample`` of the windows (all by default), each member against its CRC-32.

    Damage is reported, not raised; a store that cannot be reached is raised.
    """
    try:
        await check_tar(store, snapshot)
        selection = await select(store, snapshot, (), rebuild=False)
        if selection.entries != snapshot.entries:
            raise ObjectCorrupt(
                snapshot.index_key, f"it has {selection.entries} entries, not {snapshot.entries}"
            )
    except (IntegrityError, NotFound) as error:
        return VerifyResult(snapshot.id, 0, 0, snapshot.tar_bytes, [str(error)])
    chosen = selection.windows
    if sample < 1.0 and chosen:
        count = max(1, round(len(chosen) * sample))
        chosen = random.Random(seed).sample(chosen, count)  # noqa: S311 (a sample, not a secret)
    problems: list[str] = []

    async def checked(window: Window) -> None:
        try:
            try:
                await _check(store, snapshot.tar_key, window)
            except IntegrityError:  # perhaps on the way only
                await _check(store, snapshot.tar_key, window)
        except (IntegrityError, NotFound) as error:
            problems.append(str(error))

    await workers.each(chosen, checked, concurrency=store.properties.concurrency)
    read = sum(window.span.length for window in chosen)
    return VerifyResult(snapshot.id, selection.entries, read, snapshot.tar_bytes, sorted(problems))


async def check_tar(store: ObjectSource, snapshot: Snapshot) -> None:
    """Asks the store whether it has the tar that was committed; reads nothing. Raises ObjectNotFound,
    ObjectCorrupt.
    """
    info = await store.stat(snapshot.tar_key)
    if info.size_bytes != snapshot.tar_bytes:
        reason = f"it has {info.size_bytes} bytes, not {snapshot.tar_bytes}"
        raise ObjectCorrupt(snapshot.tar_key, reason)
    if info.crc32 not in {None, snapshot.tar_crc32}:
        raise ObjectCorrupt(snapshot.tar_key, "the store's checksum is not ours")


async def _check(store: ObjectSource, key: str, window: Window) -> None:
    if window.is_streamed:
        async with SpanStream(store, key, window.span) as stream:
            await stream.consume(stream.drain)
            if stream.crc32 != window.crc32[0]:
                raise ObjectCorrupt(key, f"the member at byte {window.span.start} is damaged")
        return
    data = memoryview(bytearray(window.span.length))
    await transfer.get_span(store, key, window.span, data)
    for offset, length, expected in zip(window.offsets, window.lengths, window.crc32, strict=True):
        at = offset - window.span.start
        if crc32.of(data[at : at + length]) != expected:
            raise ObjectCorrupt(key, f"the member at byte {offset} is damaged")
