"""A walk beside the previous index, both in path order, neither held in memory.

An entry is unchanged when its line would begin as it does in the index, and when its times are old enough
to be believed: what was written in the tick of the previous walk could have changed again unseen.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from content.archive.index import Entry, fingerprint, parse_line
from content.archive.walk import Found, path_key

TICK_NS = 20_000_000
"""Coarser than any kernel's file timestamps on local disks (4 or 10 ms)."""


@dataclass(slots=True)
class Changes:
    """What a backup must write, and what of the old tar must not stay.

    ``write`` are paths that are new or different; ``cut`` old members that a plain reader must not meet,
    ``replaced`` those that a later member makes harmless. ``kept`` counts what is as it was. ``torn`` are
    inodes of several names of which some changed: `rejoin` must be asked.
    """

    write: set[str] = field(default_factory=set)
    cut: list[Entry] = field(default_factory=list)
    replaced: list[Entry] = field(default_factory=list)
    kept: int = 0
    torn: set[int] = field(default_factory=set)


def compare(
    walk: Iterable[Found], lines: Iterable[bytes], trusted_before_ns: int, *, limit: int
) -> Changes | None:
    """None as soon as more than ``limit`` paths must be written: then a full backup is better. Blocking."""
    believed_ns = trusted_before_ns - TICK_NS
    changes = Changes()
    old = iter(lines)
    line = next(old, None)
    for found in walk:
        status = found.status
        begins = fingerprint(found.path, status).encode()
        if line is not None and not line.startswith(begins):
            line = _skip_gone(line, old, found, changes)
        if line is not None and line.startswith(begins):
            if status.st_ctime_ns < believed_ns and status.st_mtime_ns < believed_ns:
                changes.kept += 1
            else:
                _note_changed(parse_line(line), status, changes)
            line = next(old, None)
        elif line is not None and _path(line) == found.path:
            _note_changed(parse_line(line), status, changes)
            line = next(old, None)
        else:
            changes.write.add(found.path)
            if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                changes.torn.add(status.st_ino)
        if len(changes.write) + len(changes.cut) > limit:
            return None
    while line is not None:
        _note_gone(parse_line(line), changes)
        line = next(old, None)
    return changes


def rejoin(changes: Changes, lines: Iterable[bytes]) -> None:
    """Has all names of a torn inode written again: renaming a directory changes the paths of what it holds
    and nothing else, so that the other names of its files look unchanged. Reads the index again. Blocking.
    """
    cut = {entry.path for entry in changes.cut}
    for entry in map(parse_line, lines):
        if not is_joined(entry) or entry.ino not in changes.torn:
            continue
        if entry.path not in cut and entry.path not in changes.write:
            changes.cut.append(entry)
            changes.write.add(entry.path)
            changes.kept -= 1


def is_joined(entry: Entry) -> bool:
    """Whether it is one of several names of a file."""
    return entry.nlink > 1 and entry.type == "f"


def _note_gone(entry: Entry, changes: Changes) -> None:
    changes.cut.append(entry)
    if is_joined(entry):
        changes.torn.add(entry.ino)


def _skip_gone(line: bytes, old: Iterator[bytes], found: Found, changes: Changes) -> bytes | None:
    """The first line that is not before ``found``; those before it are of what was deleted."""
    key = path_key(found.path)
    current: bytes | None = line
    while current is not None and path_key(_path(current)) < key:
        _note_gone(parse_line(current), changes)
        current = next(old, None)
    return current


def _path(line: bytes) -> str:
    return parse_line(line).path


def _note_changed(entry: Entry, status: os.stat_result, changes: Changes) -> None:
    changes.write.add(entry.path)
    same_type = entry.type in {"f", "d"} and (entry.type == "d") == stat.S_ISDIR(status.st_mode)
    regular = entry.type == "d" or stat.S_ISREG(status.st_mode)
    alone = entry.type == "d" or (entry.nlink == 1 and status.st_nlink == 1)
    if same_type and regular and alone:
        changes.replaced.append(entry)
    else:  # a plain reader could write through the old link, or keep what was there
        _note_gone(entry, changes)
        if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
            changes.torn.add(status.st_ino)
