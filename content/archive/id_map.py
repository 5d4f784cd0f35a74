"""Owners of a user namespace: what is host id 100000 outside is 0 inside, and in the archive."""

from collections.abc import Sequence
from dataclasses import dataclass

from content.errors import InvalidInput


class IdUnmapped(InvalidInput):
    def __init__(self, path: str, what: str, number: int) -> None:
        super().__init__(f"{path!r} belongs to {what} {number}, which the id map does not cover")


@dataclass(frozen=True, slots=True)
class IdRange:
    """``count`` ids from ``archive`` in the tar are those from ``host`` on this machine."""

    archive: int
    host: int
    count: int


class IdMap:
    """Both directions; an id that no range covers is an error, never passed through."""

    def __init__(self, uids: Sequence[IdRange], gids: Sequence[IdRange]) -> None:
        self._uids = tuple(uids)
        self._gids = tuple(gids)

    def to_archive(self, path: str, uid: int, gid: int) -> tuple[int, int]:
        """Raises IdUnmapped."""
        return (
            _map(path, "uid", uid, [(r.host, r.archive, r.count) for r in self._uids]),
            _map(path, "gid", gid, [(r.host, r.archive, r.count) for r in self._gids]),
        )

    def to_host(self, path: str, uid: int, gid: int) -> tuple[int, int]:
        """Raises IdUnmapped."""
        return (
            _map(path, "uid", uid, [(r.archive, r.host, r.count) for r in self._uids]),
            _map(path, "gid", gid, [(r.archive, r.host, r.count) for r in self._gids]),
        )


def _map(path: str, what: str, number: int, ranges: list[tuple[int, int, int]]) -> int:
    for source, target, count in ranges:
        if source <= number < source + count:
            return target + number - source
    raise IdUnmapped(path, what, number)
