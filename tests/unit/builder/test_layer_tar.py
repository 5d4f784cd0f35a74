import io
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.compression import _zstd, compressed, decompressed
from builder.errors import InvalidLayer
from builder.layer_tar import NormalTar
from builder.project import Compression


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def normal(path: Path, clamp_s: int = 0) -> bytes:
    return b"".join(NormalTar(path, clamp_s=clamp_s))


def read(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


MEMBERS = [
    (member("d", tarfile.DIRTYPE, mode=0o750, mtime=99.5), b""),
    (
        member(
            "d/file",
            mode=0o4755,
            uid=3_000_000,
            gid=7,
            mtime=50,
            pax_headers={"SCHILY.xattr.user.a": "b\udcff"},
        ),
        b"x" * 700,
    ),
    (member("d/link", tarfile.SYMTYPE, linkname="file"), b""),
    (member("d/" + "long" * 60, mtime=3), b"data"),
    (member("a-hard-link", tarfile.LNKTYPE, linkname="d/file"), b""),
    (member("d/null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
    (member("d/.wh.gone"), b""),
    (member("\u00e9/\u00fc"), b"1"),
]


def test_the_same_files_in_another_order_and_at_another_time_are_the_same_bytes(tmp_path: Path):
    first = normal(write_tar(tmp_path / "1", MEMBERS[:]))
    later = []
    for info, data in reversed([item for item in MEMBERS if not item[0].islnk()]):
        info.mtime = info.mtime + 1000
        later.append((info, data))
    later += [item for item in MEMBERS if item[0].islnk()]
    assert normal(write_tar(tmp_path / "2", later)) == first


def test_what_matters_is_kept_and_times_are_clamped(tmp_path: Path):
    entries = {entry.name: entry for entry in read(normal(write_tar(tmp_path / "1", MEMBERS[:]), clamp_s=60))}
    assert list(entries)[:2] == ["a-hard-link", "d"]
    carrier, link = entries["a-hard-link"], entries["d/file"]
    assert (carrier.size, carrier.mode, carrier.uid, carrier.gid) == (700, 0o4755, 3_000_000, 7)
    assert carrier.pax_headers["SCHILY.xattr.user.a"] == "b\udcff"
    assert (link.type, link.linkname) == (tarfile.LNKTYPE, "a-hard-link")
    assert entries["d"].mtime == 60
    assert entries["d/" + "long" * 60].mtime <= 60
    assert (entries["d/null"].devmajor, entries["d/null"].devminor) == (1, 3)
    assert "\u00e9/\u00fc" in entries
    assert list(entries).index("d/.wh.gone") == list(entries).index("d") + 1


def test_gnu_tar_reads_it(tmp_path: Path):
    (tmp_path / "n.tar").write_bytes(normal(write_tar(tmp_path / "1", MEMBERS[:])))
    listed = subprocess.run(["tar", "tf", tmp_path / "n.tar"], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == len(MEMBERS)


def test_it_is_its_own_normal_form(tmp_path: Path):
    once = normal(write_tar(tmp_path / "1", MEMBERS[:]))
    (tmp_path / "2").write_bytes(once)
    assert normal(tmp_path / "2") == once


def test_of_a_repeated_path_the_last_counts(tmp_path: Path):
    path = write_tar(tmp_path / "1", [(member("f"), b"old"), (member("./f"), b"newer")])
    assert [entry.size for entry in read(normal(path))] == [5]


@pytest.mark.parametrize("name", ["../up", "a/../../up"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str):
    with pytest.raises(InvalidLayer, match="leads out"):
        NormalTar(write_tar(tmp_path / "1", [(member(name), b"")]), clamp_s=0)


@pytest.mark.parametrize("damage", [lambda _: b"not a tar at all" * 100, lambda data: data[:700]])
def test_what_is_no_tar_is_refused(tmp_path: Path, damage):
    path = write_tar(tmp_path / "1", [(member("f"), b"x" * 5000)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidLayer):
        normal(path)


@pytest.mark.parametrize("kind", list(Compression))
@given(pieces=st.lists(st.binary(max_size=2000), max_size=5))
def test_compression_is_reversible_and_repeatable(kind: Compression, pieces: list[bytes]):
    data = b"".join(compressed(pieces, kind))
    assert data == b"".join(compressed(pieces, kind))
    assert b"".join(decompressed([data[:7], data[7:]], kind.value, "x")) == b"".join(pieces)
    assert b"".join(decompressed([data + data], kind.value, "x")) == b"".join(pieces) * 2


@pytest.mark.parametrize("kind", list(Compression))
@pytest.mark.parametrize("damage", ["cut", "flip", "none of it"])
def test_a_damaged_stream_is_refused(kind: Compression, damage: str):
    data = bytearray(b"".join(compressed([b"some data" * 1000], kind)))
    if damage == "flip":
        data[len(data) // 2] ^= 0x55
    pieces = [] if damage == "none of it" else [bytes(data[:-3] if damage == "cut" else data)]
    with pytest.raises(InvalidLayer):
        list(decompressed(pieces, kind.value, "x"))


def test_gzip_has_no_name_and_no_time():
    header = b"".join(compressed([b"x"], Compression.GZIP))[:10]
    assert header == b"\x1f\x8b\x08\0\0\0\0\0\0\x03"


def test_zstd_gives_the_same_bytes_however_many_processors_there_are_and_however_it_is_fed():
    data = random.Random(1).randbytes(1 << 16) * 200 + random.Random(2).randbytes(3 << 20)
    made = set()
    for processors, piece in ((1, 1 << 20), (2, 70_001), (4, len(data))):
        compressor = _zstd(processors).compressobj()
        pieces = [compressor.compress(data[at : at + piece]) for at in range(0, len(data), piece)]
        made.add(b"".join([*pieces, compressor.flush()]))
    assert len(made) == 1
