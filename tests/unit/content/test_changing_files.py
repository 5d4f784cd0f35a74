"""Files that change while they are read, at a moment of the test's choosing: when a part is full."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from content.archive.excludes import Excludes
from content.archive.parts import Part, PartSink
from content.archive.walk import Found, Walk
from content.archive.writer import ArchiveWriter
from tests.support.trees import add_socket

LARGE = 20 << 20


class Archived:
    """A tar of ``tree``; ``meanwhile`` is called with the number of each part as it is full."""

    def __init__(self, tree: Path, meanwhile: Callable[[int], None]) -> None:
        self.lines: list[str] = []
        self._data = bytearray()

        def emit(part: Part) -> None:
            self._data += part.data[: part.size_bytes]
            meanwhile(part.number)

        self.writer = ArchiveWriter(PartSink(emit, bytearray, number=1, offset=0), self.lines.append)
        walk = Walk(str(tree), Excludes())
        for found in walk:
            self.writer.add(found)
        self.writer.close()
        self.left_out = {item.path: item.reason for item in [*walk.left_out, *self.writer.left_out]}

    def extracted(self) -> dict[str, bytes]:
        """What another tar reader makes of it: in step to the end, and the last of a name counts."""
        with tarfile.open(fileobj=io.BytesIO(self._data)) as archive:
            files = [(info.name, archive.extractfile(info)) for info in archive if info.isreg()]
            return {name: file.read() for name, file in files if file is not None}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(os.urandom(LARGE))
    (tmp_path / "z-last").write_bytes(b"still in step")
    return tmp_path


def _shrink(path: Path) -> None:
    os.truncate(path, 9 << 20)


def _shrink_below_a_part(path: Path) -> None:
    os.truncate(path, 100)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more" * 1000)


def _rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"another beginning")


def _make_sparse(path: Path) -> None:
    os.truncate(path, 5000)
    os.truncate(path, LARGE)


@pytest.mark.parametrize("change", [_shrink, _shrink_below_a_part, _empty, _grow, _rewrite, _make_sparse])
def test_a_file_that_changes_once_is_read_again_and_is_whole(
    tree: Path, change: Callable[[Path], None]
) -> None:
    archived = Archived(tree, lambda number: change(tree / "large") if number == 1 else None)
    assert archived.left_out == {}
    files = archived.extracted()
    if change is not _make_sparse:  # which this reader sees under another name
        assert files == {"large": (tree / "large").read_bytes(), "z-last": b"still in step"}
    assert files["z-last"] == b"still in step"


def test_a_file_that_never_holds_still_is_kept_as_last_read_and_named(tree: Path) -> None:
    archived = Archived(tree, lambda _: _rewrite(tree / "large"))
    assert archived.left_out == {"large": "kept changing while it was read; stored as last read"}
    assert set(archived.extracted()) == {"large", "z-last"}
    assert ",0,1,0," in next(line for line in archived.lines if line.startswith('["large"')), "no inode"


def test_a_file_deleted_while_it_is_read_is_in_the_backup(tree: Path) -> None:
    content = (tree / "large").read_bytes()
    archived = Archived(tree, lambda number: (tree / "large").unlink() if number == 1 else None)
    assert archived.extracted()["large"] == content


def test_a_file_deleted_before_it_is_reached_is_named(tree: Path) -> None:
    archived = Archived(tree, lambda number: (tree / "z-last").unlink() if number == 1 else None)
    assert archived.left_out == {"z-last": "vanished while the tree was read"}


def _to_fifo(path: Path) -> None:
    os.mkfifo(path)


def _to_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _to_directory(path: Path) -> None:
    path.mkdir()


def _to_nothing(path: Path) -> None:
    """Stays deleted."""


@pytest.mark.parametrize("size", [0, 100, 3 << 20])
@pytest.mark.parametrize("flip", [_to_fifo, _to_link, _to_directory, add_socket, _to_nothing])
def test_what_became_something_else_since_it_was_seen_is_not_taken_for_a_file(
    tmp_path: Path, size: int, flip: Callable[[Path], None]
) -> None:
    """Between the look and the open; a FIFO must not block, a link must not be followed."""
    path = tmp_path / "changing"
    path.write_bytes(os.urandom(size))
    status = path.lstat()
    path.unlink()
    flip(path)
    data, lines = bytearray(), []
    sink = PartSink(lambda part: data.extend(part.data[: part.size_bytes]), bytearray, number=1, offset=0)
    writer = ArchiveWriter(sink, lines.append)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        writer.add(Found("changing", "changing", descriptor, status))
    finally:
        os.close(descriptor)
    writer.close()
    assert [item.path for item in writer.left_out] == ["changing"]
    assert lines == []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == []


@pytest.mark.parametrize("is_needed", [False, True])
def test_a_large_file_is_read_in_steps_that_leave_room_for_neighbours(tree: Path, *, is_needed: bool) -> None:
    data, looks = bytearray(), []

    def look() -> bool:
        looks.append(None)
        return is_needed

    sink = PartSink(lambda part: data.extend(part.data[: part.size_bytes]), bytearray, number=1, offset=0)
    writer = ArchiveWriter(sink, lambda _: None, look=look)
    for found in Walk(str(tree), Excludes()):
        writer.add(found)
    writer.close()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        large = archive.extractfile("large")
        assert large is not None
        assert large.read() == (tree / "large").read_bytes()
    assert len(looks) >= LARGE >> 20
