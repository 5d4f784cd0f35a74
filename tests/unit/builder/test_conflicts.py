import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.conflicts import find_conflicts, identity_conflicts, merged_files
from builder.contents import Contents, read_contents
from builder.errors import InvalidLayer
from builder.merged_layer import files_tar


def layer(*entries: str, files: dict[str, bytes] | None = None) -> Contents:
    """``path`` is a file, ``path=content`` one with content, ``path/`` a directory, ``path->x`` a link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for entry in entries:
            name, _, data = entry.partition("=")
            info = tarfile.TarInfo(name.partition("->")[0].rstrip("/"))
            if "->" in name:
                info.type, info.linkname = tarfile.SYMTYPE, name.partition("->")[2]
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data.encode()))
        for path, content in (files or {}).items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return read_contents([out.getvalue()], "test")


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (["a/f=1"], ["a/f=2"], ["b overwrites /a/f of a"]),
        (["a/f=1"], ["a/f=1"], []),
        (["a/f=1"], ["a/g=1"], []),
        (["a/", "a/f"], ["a/", "a/g"], []),
        (["l->x"], ["l->y"], ["b overwrites /l of a"]),
        (["d/", "d/f"], ["d=1"], ["b overwrites /d of a"]),
        (["d/f=1"], ["d/.wh.f"], ["b deletes /d/f of a"]),
        (["d/f=1", "e=1"], [".wh.d"], ["b deletes /d/f of a"]),
        (["d/f=1"], ["d/.wh..wh..opq"], ["b deletes /d/f of a"]),
        (["d/f=1"], ["d/.wh..wh..opq", "d/f=1"], []),
        (["var/log/x=1"], ["var/log/x=2"], []),
        (["var/lib/dpkg/status=1"], ["var/lib/dpkg/status=2"], []),
        (["opt/allowed=1"], ["opt/allowed=2"], []),
        ([".wh.f"], ["f=1"], []),
    ],
)
def test_who_overwrites_or_deletes_what(lower: list[str], upper: list[str], expected: list[str]):
    found = find_conflicts([("a", layer(*lower)), ("b", layer(*upper))], ["/opt/*"])
    assert [str(conflict) for conflict in found] == expected


STATUS = b"Package: %s\nStatus: install ok installed\nArchitecture: amd64\nVersion: %s\n\n"


def test_dpkg_knows_the_packages_of_all_chunks():
    path = "var/lib/dpkg/status"
    base = layer(files={path: STATUS % (b"libc6", b"1") + STATUS % (b"gone", b"1")})
    first = layer(
        files={path: STATUS % (b"libc6", b"1") + STATUS % (b"zip", b"1") + STATUS % (b"gone", b"1")}
    )
    second = layer(files={path: STATUS % (b"libc6", b"2") + STATUS % (b"awk", b"1")})
    merged = merged_files(base, [("a", first), ("b", second)])
    assert merged == {
        path: b"".join(STATUS % pair for pair in ((b"awk", b"1"), (b"libc6", b"2"), (b"zip", b"1")))
    }


def test_users_and_members_of_groups_are_united():
    base = layer(files={"etc/group": b"docker:x:9:\n", "etc/passwd": b"root:x:0:0::/:/bin/sh\n"})
    first = layer(
        files={"etc/group": b"docker:x:9:me\na:x:5:\n", "etc/passwd": b"root:x:0:0::/:/bin/sh\na:x:1:\n"}
    )
    second = layer(files={"etc/group": b"docker:x:9:you\n", "etc/passwd": b"root:x:0:0::/:/bin/sh\nb:x:2:\n"})
    assert merged_files(base, [("a", first), ("b", second)]) == {
        "etc/group": b"docker:x:9:me,you\na:x:5:\n",
        "etc/passwd": b"root:x:0:0::/:/bin/sh\na:x:1:\nb:x:2:\n",
    }


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("x:x:1:", "y:x:1:", ["b gives an id that is taken in /etc/passwd (y=1, x=1) of a"]),
        ("x:x:1:", "x:x:2:", ["b gives an id that is taken in /etc/passwd (x=2, x=1) of a"]),
        ("x:x:1:1::/:/bin/sh", "x:x:1:1::/:/bin/bash", []),
        ("x:x:1:", "y:x:2:", []),
        ("root:x:0:", "root:x:0:", []),
    ],
    ids=["one number, two names", "one name, two numbers", "the same user", "two users", "the base's"],
)
def test_users_that_cannot_both_be_meant_are_conflicts(first: str, second: str, expected: list[str]):
    base = "root:x:0:0::/:/bin/sh\n"
    files = [layer(files={"etc/passwd": f"{base}{line}\n".encode()}) for line in (first, second)]
    chunks = [("a", files[0]), ("b", files[1])]
    below = layer(files={"etc/passwd": base.encode()})
    assert [str(conflict) for conflict in identity_conflicts(below, chunks)] == expected
    assert identity_conflicts(below, chunks, ["/etc/passwd"]) == []


def test_one_chunk_alone_needs_no_merge():
    assert merged_files(layer(), [("a", layer(files={"etc/passwd": b"x:1\n"}))]) == {}


def test_contents_survive_being_stored():
    contents = layer("d/", "d/f=1", "l->x", files={"etc/passwd": b"root:x:0\n"})
    assert Contents.parse(contents.dump(), "x") == contents


@pytest.mark.parametrize("damage", ["flip", "cut", "extend", "empty"])
def test_damaged_contents_are_refused(damage: str):
    data = bytearray(layer("d/f=1").dump())
    if damage == "flip":
        data[len(data) // 2] ^= 0xFF
    made = {"flip": data, "cut": data[:-4], "extend": data + b"x", "empty": b""}[damage]
    with pytest.raises(InvalidLayer):
        Contents.parse(bytes(made), "x")


@given(st.binary(max_size=2048))
def test_any_bytes_are_read_or_refused(data: bytes):
    try:
        read_contents([data], "x")
    except InvalidLayer:
        return


@given(st.data())
def test_a_damaged_tar_is_read_or_refused(data: st.DataObject):
    whole = bytearray(_some_tar())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    pieces = [bytes(whole[:cut]), b"", bytes(whole[cut:])][: data.draw(st.integers(1, 3))]
    try:
        read_contents(pieces, "x")
    except InvalidLayer:
        return


def _some_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind in (
            ("d/" + "x" * 150, tarfile.REGTYPE),
            ("l", tarfile.SYMTYPE),
            ("h", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.pax_headers = kind, "d", {"SCHILY.xattr.user.a": "1"}
            archive.addfile(info)
    return out.getvalue()[: 16 << 10]


def test_merged_files_take_modes_and_owners_from_below():
    below = layer("etc/", "etc/passwd=1")
    data = files_tar({"etc/passwd": b"new", "var/lib/x": b"1"}, [below])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["etc", "etc/passwd", "var", "var/lib", "var/lib/x"]
        assert archive.getmember("etc/passwd").mode == 0o644
    assert read_contents([data], "x").merged["etc/passwd"] == b"new"
