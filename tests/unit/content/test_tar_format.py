import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from content.archive import tar_format
from content.archive.reader import BufferSource, TarReader, plain_file
from content.archive.tar_format import BadHeader, Member, member_headers, parse_pax, parse_time_ns
from content.errors import MalformedArchive

_names = st.binary(min_size=1, max_size=300).map(lambda raw: raw.replace(b"\0", b"_").strip(b"/") or b"x")
_members = st.builds(
    Member,
    path=_names,
    kind=st.just(tar_format.REGULAR),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 1 << 32),
    gid=st.integers(0, 1 << 32),
    size_bytes=st.integers(0, 5000),
    link=st.just(b""),
    device=st.just((0, 0)),
    real_size_bytes=st.none(),
    sparse=st.none(),
    pax=st.just({}),
    mtime_ns=st.integers(-(1 << 40) * 1000, (1 << 62)),
    xattrs=st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=30).map(lambda raw: b"user." + raw.replace(b"\0", b"z")),
            st.binary(max_size=90),
        ),
        max_size=3,
        unique_by=lambda item: item[0],
    ).map(tuple),
)


@given(_members)
def test_headers_are_read_back_as_they_were_meant(member: Member) -> None:
    archive = member_headers(member) + bytes(member.size_bytes + tar_format.padding(member.size_bytes))
    read = TarReader(BufferSource(memoryview(archive + tar_format.END_OF_ARCHIVE)), "test").next()
    assert read is not None
    assert read._replace(pax={}, kind=b"0") == member._replace(pax={})


@given(st.binary(max_size=4096))
def test_any_bytes_are_an_archive_or_refused(data: bytes) -> None:
    try:
        for _ in TarReader(BufferSource(memoryview(data)), "test"):
            pass
    except MalformedArchive:
        pass


@given(_members, st.integers(0, 511), st.integers(1, 255))
def test_a_damaged_header_is_refused(member: Member, at: int, flip: int) -> None:
    header = bytearray(member_headers(member)[-512:])
    header[at] ^= flip
    if 148 <= at < 156:
        return  # a checksum field may be written in several ways
    with pytest.raises(MalformedArchive):
        TarReader(BufferSource(memoryview(bytes(header) + bytes(1024))), "test").next()


def _read(archive: bytes) -> tuple[Member, int] | None:
    reader = TarReader(BufferSource(memoryview(archive)), "test")
    try:
        member = reader.next()
    except MalformedArchive:
        return None
    return (member, reader.offset) if member is not None else None


@given(_members, st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), max_size=3))
def test_a_plain_file_is_what_the_reader_says(member: Member, changes: list[tuple[int, int]]) -> None:
    archive = bytearray(member_headers(member) + bytes(3 * 512))
    for at, value in changes:
        if at < len(archive):
            archive[at] = value
    found = plain_file(memoryview(archive))
    assert found is None or found == _read(bytes(archive))
    assert found is not None or changes


@given(st.binary(max_size=2048))
def test_any_bytes_are_a_plain_file_or_something_else(data: bytes) -> None:
    found = plain_file(memoryview(data))
    assert found is None or found == _read(data)


@pytest.mark.parametrize("key", ["GNU.sparse.map", "GNU.sparse.major"])
def test_a_sparse_file_is_not_a_plain_one(key: str) -> None:
    info = tarfile.TarInfo("x")
    info.pax_headers = {key: "1"}
    assert plain_file(memoryview(info.tobuf(tarfile.PAX_FORMAT))) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"1.1234567899", 1_123_456_789),
        (b".5", 500_000_000),
    ],
)
def test_times_keep_their_nanoseconds(text: bytes, expected: int) -> None:
    assert parse_time_ns(text) == expected


@pytest.mark.parametrize(
    "data",
    [b"5 a=b\n", b"99 a=b\n", b"x a=b\n", b"7 a=bb", b"6 abc\n", b"6 =ab\n"],
    ids=["short", "long", "no-number", "no-newline", "no-equals", "no-key"],
)
def test_broken_pax_records_are_refused(data: bytes) -> None:
    with pytest.raises(BadHeader):
        parse_pax(data)


def test_python_reads_sizes_beyond_octal() -> None:
    member = Member(b"huge", tar_format.REGULAR, 0o644, 1 << 22, 7, 9 << 30, 5)
    with tarfile.open(fileobj=io.BytesIO(member_headers(member) + bytes(1024))) as archive:
        info = archive.next()
    assert info is not None
    assert (info.size, info.uid) == (9 << 30, 1 << 22)
