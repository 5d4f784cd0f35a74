"""Where chunks of one image disagree about files, from tables of contents alone; pure.

A chunk is built without the others, so what one writes and another overwrites or deletes is lost without a
word unless somebody looks. Directory metadata is no conflict; identical files are none either.
"""

import enum
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import pathspec

from builder.contents import Contents, ContentsEntry, deletions, is_deleted
from builder.layer_tar import WHITEOUT
from builder.merge_files import LAST_WINS, MERGERS, ids_by_name

_NONE: Mapping[str, Contents] = MappingProxyType({})


class Verdict(enum.StrEnum):
    """What becomes of a file that more than one chunk of an image touches."""

    CONFLICT = "conflict"
    ALLOWED = "allowed"
    MERGED = "merged"


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A cell of the conflict matrix; ``kind`` is empty for a merged file."""

    path: str
    chunk: str
    other: str
    kind: str
    verdict: Verdict


class ConflictKind(enum.StrEnum):
    OVERWRITES = "overwrites"
    DELETES = "deletes"
    SHARES_ID = "gives an id that is taken in"
    """Of a user or a group: two names for one number, or two numbers for one name."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """``chunk`` lies above ``other`` and overwrites or deletes its ``path`` (with a leading slash)."""

    path: str
    kind: ConflictKind
    chunk: str
    other: str

    def __str__(self) -> str:
        return f"{self.chunk} {self.kind} {self.path} of {self.other}"


def find_conflicts(chunks: Sequence[tuple[str, Contents]], allowed: Sequence[str] = ()) -> Sequence[Conflict]:
    """``chunks`` from the bottom up; ``allowed`` are gitignore patterns of paths where the last may win."""
    quiet = pathspec.PathSpec.from_lines("gitignore", [*LAST_WINS, *allowed])
    found: list[Conflict] = []
    owners: dict[str, tuple[str, ContentsEntry]] = {}
    for name, contents in chunks:
        deleted = deletions(contents)
        found += [
            Conflict(f"/{path}", ConflictKind.DELETES, name, owner)
            for path, (owner, _) in (owners if deleted else {}).items()
            if path not in contents.entries and is_deleted(path, deleted)
        ]
        for path, entry in contents.entries.items():
            if path.rpartition("/")[2].startswith(WHITEOUT):
                continue
            earlier = owners.get(path)
            if earlier is not None and _disagree(earlier[1], entry) and path not in MERGERS:
                found.append(Conflict(f"/{path}", ConflictKind.OVERWRITES, name, earlier[0]))
            if entry.kind != "dir" or earlier is None or earlier[1].kind != "dir":
                owners[path] = (name, entry)
    return [conflict for conflict in found if not quiet.match_file(conflict.path.lstrip("/"))]


def _disagree(earlier: ContentsEntry, later: ContentsEntry) -> bool:
    if earlier.kind == later.kind == "dir":
        return False
    return earlier != later


def merged_files(
    base: Contents, chunks: Sequence[tuple[str, Contents]], stored: Mapping[str, Contents] = _NONE
) -> Mapping[str, bytes]:
    """The files that a merger knows and that no layer has as they should be.

    ``stored`` is what chunks have in their layers where `on_another_base` has changed that.
    """
    made: dict[str, bytes] = {}
    for path, merger in MERGERS.items():
        touched = [(name, contents) for name, contents in chunks if path in contents.merged]
        if not touched:
            continue
        versions = [contents.merged[path] for _, contents in touched]
        content = merger(base.merged.get(path, b""), versions) if len(versions) > 1 else versions[0]
        last, meant = touched[-1]
        if content != stored.get(last, meant).merged[path]:
            made[path] = content
    return made


def on_another_base(chunk: Contents, old_base: Contents, base: Contents) -> Contents:
    """``chunk`` as if it had found the files that a merger knows as ``base`` has them, not ``old_base``."""
    merged = {
        path: MERGERS[path](old_base.merged.get(path, b""), [base.merged.get(path, b""), data])
        for path, data in chunk.merged.items()
    }
    return replace(chunk, merged=merged)


_IDENTITIES = ("etc/passwd", "etc/group")


def identity_conflicts(
    base: Contents, chunks: Sequence[tuple[str, Contents]], allowed: Sequence[str] = ()
) -> Sequence[Conflict]:
    """Users and groups that chunks added and that cannot both be what their files' owners mean."""
    quiet = pathspec.PathSpec.from_lines("gitignore", allowed)
    found: list[Conflict] = []
    for path in _IDENTITIES:
        if quiet.match_file(path):
            continue
        inherited = ids_by_name(base.merged.get(path, b""))
        added: dict[tuple[str, str], str] = {}
        for chunk, contents in chunks:
            own = ids_by_name(contents.merged.get(path, b"")).items() - inherited.items()
            for name, number in sorted(own):
                for (other_name, other_number), other in added.items():
                    if other != chunk and (name == other_name) != (number == other_number):
                        shown = f"/{path} ({name}={number}, {other_name}={other_number})"
                        found.append(Conflict(shown, ConflictKind.SHARES_ID, chunk, other))
                added.setdefault((name, number), chunk)
    return found


def shared_files(
    base: Contents, chunks: Sequence[tuple[str, Contents]], allowed: Sequence[str] = ()
) -> Sequence[SharedFile]:
    """Every file that more than one chunk writes or deletes, chunk against chunk; identical ones are none."""
    errors = {*find_conflicts(chunks, allowed), *identity_conflicts(base, chunks, allowed)}
    found = [
        SharedFile(
            one.path, one.chunk, one.other, one.kind, Verdict.CONFLICT if one in errors else Verdict.ALLOWED
        )
        for one in (*find_conflicts(chunks), *identity_conflicts(base, chunks))
    ]
    for path in merged_files(base, chunks):
        names = [name for name, contents in chunks if path in contents.merged]
        found += [
            SharedFile(f"/{path}", upper, lower, "", Verdict.MERGED)
            for lower, upper in itertools.pairwise(names)
        ]
    return found
