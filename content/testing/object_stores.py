"""What every MultipartStore must do, as a suite; a test class inherits it and gives a ``store`` fixture."""

import asyncio
import threading
import zlib

import pytest

from content.errors import (
    ObjectCorrupt,
    ObjectNotFound,
    PreconditionFailed,
    StoreRefused,
    StoreUnavailable,
    UploadGone,
)
from content.objects.base import MultipartStore, PartRef, Span, read_all

_PART = 5 << 20


def _ref(number: int, offset: int, data: bytes) -> PartRef:
    return PartRef(number, offset, len(data), zlib.crc32(data))


class ObjectStoreSuite:
    """Run over every store and every wrapper."""

    async def test_what_was_put_is_read_back_whole_and_in_spans(self, store: MultipartStore) -> None:
        data = bytes(range(256)) * 40
        info = await store.put("a/b.bin", data)
        assert info.size_bytes == len(data)
        assert await read_all(store, "a/b.bin") == data
        assert await read_all(store, "a/b.bin", Span(100, 1)) == data[100:101]
        assert await read_all(store, "a/b.bin", Span(9000, len(data) - 9000)) == data[9000:]
        assert (await store.stat("a/b.bin")).size_bytes == len(data)

    @pytest.mark.parametrize("span", [Span(90, 11), Span(100, 1), Span(200, 5)])
    async def test_an_object_that_ends_before_a_span_is_corrupt(
        self, store: MultipartStore, span: Span
    ) -> None:
        await store.put("short", bytes(100))
        with pytest.raises(ObjectCorrupt, match="short"):
            await read_all(store, "short", span)

    async def test_a_body_is_poured_as_far_as_was_asked(self, store: MultipartStore) -> None:
        data = bytes(range(256)) * 4096
        await store.put("poured", data)
        pieces: list[bytes] = []
        async with store.open("poured", Span(1, len(data) - 1)) as reader:
            counts = [await reader.pour(pieces.append, 600_000) for _ in range(3)]
        assert counts == [600_000, len(data) - 600_001, 0]
        assert b"".join(pieces) == data[1:]

    async def test_a_cancelled_pour_is_over_when_its_sink_is(self, store: MultipartStore) -> None:
        await store.put("cancelled", bytes(1 << 20))
        begun, go_on = threading.Event(), threading.Event()

        def sink(_piece: bytes) -> None:
            begun.set()
            go_on.wait()

        async with store.open("cancelled") as reader:
            pouring = asyncio.create_task(reader.pour(sink, 1 << 20))
            await asyncio.to_thread(begun.wait)
            pouring.cancel()
            assert not (await asyncio.wait({pouring}, timeout=0.01))[0]
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await pouring

    async def test_an_empty_object_is_an_object(self, store: MultipartStore) -> None:
        await store.put("empty", b"")
        assert await read_all(store, "empty") == b""

    async def test_absent_objects_say_so(self, store: MultipartStore) -> None:
        with pytest.raises(ObjectNotFound):
            await store.stat("none")
        with pytest.raises(ObjectNotFound):
            await read_all(store, "none")
        await store.delete("none")

    async def test_a_put_replaces_and_a_delete_removes(self, store: MultipartStore) -> None:
        await store.put("x", b"one")
        first = await store.stat("x")
        await store.put("x", b"another")
        assert await read_all(store, "x") == b"another"
        assert (await store.stat("x")).etag != first.etag
        await store.delete("x")
        with pytest.raises(ObjectNotFound):
            await store.stat("x")

    async def test_lists_by_prefix_and_in_order(self, store: MultipartStore) -> None:
        for key in ("w/2", "w/1", "w/sub/3", "v/1"):
            await store.put(key, b"x")
        assert [info.key async for info in store.list("w/")] == ["w/1", "w/2", "w/sub/3"]
        assert [info.key async for info in store.list("nothing/")] == []

    async def test_conditional_puts_hold_where_they_are_promised(self, store: MultipartStore) -> None:
        if not store.properties.conditional_put:
            pytest.skip("this store does not promise conditional puts")
        first = await store.put("p", b"1", if_absent=True)
        with pytest.raises(PreconditionFailed):
            await store.put("p", b"2", if_absent=True)
        second = await store.put("p", b"3", if_match=(await store.stat("p")).etag)
        with pytest.raises(PreconditionFailed):
            await store.put("p", b"4", if_match=first.etag)
        assert await read_all(store, "p") == b"3"
        assert second.etag

    async def test_reading_can_be_pinned_to_a_version(self, store: MultipartStore) -> None:
        if not store.properties.conditional_put:
            pytest.skip("this store knows no conditions")
        await store.put("v", b"one")
        etag = (await store.stat("v")).etag
        assert await read_all(store, "v", if_match=etag) == b"one"
        await store.put("v", b"other")
        with pytest.raises(PreconditionFailed):
            await read_all(store, "v", if_match=etag)

    async def test_parts_in_any_order_make_one_object(self, store: MultipartStore) -> None:
        one, two = b"1" * _PART, b"2" * 1000
        upload = await store.create_upload("big")
        second = await store.put_part(upload, _ref(2, _PART, two), two)
        first = await store.put_part(upload, _ref(1, 0, one), bytearray(one))
        assert set(await store.list_parts(upload)) == {1, 2}
        with pytest.raises(ObjectNotFound):
            await store.stat("big")
        made = await store.complete_upload(upload, [first, second], zlib.crc32(one + two))
        assert made.size_bytes == _PART + 1000
        assert await read_all(store, "big") == one + two

    async def test_a_part_sent_again_replaces_the_first(self, store: MultipartStore) -> None:
        upload = await store.create_upload("again")
        await store.put_part(upload, _ref(1, 0, b"wrong"), b"wrong")
        try:
            part = await store.put_part(upload, _ref(1, 0, b"right"), b"right")
        except StoreRefused:
            pytest.skip("this store takes each part once, and says so")
        await store.complete_upload(upload, [part], zlib.crc32(b"right"))
        assert await read_all(store, "again") == b"right"

    async def test_a_damaged_part_is_refused_where_checks_are_promised(self, store: MultipartStore) -> None:
        if not store.properties.checks_crc32:
            pytest.skip("this store checks nothing")
        upload = await store.create_upload("damaged")
        with pytest.raises((StoreRefused, StoreUnavailable)):  # the damage may be of this one try
            await store.put_part(upload, PartRef(1, 0, 5, zlib.crc32(b"right")), b"wrong")
        await store.abort_upload(upload)

    async def test_aborted_uploads_are_gone(self, store: MultipartStore) -> None:
        upload = await store.create_upload("gone")
        assert [open_.key async for open_ in store.list_uploads("gone")] == ["gone"]
        await store.abort_upload(upload)
        await store.abort_upload(upload)
        assert [open_.key async for open_ in store.list_uploads("gone")] == []
        with pytest.raises(UploadGone):
            await store.list_parts(upload)

    async def test_copied_parts_come_from_the_version_that_was_meant(self, store: MultipartStore) -> None:
        if not store.properties.part_copy:
            pytest.skip("this store copies no parts")
        data = bytes(range(256)) * ((_PART + 4096) // 256)
        await store.put("source", data)
        source = await store.stat("source")
        upload = await store.create_upload("copy", copies=True)
        kept = data[512 : 512 + _PART]
        first = await store.copy_part(upload, _ref(1, 0, kept), source, 512)
        second = await store.put_part(upload, _ref(2, _PART, b"tail"), b"tail")
        await store.put("source", b"changed")
        with pytest.raises((PreconditionFailed, StoreRefused)):
            await store.copy_part(upload, _ref(3, 0, kept), source, 512)
        await store.complete_upload(upload, [first, second], zlib.crc32(kept + b"tail"))
        assert await read_all(store, "copy") == kept + b"tail"
