"""zTOCs: what they say of a layer, before a reader that knows only the published schema."""

import contextlib
import datetime as dt
import gzip
import io
import itertools
import os
import random
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry_facade.soci.build import build_ztoc
from registry_facade.soci.errors import NotIndexable
from registry_facade.soci.index import SPAN_BYTES
from tests.support.ztoc import ReadZtoc, read_ztoc

SPAN = 64 << 10

Packing = Callable[[bytes], bytes]


def tar_of(files: Sequence[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), 1_700_000_000
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def ztoc_of(path: Path, blob: bytes, span_bytes: int = SPAN) -> ReadZtoc:
    path.write_bytes(blob)
    return read_ztoc(bytes(build_ztoc(path, span_bytes)))


def content(seed: int, size: int) -> bytes:
    """Words among noise: blocks of every kind, and ends of blocks in mid-byte."""
    made = random.Random(seed)
    words = [made.randbytes(made.randint(1, 30)) for _ in range(50)]
    out = bytearray()
    while len(out) < size:
        out += made.choice(words) if made.random() < 0.9 else made.randbytes(made.randint(1, 400))
    return bytes(out[:size])


def at_level(level: int) -> Packing:
    return lambda data: gzip.compress(data, level, mtime=0)


def in_members(size: int, level: int = 6) -> Packing:
    def pack(data: bytes) -> bytes:
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        return b"".join(gzip.compress(part, level, mtime=0) for part in parts)

    return pack


def with_flushes(size: int, how: int) -> Packing:
    def pack(data: bytes) -> bytes:
        deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        packed = b"".join(deflate.compress(part) + deflate.flush(how) for part in parts)
        return packed + deflate.flush()

    return pack


def with_head(data: bytes) -> bytes:
    """A head with every optional field (RFC 1952, 2.3), so that the first block begins far behind byte 10."""
    packed = gzip.compress(data, 6, mtime=0)
    extra = b"\x05\x00AB\x01\x00x"
    return packed[:3] + b"\x1c" + packed[4:10] + extra + b"layer.tar\0" + b"a comment\0" + packed[10:]


PACKINGS: dict[str, Packing] = {
    **{f"level {level}": at_level(level) for level in (0, 1, 6, 9)},
    "large members": in_members(150_000),
    "small members": in_members(3_000),
    "members of stored blocks": in_members(40_000, 0),
    "sync flushes": with_flushes(5_000, zlib.Z_SYNC_FLUSH),
    "full flushes": with_flushes(70_000, zlib.Z_FULL_FLUSH),
    "a head with a name": with_head,
}


@pytest.mark.parametrize("packing", PACKINGS)
@given(seeds=st.lists(st.integers(0, 1 << 30), min_size=1, max_size=5), size=st.integers(0, 300_000))
@settings(max_examples=8, deadline=None)
def test_every_file_is_had_from_its_spans_alone(
    tmp_path_factory: pytest.TempPathFactory, packing: str, seeds: Sequence[int], size: int
) -> None:
    files = [(f"dir/f{at}", content(seed, size // (at + 1))) for at, seed in enumerate(seeds)]
    blob = PACKINGS[packing](tar_of(files))
    ztoc = ztoc_of(tmp_path_factory.mktemp("soci") / "layer", blob)
    assert ztoc.compressed_bytes == len(blob)
    for name, data in files:
        assert ztoc.content(blob, name) == data


@pytest.mark.parametrize("packing", PACKINGS)
def test_spans_cover_the_layer_and_are_not_smaller_than_asked(tmp_path: Path, packing: str) -> None:
    data = tar_of([("a", content(1, 900_000))])
    blob = PACKINGS[packing](data)
    ztoc = ztoc_of(tmp_path / "layer", blob)
    starts = [point.out for point in ztoc.checkpoints]
    assert starts[0] == 0
    assert all(here - before > SPAN for before, here in itertools.pairwise(starts))
    assert len(starts) > 3
    assert ztoc.span(len(starts) - 1)[1] == len(blob)
    assert ztoc.span_bytes == SPAN


def test_description_of_each_kind_of_entry(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes = b"", **fields: object) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            for field, value in fields.items():
                setattr(entry, field, value)
            tar.addfile(entry, io.BytesIO(data))

        add("etc", type=tarfile.DIRTYPE, mode=0o1755)
        add("etc/ä" + "x" * 200, b"long", mode=0o4755, uid=3_000_000, gid=7, uname="me", gname="us")
        add("etc/link", type=tarfile.SYMTYPE, linkname="../" + "y" * 120)
        add("etc/hard", type=tarfile.LNKTYPE, linkname="etc/link")
        add("etc/tty", type=tarfile.CHRTYPE, devmajor=5, devminor=1)
        add("etc/disk", type=tarfile.BLKTYPE, devmajor=8)
        add("etc/pipe", type=tarfile.FIFOTYPE)
        add("etc/caps", b"c", pax_headers={"SCHILY.xattr.security.capability": "\udc81\x01\n=\udcff"})
        add("etc/early", pax_headers={"mtime": "-1.25"})
        add("etc/late", pax_headers={"mtime": "1700000000.1000000009"})
    files = ztoc_of(tmp_path / "layer", gzip.compress(out.getvalue())).files
    assert [(name[:9], file.type) for name, file in files.items()] == [
        ("etc/", "dir"),
        ("etc/äxxxx", "reg"),
        ("etc/link", "symlink"),
        ("etc/hard", "hardlink"),
        ("etc/tty", "char"),
        ("etc/disk", "block"),
        ("etc/pipe", "fifo"),
        ("etc/caps", "reg"),
        ("etc/early", "reg"),
        ("etc/late", "reg"),
    ]
    long = files["etc/ä" + "x" * 200]
    assert (long.mode, long.owner, long.size) == (0o4755, (3_000_000, 7, "me", "us"), 4)
    assert files["etc/"].mode == 0o1755
    assert files["etc/link"].linkname == "../" + "y" * 120
    assert (files["etc/tty"].device, files["etc/disk"].device) == ((5, 1), (8, 0))
    assert files["etc/caps"].pax == {
        "hdrcharset": "BINARY",
        "SCHILY.xattr.security.capability": "\udc81\x01\n=\udcff",
    }
    assert files["etc/early"].modified == "1969-12-31T23:59:58.75Z"
    assert files["etc/late"].modified == "2023-11-14T22:13:20.1Z"
    assert files["etc/pipe"].modified == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_are_those_of_the_tar_in_every_format(tmp_path: Path, tar_format: int) -> None:
    name = "/".join(["d" * 60] * 3)
    ztoc = ztoc_of(tmp_path / "layer", gzip.compress(tar_of([(name, b"found")], tar_format)))
    assert list(ztoc.files) == [name]


def test_header_of_a_file_begins_where_the_one_before_ends(tmp_path: Path) -> None:
    """A snapshotter derives it so, and compares that header with what the zTOC says."""
    blob = tar_of([("a", b"x" * 700), ("b" * 150, b""), ("c", b"z")])
    files = list(ztoc_of(tmp_path / "layer", gzip.compress(blob)).files.items())
    header = 0
    for name, file in files:
        with tarfile.open(fileobj=io.BytesIO(blob[header:])) as tar:
            member = tar.next()
            assert member is not None
            assert (member.name, header + member.offset_data) == (name, file.offset)
        header = -(-(file.offset + file.size) // 512) * 512


def test_same_layer_makes_the_same_bytes(tmp_path: Path) -> None:
    blob = in_members(100_000)(tar_of([("a", content(3, 400_000)), ("b", b"b")]))
    (tmp_path / "one").write_bytes(blob)
    (tmp_path / "two").write_bytes(blob)
    os.utime(tmp_path / "two", (0, 0))
    assert bytes(build_ztoc(tmp_path / "one", SPAN)) == bytes(build_ztoc(tmp_path / "two", SPAN))


def test_time_stamps_reach_from_year_1_to_9999(tmp_path: Path) -> None:
    def layer(mtime: str) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            entry = tarfile.TarInfo("a")
            entry.pax_headers = {"mtime": mtime}
            tar.addfile(entry)
        return gzip.compress(out.getvalue())

    year_1 = int(
        (dt.datetime(1, 1, 1, tzinfo=dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).total_seconds()
    )
    assert ztoc_of(tmp_path / "l", layer(str(year_1))).files["a"].modified == "0001-01-01T00:00:00Z"
    for refused in (str(year_1 - 1), "253402300800", "soon", "1e9"):
        with pytest.raises(NotIndexable, match="modified"):
            ztoc_of(tmp_path / "l", layer(refused))


# ----- what is refused -----

GOOD = gzip.compress(tar_of([("a", content(5, 200_000)), ("b", content(6, 50_000))]), 6, mtime=0)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def sparse() -> bytes:
    blob = bytearray(tar_of([("a", b"")], tarfile.GNU_FORMAT))
    return gzip.compress(with_field(blob, 156, b"S"))


def with_field(tar: bytearray, at: int, value: bytes) -> bytes:
    tar[at : at + len(value)] = value
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    return bytes(tar)


def with_pax(records: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("a")
        entry.pax_headers = records
        tar.addfile(entry)
    return gzip.compress(out.getvalue())


def with_global_header() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", pax_headers={"comment": "all"}) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    return gzip.compress(out.getvalue())


REFUSED = {
    "cut in the data": GOOD[: len(GOOD) // 2],
    "cut in the trailer": GOOD[:-3],
    "flipped in the data": flipped(GOOD, len(GOOD) // 2),
    "flipped in the CRC-32": flipped(GOOD, len(GOOD) - 6),
    "flipped in the size": flipped(GOOD, len(GOOD) - 1),
    "extended": GOOD + b"more",
    "extended by half a member": GOOD + GOOD[: len(GOOD) // 3],
    "not a gzip": os.urandom(4000),
    "empty": b"",
    "not a tar": gzip.compress(os.urandom(50_000)),
    "an empty gzip": gzip.compress(b""),
    "a tar that is cut": gzip.compress(tar_of([("a", b"x" * 5000)])[:3000]),
    "a tar with a damaged header": gzip.compress(flipped(tar_of([("a", b"x"), ("b", b"y")]), 1030)),
    "a sparse file": sparse(),
    "a size beyond all": gzip.compress(
        with_field(bytearray(tar_of([("a", b"")], tarfile.GNU_FORMAT)), 124, b"\x80\0\0\0\x7f" + b"\xff" * 7)
    ),
    "a map of holes without an end": with_pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    "a map of holes of no numbers": with_pax({"GNU.sparse.map": "x,y", "GNU.sparse.size": "1"}),
    "headers for all": with_global_header(),
    "an unknown type": gzip.compress(with_field(bytearray(tar_of([("a", b"")])), 156, b"7")),
    "an unknown magic": gzip.compress(with_field(bytearray(tar_of([("a", b"")])), 257, b"uztar")),
    "old GNU fields": gzip.compress(
        with_field(bytearray(tar_of([("a", b"")], tarfile.GNU_FORMAT)), 345, b"00000000001")
    ),
    "an owner beyond 32 bits": gzip.compress(
        with_field(bytearray(tar_of([("a", b"")], tarfile.GNU_FORMAT)), 108, b"\x80\0\0\x01\0\0\0\0")
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_described_is_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(NotIndexable):
        ztoc_of(tmp_path / "layer", REFUSED[what])


@given(at=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_damage_anywhere_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    blob = GOOD[:at] + bytes([GOOD[at] ^ (1 << bit)]) + GOOD[at + 1 :]
    try:
        ztoc = ztoc_of(tmp_path_factory.mktemp("soci") / "layer", blob)
    except NotIndexable:
        return
    assert at < 10, "only the head of a gzip has bits that mean nothing"
    assert ztoc.content(blob, "b") == content(6, 50_000)


def test_spans_are_those_of_the_format_by_default(tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(GOOD)
    assert read_ztoc(bytes(build_ztoc(tmp_path / "layer"))).span_bytes == SPAN_BYTES == 4 << 20


def tar_to_damage() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a", "ä" * 150):
            entry = tarfile.TarInfo(name)
            entry.size = 600
            entry.pax_headers = {"mtime": "1700000000.5", "SCHILY.xattr.user.x": "y", "uid": "70000"}
            tar.addfile(entry, io.BytesIO(b"z" * 600))
    gnu = tar_of([("g" * 120, b"long")], tarfile.GNU_FORMAT)
    return out.getvalue()[: -tarfile.RECORDSIZE].rstrip(b"\0") + bytes(1024) + gnu


TAR = tar_to_damage()


@given(
    at=st.integers(0, len(TAR) - 1),
    with_bytes=st.binary(min_size=1, max_size=12)
    | st.sampled_from([b"-1", b"99999999999", b"=", b"\n", b"\x80\xff"]),
    mends=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_whatever_the_tar_is_it_is_described_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    at: int,
    with_bytes: bytes,
    mends: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    tar = bytearray(TAR)
    tar[at : at + len(with_bytes)] = with_bytes
    if mends:  # so that what is wrong is not the checksum of a header
        header = at // 512 * 512
        tar[header + 148 : header + 156] = b" " * 8
        tar[header + 148 : header + 156] = b"%06o\0 " % sum(tar[header : header + 512])
    with contextlib.suppress(NotIndexable):
        ztoc_of(tmp_path_factory.mktemp("soci") / "layer", gzip.compress(bytes(tar), 1))
