"""Members too large to be held: written by ranges or from front to back, and never left damaged."""

import contextlib
import io
import os
import random
import tarfile
import zlib
from array import array
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from content.archive.extract import Limits, TreeWriter
from content.errors import ArchiveCorrupt, LocalDiskError, UnsafeArchiveEntry
from content.large_files import Archive, restore_large
from content.objects.base import ObjectReader, Span
from content.objects.directory import DirectoryObjectStore
from content.objects.wrappers import Wrapper
from content.selection import Window
from servicekit.throttle import Throttle

_DATA = random.Random(7).randbytes(1 << 20) * 33 + b"a part of a block"
_KEY = "x.tar"


def _tar(name: str = "d/large", **records: str) -> bytes:
    """One member, a little before and after it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={}) as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(_DATA), 1.5, 0o640
        info.uid, info.gid = os.geteuid(), os.getegid()
        info.pax_headers = dict(records)
        tar.addfile(info, io.BytesIO(_DATA))
        end = file.tell()
    return b"before" + file.getvalue()[:end] + b"behind"


def _window(tar: bytes) -> Window:
    member = tar[6:-6]
    return Window(
        Span(6, len(member)), array("Q", [6]), array("Q", [len(member)]), array("L", [zlib.crc32(member)])
    )


class _Damaging(Wrapper):
    """Changes the byte at ``at`` in the first ``times`` reads of it."""

    def __init__(self, inner: DirectoryObjectStore, at: int, times: int) -> None:
        super().__init__(inner)
        self.at = at
        self.times = times

    @contextlib.asynccontextmanager
    async def open(
        self, key: str, span: Span | None = None, *, if_match: str | None = None
    ) -> AsyncIterator[ObjectReader]:
        assert span is not None
        async with self.inner.open(key, span, if_match=if_match) as reader:
            if span.start <= self.at < span.stop and self.times:
                self.times -= 1
                yield _DamagingReader(reader, self.at - span.start)
            else:
                yield reader


class _DamagingReader:
    def __init__(self, inner: ObjectReader, at: int) -> None:
        self._inner = inner
        self.info = inner.info
        self._at = at

    async def pour(self, sink: Callable[[bytes], object], limit_bytes: int) -> int:
        def damage(piece: bytes) -> None:
            if 0 <= self._at < len(piece):
                piece = piece[: self._at] + bytes([piece[self._at] ^ 4]) + piece[self._at + 1 :]
            self._at -= len(piece)
            sink(piece)

        return await self._inner.pour(damage, limit_bytes)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DirectoryObjectStore]:
    store = DirectoryObjectStore(tmp_path / "store")
    yield store
    await store.close()


@pytest.fixture
def tree(tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    writer = TreeWriter(descriptor, Limits(1 << 40, 1 << 20, devices=True), where=str(root))
    yield writer
    writer.close()
    os.close(descriptor)


_LONG = {"comment": "x" * 100_000}


@pytest.mark.parametrize("records", [{}, _LONG], ids=["by ranges", "from front to back"])
async def test_a_large_file_is_what_it_was(
    tmp_path: Path, store: DirectoryObjectStore, tree: TreeWriter, records: dict[str, str]
) -> None:
    tar = _tar(**records)
    await store.put(_KEY, tar)
    await restore_large(Archive(store, _KEY), _window(tar), tree, Throttle())
    tree.finish()
    restored = tmp_path / "root/d/large"
    assert restored.read_bytes() == _DATA
    assert restored.stat().st_mode & 0o7777 == 0o640
    assert restored.stat().st_mtime_ns == 1_500_000_000
    assert tree.entries == 1


_PLACES = {
    "name": 6 + 1024,
    "checksum": 6 + 1024 + 150,
    "records": 6 + 512 + 3,
    "first byte": 6 + 1536,
    "second range": 6 + 1536 + (16 << 20),
    "last byte": 6 + 1536 + len(_DATA) - 1,
}


@pytest.mark.parametrize("place", _PLACES)
async def test_what_was_damaged_on_the_way_is_fetched_again(
    tmp_path: Path, store: DirectoryObjectStore, tree: TreeWriter, place: str
) -> None:
    tar = _tar()
    await store.put(_KEY, tar)
    damaging = _Damaging(store, _PLACES[place], times=1)
    await restore_large(Archive(damaging, _KEY), _window(tar), tree, Throttle())
    assert not damaging.times
    assert [path.read_bytes() == _DATA for path in (tmp_path / "root").rglob("*") if path.is_file()] == [True]
    assert tree.entries == 1


@pytest.mark.parametrize("place", _PLACES)
async def test_what_stays_damaged_is_an_error(
    store: DirectoryObjectStore, tree: TreeWriter, place: str
) -> None:
    tar = _tar()
    await store.put(_KEY, tar)
    with pytest.raises(ArchiveCorrupt):
        await restore_large(
            Archive(_Damaging(store, _PLACES[place], 99), _KEY), _window(tar), tree, Throttle()
        )


async def test_zeros_behind_the_data_are_made_here(
    tmp_path: Path, store: DirectoryObjectStore, tree: TreeWriter
) -> None:
    tar = _tar()
    await store.put(_KEY, tar)
    damaging = _Damaging(store, len(tar) - 7, 99)
    await restore_large(Archive(damaging, _KEY), _window(tar), tree, Throttle())
    assert damaging.times == 99
    assert (tmp_path / "root/d/large").read_bytes() == _DATA


@pytest.mark.parametrize(
    ("name", "refusal"),
    [("../large", UnsafeArchiveEntry), ("/large", UnsafeArchiveEntry), ("n" * 300, LocalDiskError)],
)
async def test_a_name_that_leads_out_is_refused(
    tmp_path: Path, store: DirectoryObjectStore, tree: TreeWriter, name: str, refusal: type[Exception]
) -> None:
    tar = _tar(name)
    await store.put(_KEY, tar)
    with pytest.raises(refusal):
        await restore_large(Archive(store, _KEY), _window(tar), tree, Throttle())
    assert not list((tmp_path / "root").iterdir())


async def test_a_file_larger_than_what_is_free_is_refused(
    tmp_path: Path, store: DirectoryObjectStore, tree: TreeWriter
) -> None:
    tree.limits = Limits(len(_DATA) - 1, 10, devices=False)
    tar = _tar()
    await store.put(_KEY, tar)
    with pytest.raises(UnsafeArchiveEntry, match="more than"):
        await restore_large(Archive(store, _KEY), _window(tar), tree, Throttle())
    assert not list((tmp_path / "root").iterdir())
