import zlib

from hypothesis import given
from hypothesis import strategies as st

from content.archive.crc32 import combine


@given(st.binary(max_size=300), st.binary(max_size=5000))
def test_combining_equals_the_checksum_of_both(first: bytes, second: bytes) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@given(st.binary(max_size=50), st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_combining_is_associative_for_lengths_nobody_can_hold(data: bytes, one: int, two: int) -> None:
    crc = zlib.crc32(data)
    assert combine(combine(crc, 7, one), 9, two) == combine(crc, combine(7, 9, two), one + two)
