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
    ``replaced`` those that a later member makes harmless. ``kept`` counts what is as it was.
    """

    write: set[str] = field(default_factory=set)
    cut: list[Entry] = field(default_factory=list)
    replaced: list[Entry] = field(default_factory=list)
    kept: int = 0


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
        if len(changes.write) + len(changes.cut) > limit:
            return None
    while line is not None:
        changes.cut.append(parse_line(line))
        line = next(old, None)
    return changes


def _skip_gone(line: bytes, old: Iterator[bytes], found: Found, changes: Changes) -> bytes | None:
    """The first line that is not before ``found``; those before it are of what was deleted."""
    key = path_key(found.path)
    current: bytes | None = line
    while current is not None and path_key(_path(current)) < key:
        changes.cut.append(parse_line(current))
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
        changes.cut.append(entry)
