"""The checksum of a tar-split's files, and its lines."""

import json

from hypothesis import given
from hypothesis import strategies as st

from registry_facade.layers.tar_split import TarSplit, crc64

REVERSED = 0xD8 << 56


def bit_by_bit(data: bytes) -> int:
    """As the polynomial is divided by hand."""
    state = (1 << 64) - 1
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (REVERSED if state & 1 else 0)
    return state ^ (1 << 64) - 1


def test_checksum_of_what_gos_own_tests_check() -> None:
    assert [crc64(data) for data in (b"", b"a", b"abc")] == [0, 0x3420000000000000, 0x3776C42000000000]


@given(st.binary(max_size=3000))
def test_checksum_is_that_of_long_division(data: bytes) -> None:
    assert crc64(data) == bit_by_bit(data)


@given(st.lists(st.binary(max_size=200)))
def test_checksum_of_parts_is_that_of_the_whole(parts: list[bytes]) -> None:
    checksum = 0
    for part in parts:
        checksum = crc64(part, checksum)
    assert checksum == crc64(b"".join(parts))


def test_padding_and_the_next_header_are_one_segment() -> None:
    split = TarSplit()
    split.segment(b"head of a")
    split.content(b"ab")
    split.content(b"c")
    split.file("a", 3)
    split.segment(b"padding")
    split.segment(b" and head of b")
    split.file("b", 0)
    split.segment(b"the end")
    assert [json.loads(line) for line in split.dump().splitlines()] == [
        {"type": 2, "payload": "aGVhZCBvZiBh", "position": 0},
        {"type": 1, "name": "a", "size": 3, "payload": "N3bEIAAAAAA=", "position": 1},
        {"type": 2, "payload": "cGFkZGluZyBhbmQgaGVhZCBvZiBi", "position": 2},
        {"type": 1, "name": "b", "payload": None, "position": 3},
        {"type": 2, "payload": "dGhlIGVuZA==", "position": 4},
    ]
