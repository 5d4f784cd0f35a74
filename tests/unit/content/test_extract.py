"""Nothing is written outside, whatever an archive says."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from content.archive.extract import Limits, TreeWriter
from content.archive.reader import TarReader
from content.errors import ContentError, MalformedArchive, UnsafeArchiveEntry


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("untouched")
    (tmp_path / "tree").mkdir()
    return tmp_path


def _extract(sandbox: Path, data: bytes, *, bytes_limit: int = 1 << 30, entries: int = 100) -> None:
    root = os.open(sandbox / "tree", os.O_RDONLY)
    writer = TreeWriter(root, Limits(bytes_limit, entries, devices=False), where="tree")
    try:
        reader = TarReader(io.BytesIO(data), "test.tar")
        for member in reader:
            writer.add(member, reader.chunks())
        writer.finish()
    finally:
        writer.close()
        os.close(root)


def _tar(*members: tuple[str, bytes, str]) -> bytes:
    """(name, type, link target) each; files hold ``evil``."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            if kind == tarfile.REGTYPE:
                info.size = 4
                archive.addfile(info, io.BytesIO(b"evil"))
            else:
                archive.addfile(info)
    return raw.getvalue()


_FILE, _LINK, _HARD, _DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([("../outside/victim", _FILE, "")], "../outside/victim"),
        ([("a/../../outside/victim", _FILE, "")], "a/../../outside/victim"),
        ([("/outside", _FILE, "")], "/outside"),
        ([("s", _LINK, "../outside"), ("s/victim", _FILE, "")], "s/victim"),
        ([("s", _LINK, "/"), ("s/tmp", _DIR, "")], "s/tmp"),
        ([("h", _HARD, "../outside/victim")], "../outside/victim"),
        ([("h", _HARD, "/etc/passwd")], "/etc/passwd"),
        ([("s", _LINK, "../outside"), ("h", _HARD, "s/victim")], "h"),
        ([("h", _HARD, "missing")], "h"),
        ([("dev", tarfile.CHRTYPE, "")], "dev"),
        ([("dev", tarfile.BLKTYPE, "")], "dev"),
        ([("odd", b"Z", "")], "odd"),
        ([(".", _FILE, "")], "."),
    ],
    ids=[
        "dot-dot",
        "inner-dot-dot",
        "absolute",
        "file-through-symlink",
        "dir-through-symlink",
        "hard-link-out",
        "hard-link-absolute",
        "hard-link-through-symlink",
        "hard-link-to-nothing",
        "char-device",
        "block-device",
        "unknown-type",
        "file-as-root",
    ],
)
def test_hostile_entries_are_refused_by_name(
    sandbox: Path, members: list[tuple[str, bytes, str]], named: str
) -> None:
    with pytest.raises(UnsafeArchiveEntry) as caught:
        _extract(sandbox, _tar(*members))
    assert named in str(caught.value)
    assert (sandbox / "outside" / "victim").read_text() == "untouched"
    assert sorted(path.name for path in (sandbox / "outside").iterdir()) == ["victim"]


def test_a_symlink_does_not_become_a_way_even_when_the_file_came_first(sandbox: Path) -> None:
    _extract(sandbox, _tar(("a", _DIR, ""), ("a/f", _FILE, ""), ("b", _LINK, "../outside")))
    assert str((sandbox / "tree" / "b").readlink()) == "../outside"
    assert (sandbox / "outside" / "victim").read_text() == "untouched"


def test_bombs_are_refused_before_they_go_off(sandbox: Path) -> None:
    with pytest.raises(UnsafeArchiveEntry, match="'second'"):
        _extract(sandbox, _tar(("first", _FILE, ""), ("second", _FILE, "")), bytes_limit=5)
    many = [(name, _FILE, "") for name in ("first", "second", "third")]
    with pytest.raises(UnsafeArchiveEntry, match="'third'"):
        _extract(sandbox, _tar(*many), entries=2)


def test_a_later_member_of_a_name_replaces_an_earlier_one(sandbox: Path) -> None:
    _extract(sandbox, _tar(("x", _LINK, "nowhere"), ("x", _FILE, ""), ("y", _FILE, ""), ("y", _LINK, "x")))
    assert (sandbox / "tree" / "x").read_bytes() == b"evil"
    assert str((sandbox / "tree" / "y").readlink()) == "x"


def _flips(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), 97):
        yield data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda data: [data[:-1000], data[:700], data[:512], b""], _flips],
    ids=["cut", "flip"],
)
def test_damage_is_refused_or_harmless(sandbox: Path, damage: Callable[[bytes], Iterator[bytes]]) -> None:
    good = _tar(("d", _DIR, ""), ("d/f", _FILE, ""))[:3072]
    for number, data in enumerate(damage(good)):
        tree = sandbox / "tree" / str(number)
        tree.mkdir()
        try:
            _extract(sandbox, data)
        except ContentError:
            continue
    assert (sandbox / "outside" / "victim").read_text() == "untouched"


def test_an_archive_that_stops_early_is_no_archive(sandbox: Path) -> None:
    with pytest.raises(MalformedArchive, match=r"test\.tar is not a usable tar: it ends too early"):
        _extract(sandbox, _tar(("f", _FILE, ""))[:1024])
