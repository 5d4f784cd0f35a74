import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from content.archive.excludes import Excludes
from content.archive.readahead import Readahead
from content.archive.walk import Walk

_libc = ctypes.CDLL(None, use_errno=True)
_FILES = 600
_DATA = os.urandom(20_000)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """On disk, and out of the kernel's cache where the file system lets go of it."""
    for number in range(_FILES):
        path = tmp_path / f"d{number // 50:02}" / f"{number:03}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_DATA)
    os.sync()
    for path in tmp_path.rglob("*/*"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return tmp_path


def _cached(tree: Path) -> Iterator[Path]:
    """Those whose beginning the kernel has; looking (mincore) makes it read nothing."""
    for path in sorted(tree.rglob("*/*")):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
            there = ctypes.create_string_buffer(len(mapped) // mmap.PAGESIZE + 1)
            assert _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), there) == 0
            if there[0][0] & 1:
                yield path


def test_cold_files_are_read_before_the_walk_comes_to_them(tree: Path) -> None:
    with Readahead(str(tree), Excludes()) as readahead:
        walk = iter(readahead.following(Walk(str(tree), Excludes())))
        next(walk)
        while len(list(_cached(tree))) < _FILES * 0.9:  # the test's own timeout ends it
            pass


def test_nothing_is_read_ahead_while_the_disk_is_needed_by_others(tree: Path) -> None:
    if list(_cached(tree)):
        pytest.skip("this file system keeps what it is told to let go")
    with Readahead(str(tree), Excludes(), is_held=lambda: True) as readahead:
        assert len(list(readahead.following(Walk(str(tree), Excludes())))) > _FILES
    assert not list(_cached(tree))


def test_excluded_directories_are_left_alone(tree: Path) -> None:
    excludes = Excludes(["/d00/"])
    if list(_cached(tree)):
        pytest.skip("this file system keeps what it is told to let go")
    with Readahead(str(tree), excludes):
        while len(list(_cached(tree))) < (_FILES - 50) * 0.9:
            pass
    assert not [path for path in _cached(tree) if path.parent.name == "d00"]


def test_the_walk_is_passed_on_as_it_is_whatever_the_thread_meets(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"x")
    with Readahead(str(tmp_path), Excludes()) as readahead:
        found = [one.path for one in readahead.following(Walk(str(tmp_path), Excludes()))]
    assert found == [".", "a", "a/b", "a/b/file", "fifo", "gone", "link"]


def test_leaving_early_ends_the_thread(tree: Path) -> None:
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with Readahead(str(tree), Excludes()) as readahead:
        next(iter(readahead.following(Walk(str(tree), Excludes()))))
    assert len(list(Path("/proc/self/fd").iterdir())) <= open_before + 1


def test_a_tree_that_is_gone_is_no_concern_of_the_thread(tmp_path: Path) -> None:
    with Readahead(str(tmp_path / "none"), Excludes()) as readahead:
        assert list(readahead.following([])) == []
