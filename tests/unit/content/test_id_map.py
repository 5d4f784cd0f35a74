"""Ids of a user namespace, wherever a file has some."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from content.archive.id_map import IdMap, IdRange, IdUnmapped, InvalidIdMap

MAP = IdMap((IdRange(0, 100_000, 65_536),), (IdRange(0, 200_000, 65_536),))
CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)  # cap_net_bind_service, effective


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@given(uid=st.integers(0, 65_535), gid=st.integers(0, 65_535))
def test_there_and_back_is_the_same(uid: int, gid: int) -> None:
    host = MAP.to_host("f", uid, gid)
    assert host == (100_000 + uid, 200_000 + gid)
    assert MAP.to_archive("f", *host) == (uid, gid)


@pytest.mark.parametrize("number", [0, 99_999, 165_536, 4_294_967_295])
def test_what_no_range_covers_is_refused_by_name(number: int) -> None:
    with pytest.raises(IdUnmapped, match=f"'some/file' belongs to uid {number}, which the id map"):
        MAP.to_archive("some/file", number, 200_000)


def test_users_and_groups_of_an_acl_are_mapped_and_nothing_else_of_it() -> None:
    inside = _acl((1, 7, 0xFFFFFFFF), (2, 6, 5), (4, 4, 0xFFFFFFFF), (8, 5, 6), (16, 7, 0xFFFFFFFF))
    outside = MAP.xattr_to_host("f", b"system.posix_acl_access", inside)
    assert outside == _acl(
        (1, 7, 0xFFFFFFFF), (2, 6, 100_005), (4, 4, 0xFFFFFFFF), (8, 5, 200_006), (16, 7, 0xFFFFFFFF)
    )
    assert MAP.xattr_to_archive("f", b"system.posix_acl_access", outside) == inside
    with pytest.raises(IdUnmapped):
        MAP.xattr_to_archive("f", b"system.posix_acl_default", inside)


def test_a_capability_from_inside_belongs_to_that_namespace_outside() -> None:
    outside = MAP.xattr_to_host("f", b"security.capability", CAPABILITY)
    assert outside == struct.pack("<IIIIII", 0x03000001, 0x400, 0, 0, 0, 100_000)
    assert MAP.xattr_to_archive("f", b"security.capability", outside) == CAPABILITY


@pytest.mark.parametrize("value", [b"", b"\2\0\0\0xyz", CAPABILITY[:7], CAPABILITY + b"123456"])
@pytest.mark.parametrize("key", [b"system.posix_acl_access", b"security.capability", b"user.note"])
def test_what_is_no_acl_and_no_capability_stays_as_it_is(key: bytes, value: bytes) -> None:
    assert MAP.xattr_to_host("f", key, value) == value
    assert MAP.xattr_to_archive("f", key, value) == value


def test_options_without_groups_mean_the_same_for_groups() -> None:
    parsed = IdMap.parse(["0:1000:1", "1:100000:65535"], [])
    assert parsed is not None
    assert parsed.to_host("f", 0, 1) == (1000, 100_000)
    assert IdMap.parse([], []) is None


@pytest.mark.parametrize(
    "texts",
    [
        ["0:1"],
        ["a:b:c"],
        ["0:0:0"],
        ["0:4294967295:2"],
        ["-1:0:1"],
        ["0:100:10", "5:200:10"],
        ["0:100:10", "50:105:10"],
    ],
)
def test_a_map_that_is_none_is_refused(texts: list[str]) -> None:
    with pytest.raises(InvalidIdMap, match="write ARCHIVE:HOST:COUNT"):
        IdMap.parse(texts, [])
