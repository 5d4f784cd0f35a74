"""Extractor processes: the same tree as without them, the same refusals, and no hanging when one dies."""

import io
import os
import pickle
import signal
import tarfile
import zlib
from array import array
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from content import errors
from content.archive.extract import Limits, TreeWriter
from content.errors import ArchiveCorrupt, ContentError, LocalDiskError, UnsafeArchiveEntry
from content.extractors import ExtractorDied, Extractors
from content.objects.base import Span
from content.selection import Window

COUNTS = [pytest.param(0, id="in a thread"), pytest.param(2, id="in processes")]
_PLENTY = Limits(bytes=1 << 40, entries=1 << 20, devices=True)


def _window(*members: tuple[str, bytes, dict[str, object]]) -> tuple[bytes, Window]:
    """(the bytes, where in them each member is)."""
    file = io.BytesIO()
    starts: list[int] = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid, info.mtime = len(data), os.geteuid(), os.getegid(), 1.5
            for field, value in fields.items():
                setattr(info, field, value)
            starts.append(file.tell())
            tar.addfile(info, io.BytesIO(data))
        end = file.tell()
    whole = file.getvalue()[:end]
    lengths = [stop - start for start, stop in zip(starts, [*starts[1:], end], strict=True)]
    checks = [zlib.crc32(whole[at : at + length]) for at, length in zip(starts, lengths, strict=True)]
    return whole, Window(Span(0, end), array("Q", starts), array("Q", lengths), array("L", checks))


def _giving(data: bytes) -> Callable[[memoryview], Awaitable[None]]:
    async def fetch(room: memoryview) -> None:
        room[:] = data

    return fetch


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Callable[[Limits], TreeWriter]]:
    root = tmp_path / "root"
    root.mkdir()
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield lambda limits: TreeWriter(descriptor, limits, where=str(root))
    os.close(descriptor)


@pytest.mark.parametrize("processes", COUNTS)
async def test_windows_become_one_tree(
    tmp_path: Path, tree: Callable[[Limits], TreeWriter], processes: int
) -> None:
    writer = tree(_PLENTY)
    first = _window(
        ("d", b"", {"type": tarfile.DIRTYPE, "mode": 0o500}),
        ("d/a", b"one", {"mode": 0o640}),
        ("link", b"", {"type": tarfile.SYMTYPE, "linkname": "d/a"}),
    )
    second = _window(
        ("d/e/b", b"two" * 1000, {"mode": 0o4755}),
        ("hard", b"", {"type": tarfile.LNKTYPE, "linkname": "d/a"}),
    )
    async with Extractors(writer, "x.tar", processes=processes, windows=3) as extractors:
        for data, window in (first, second):
            await extractors.write(window, _giving(data))
        await extractors.hand_over()
    writer.finish()
    root = tmp_path / "root"
    assert (root / "link").read_bytes() == (root / "hard").read_bytes() == b"one"
    assert (root / "hard").samefile(root / "d/a")
    assert (root / "link").readlink() == Path("d/a")
    assert (root / "d/e/b").read_bytes() == b"two" * 1000
    assert (root / "d/e/b").stat().st_mode & 0o7777 == 0o4755
    assert (root / "d").stat().st_mode & 0o7777 == 0o500
    assert (root / "d").stat().st_mtime_ns == 1_500_000_000
    assert writer.entries == 5


@pytest.mark.parametrize("processes", COUNTS)
async def test_a_damaged_member_is_named_and_nothing_of_its_window_written(
    tmp_path: Path, tree: Callable[[Limits], TreeWriter], processes: int
) -> None:
    data, window = _window(("a", b"one", {}), ("b", b"two", {}))
    damaged = data.replace(b"two", b"twu")
    async with Extractors(tree(_PLENTY), "x.tar", processes=processes, windows=3) as extractors:
        with pytest.raises(ArchiveCorrupt, match="b"):
            await extractors.write(window, _giving(damaged))
        assert not list((tmp_path / "root").iterdir())
        await extractors.write(window, _giving(data))  # fetched once more
    assert (tmp_path / "root/b").read_bytes() == b"two"


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize(
    ("member", "limits", "refusal"),
    [
        (("../a", b"", {}), _PLENTY, UnsafeArchiveEntry),
        (("/a", b"", {}), _PLENTY, UnsafeArchiveEntry),
        (("a", b"", {"type": tarfile.CHRTYPE}), Limits(1, 1, devices=False), UnsafeArchiveEntry),
        (("a", b"1234", {}), Limits(3, 1, devices=True), UnsafeArchiveEntry),
        (("a" * 300, b"", {}), _PLENTY, LocalDiskError),
    ],
    ids=["dots", "absolute", "device", "too large", "name too long"],
)
async def test_refusals_are_the_same(
    tmp_path: Path,
    tree: Callable[[Limits], TreeWriter],
    member: tuple[str, bytes, dict[str, object]],
    limits: Limits,
    refusal: type[ContentError],
    processes: int,
) -> None:
    data, window = _window(member)
    async with Extractors(tree(limits), "x.tar", processes=processes, windows=3) as extractors:
        with pytest.raises(refusal):
            await extractors.write(window, _giving(data))
    assert not [path for path in tmp_path.rglob("*") if path.name != "root"]


async def test_a_process_that_dies_is_an_error_that_may_be_tried_again(
    tree: Callable[[Limits], TreeWriter],
) -> None:
    data, window = _window(("a", b"one", {}))
    async with Extractors(tree(_PLENTY), "x.tar", processes=1, windows=3) as extractors:
        await extractors.write(window, _giving(data))
        os.kill(extractors.pids[0], signal.SIGKILL)
        with pytest.raises(ExtractorDied, match="-9") as died:
            await extractors.write(window, _giving(data))
    assert died.value.retryable


async def test_no_process_outlives_its_parents_interest(tree: Callable[[Limits], TreeWriter]) -> None:
    async with Extractors(tree(_PLENTY), "x.tar", processes=2, windows=3) as extractors:
        pids = extractors.pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    "error",
    [
        ArchiveCorrupt("a", "x.tar"),
        UnsafeArchiveEntry("a", "because"),
        LocalDiskError("a", "full"),
        errors.StoreUnavailable("s3://b", "read k", "gone", 3.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_go_through_pickle_as_they_are(error: ContentError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
