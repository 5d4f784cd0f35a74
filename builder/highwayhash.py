"""HighwayHash-256 (the portable form of its reference implementation), for hashes that dazzle has made.

Pure Python and slow, some MB/s: compatibility only.
"""

import struct
from collections.abc import Sequence

_MASK = (1 << 64) - 1
_INIT0 = (0xDBE6D5D5FE4CCE2F, 0xA4093822299F31D0, 0x13198A2E03707344, 0x243F6A8885A308D3)
_INIT1 = (0x3BD39E10CB0EF593, 0xC0ACF169B5F18A8C, 0xBE5466CF34E90C6C, 0x452821E638D01377)
_PACKET = struct.Struct("<4Q")


def highwayhash256(key: bytes, data: bytes) -> bytes:
    """``key`` and the result have 32 bytes."""
    state = _State(_PACKET.unpack(key))
    whole = len(data) - len(data) % 32
    for at in range(0, whole, 32):
        state.update(_PACKET.unpack_from(data, at))
    if whole < len(data):
        state.update_remainder(data[whole:])
    return state.finish()


class _State:
    def __init__(self, key: Sequence[int]) -> None:
        self._mul0 = list(_INIT0)
        self._mul1 = list(_INIT1)
        self._v0 = [init ^ lane for init, lane in zip(_INIT0, key, strict=True)]
        self._v1 = [init ^ _swap_halves(lane) for init, lane in zip(_INIT1, key, strict=True)]

    def update(self, lanes: Sequence[int]) -> None:
        v0, v1, mul0, mul1 = self._v0, self._v1, self._mul0, self._mul1
        for i in range(4):
            v1[i] = (v1[i] + mul0[i] + lanes[i]) & _MASK
            mul0[i] ^= (v1[i] & 0xFFFFFFFF) * (v0[i] >> 32)
            v0[i] = (v0[i] + mul1[i]) & _MASK
            mul1[i] ^= (v0[i] & 0xFFFFFFFF) * (v1[i] >> 32)
        for source, target in ((v1, v0), (v0, v1)):
            for low in (0, 2):
                add0, add1 = _zipper_merge(source[low + 1], source[low])
                target[low] = (target[low] + add0) & _MASK
                target[low + 1] = (target[low + 1] + add1) & _MASK

    def update_remainder(self, data: bytes) -> None:
        size = len(data)
        tail = size & ~3
        self._v0 = [(lane + (size << 32) + size) & _MASK for lane in self._v0]
        self._v1 = [_rotate_halves(lane, size) for lane in self._v1]
        packet = bytearray(32)
        packet[:tail] = data[:tail]
        if size & 16:
            packet[28:32] = data[size - 4 : size]
        elif size & 3:
            rest = data[tail:]
            packet[16:19] = bytes((rest[0], rest[len(rest) >> 1], rest[-1]))
        self.update(_PACKET.unpack(packet))

    def finish(self) -> bytes:
        for _ in range(10):
            v0 = self._v0
            self.update([_swap_halves(v0[i]) for i in (2, 3, 0, 1)])
        sums0 = [(a + b) & _MASK for a, b in zip(self._v0, self._mul0, strict=True)]
        sums1 = [(a + b) & _MASK for a, b in zip(self._v1, self._mul1, strict=True)]
        out: list[int] = []
        for low in (0, 2):
            a3, a2 = sums1[low + 1] & 0x3FFFFFFFFFFFFFFF, sums1[low]
            out.append((sums0[low] ^ (a2 << 1) ^ (a2 << 2)) & _MASK)
            out.append((sums0[low + 1] ^ ((a3 << 1) | (a2 >> 63)) ^ ((a3 << 2) | (a2 >> 62))) & _MASK)
        return _PACKET.pack(*out)


def _swap_halves(lane: int) -> int:
    return (lane >> 32) | (lane << 32) & _MASK


def _rotate_halves(lane: int, count: int) -> int:
    low, high = lane & 0xFFFFFFFF, lane >> 32
    return _rotate32(low, count) | _rotate32(high, count) << 32


def _rotate32(value: int, count: int) -> int:
    return (value << count | value >> (32 - count)) & 0xFFFFFFFF if count else value


def _zipper_merge(v1: int, v0: int) -> tuple[int, int]:
    add0 = (
        ((v0 & 0xFF000000) | (v1 & 0xFF00000000)) >> 24
        | ((v0 & 0xFF0000000000) | (v1 & 0xFF000000000000)) >> 16
        | v0 & 0xFF0000
        | (v0 & 0xFF00) << 32
        | (v1 & 0xFF00000000000000) >> 8
        | v0 << 56 & _MASK
    )
    add1 = (
        ((v1 & 0xFF000000) | (v0 & 0xFF00000000)) >> 24
        | v1 & 0xFF0000
        | (v1 & 0xFF0000000000) >> 16
        | (v1 & 0xFF00) << 24
        | (v0 & 0xFF000000000000) >> 8
        | (v1 & 0xFF) << 48
        | v0 & 0xFF00000000000000
    )
    return add0, add1
