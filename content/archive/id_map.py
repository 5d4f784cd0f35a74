"""Owners of a user namespace: what is host id 100000 outside is 0 inside, and in the archive.

Ids are not only in the owner of a file: entries of its ACLs name users and groups, and a file capability of a
namespace names the namespace's root (capabilities(7), "Namespaced file capabilities").
"""

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from content.errors import InvalidInput

_RANGE = re.compile(r"^(\d{1,10}):(\d{1,10}):(\d{1,10})$")
_IDS = 1 << 32
_ACLS = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_CAPABILITY = b"security.capability"
_REVISION, _REVISION_2, _REVISION_3 = 0xFF000000, 0x02000000, 0x03000000
_SIZE_2, _SIZE_3 = 20, 24


class IdUnmapped(InvalidInput):
    def __init__(self, path: str, what: str, number: int) -> None:
        super().__init__(f"{path!r} belongs to {what} {number}, which the id map does not cover")


class InvalidIdMap(InvalidInput):
    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"invalid id map {text!r}: {reason}; write ARCHIVE:HOST:COUNT, e.g. 0:100000:65536")


@dataclass(frozen=True, slots=True)
class IdRange:
    """``count`` ids from ``archive`` in the tar are those from ``host`` on this machine."""

    archive: int
    host: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """``ARCHIVE:HOST:COUNT``. Raises InvalidIdMap."""
        match = _RANGE.match(text)
        if match is None:
            raise InvalidIdMap(text, "it is not three numbers")
        found = cls(*map(int, match.groups()))
        if not found.count or max(found.archive, found.host) + found.count > _IDS:
            raise InvalidIdMap(text, "it is empty, or reaches beyond 32 bits")
        return found


@dataclass(frozen=True, slots=True)
class IdMap:
    """Both directions; an id that no range covers is an error, never passed through."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @classmethod
    def parse(cls, uids: Sequence[str], gids: Sequence[str]) -> Self | None:
        """None without any range; groups are mapped as users are when only these are given. Raises
        InvalidIdMap, also for ranges that overlap on either side.
        """
        if not uids and not gids:
            return None
        parsed = [tuple(map(IdRange.parse, texts)) for texts in (uids or gids, gids or uids)]
        for ranges in parsed:
            for one in ranges:
                for other in ranges:
                    if one is not other and _overlap(one, other):
                        text = f"{other.archive}:{other.host}:{other.count}"
                        raise InvalidIdMap(text, "it overlaps another range")
        return cls(*parsed)

    def to_archive(self, path: str, uid: int, gid: int) -> tuple[int, int]:
        """Raises IdUnmapped."""
        return self._uid_to_archive(path, uid), self._gid_to_archive(path, gid)

    def to_host(self, path: str, uid: int, gid: int) -> tuple[int, int]:
        """Raises IdUnmapped."""
        return self._uid_to_host(path, uid), self._gid_to_host(path, gid)

    def _uid_to_archive(self, path: str, uid: int) -> int:
        return _map(path, "uid", uid, [(r.host, r.archive, r.count) for r in self.uids])

    def _gid_to_archive(self, path: str, gid: int) -> int:
        return _map(path, "gid", gid, [(r.host, r.archive, r.count) for r in self.gids])

    def _uid_to_host(self, path: str, uid: int) -> int:
        return _map(path, "uid", uid, [(r.archive, r.host, r.count) for r in self.uids])

    def _gid_to_host(self, path: str, gid: int) -> int:
        return _map(path, "gid", gid, [(r.archive, r.host, r.count) for r in self.gids])

    def xattr_to_archive(self, path: str, key: bytes, value: bytes) -> bytes:
        """The attribute as it is seen inside. Raises IdUnmapped."""
        if key in _ACLS:
            return _mapped_acl(
                value,
                lambda uid: self._uid_to_archive(path, uid),
                lambda gid: self._gid_to_archive(path, gid),
            )
        if key == _CAPABILITY and _revision(value) == _REVISION_3 and len(value) == _SIZE_3:
            root = self._uid_to_archive(path, _root_of(value))
            return _with_root(value, root) if root else _without_root(value)
        return value

    def xattr_to_host(self, path: str, key: bytes, value: bytes) -> bytes:
        """The reverse: a capability from inside holds for that namespace's root only. Raises IdUnmapped."""
        if key in _ACLS:
            return _mapped_acl(
                value, lambda uid: self._uid_to_host(path, uid), lambda gid: self._gid_to_host(path, gid)
            )
        if key == _CAPABILITY and _revision(value) == _REVISION_2 and len(value) == _SIZE_2:
            return _with_root(value, self._uid_to_host(path, 0))
        if key == _CAPABILITY and _revision(value) == _REVISION_3 and len(value) == _SIZE_3:
            return _with_root(value, self._uid_to_host(path, _root_of(value)))
        return value


def _overlap(one: IdRange, other: IdRange) -> bool:
    return any(
        a < b + other.count and b < a + one.count
        for a, b in ((one.archive, other.archive), (one.host, other.host))
    )


def _map(path: str, what: str, number: int, ranges: list[tuple[int, int, int]]) -> int:
    for source, target, count in ranges:
        if source <= number < source + count:
            return target + number - source
    raise IdUnmapped(path, what, number)


def _mapped_acl(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """``value`` as linux/posix_acl_xattr.h has it: a version, then (tag, permissions, id)."""
    if len(value) < 4 or (len(value) - 4) % 8:
        return value
    mapped = bytearray(value[:4])
    for tag, permissions, number in struct.iter_unpack("<HHI", value[4:]):
        target = uid(number) if tag == _ACL_USER else gid(number) if tag == _ACL_GROUP else number
        mapped += struct.pack("<HHI", tag, permissions, target)
    return bytes(mapped)


def _revision(value: bytes) -> int:
    return int.from_bytes(value[:4], "little") & _REVISION


def _root_of(value: bytes) -> int:
    return int.from_bytes(value[_SIZE_2:_SIZE_3], "little")


def _with_root(value: bytes, root: int) -> bytes:
    flags = int.from_bytes(value[:4], "little") & ~_REVISION
    return struct.pack("<I", _REVISION_3 | flags) + value[4:_SIZE_2] + struct.pack("<I", root)


def _without_root(value: bytes) -> bytes:
    flags = int.from_bytes(value[:4], "little") & ~_REVISION
    return struct.pack("<I", _REVISION_2 | flags) + value[4:_SIZE_2]
