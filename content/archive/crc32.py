"""CRC-32 of things put together, from the CRC-32 of their parts.

zlib has this and Python's binding does not. Appending n bytes multiplies the register by x^(8n) modulo the
polynomial, over GF(2); each power of two has a table, so that folding costs a few look-ups per set bit.
"""

from functools import cache

_POLYNOMIAL = 0xEDB88320
_Tables = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _times(a: int, b: int) -> int:
    """A * b modulo the polynomial; bit 31 is x^0."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@cache
def _power(exponent: int) -> int:
    """x^(8 * 2^exponent)."""
    if exponent == 0:
        return 1 << (31 - 8)
    half = _power(exponent - 1)
    return _times(half, half)


@cache
def _tables(exponent: int) -> _Tables:
    factor = _power(exponent)
    columns = [_times(factor, 1 << bit) for bit in range(32)]

    def table(shift: int) -> tuple[int, ...]:
        rows = [0] * 256
        for value in range(1, 256):
            low = value & -value
            rows[value] = rows[value ^ low] ^ columns[shift + low.bit_length() - 1]
        return tuple(rows)

    return table(0), table(8), table(16), table(24)


def shift(crc: int, length_bytes: int) -> int:
    """The contribution of data with ``crc`` when ``length_bytes`` follow it."""
    exponent = 0
    while length_bytes:
        if length_bytes & 1:
            t0, t1, t2, t3 = _tables(exponent)
            crc = t0[crc & 255] ^ t1[crc >> 8 & 255] ^ t2[crc >> 16 & 255] ^ t3[crc >> 24]
        length_bytes >>= 1
        exponent += 1
    return crc


def combine(first: int, second: int, second_length_bytes: int) -> int:
    """``zlib.crc32(a + b)`` from the CRC of a, the CRC of b and the length of b."""
    return shift(first, second_length_bytes) ^ second
