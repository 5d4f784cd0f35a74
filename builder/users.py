"""Who ``USER`` is, by the image's own /etc/passwd and /etc/group (as Docker and runc read them). Blocking."""

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.errors import EngineUnavailable


@dataclass(frozen=True, slots=True)
class Identity:
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def resolve_user(user: str, layers: Sequence[Path]) -> Identity:
    """``user`` is ``name|uid[:group|gid]`` or empty for root; ``layers`` are unpacked, bottom first.

    A number needs no entry. Raises EngineUnavailable for a name that has none.
    """
    name, _, group = user.partition(":")
    people = [fields for line in _lines(layers, "passwd") if len(fields := line.split(":")) >= 6]
    groups = [fields for line in _lines(layers, "group") if len(fields := line.split(":")) >= 4]
    wanted = name or "0"
    entry = next((fields for fields in people if wanted in {fields[0], fields[2]}), None)
    if entry is None and not wanted.isdigit():
        raise EngineUnavailable(f"the user {name!r}", "the image's /etc/passwd has no such name")
    uid = int(entry[2]) if entry is not None else int(wanted)
    gid = int(entry[3]) if entry is not None else 0
    if group:
        gid = _gid(group, groups)
        return Identity(uid, gid, (gid,), entry[5] if entry is not None else "/")
    member_of = [
        int(fields[2]) for fields in groups if entry is not None and entry[0] in fields[3].split(",")
    ]
    return Identity(uid, gid, tuple(dict.fromkeys([gid, *member_of])), entry[5] if entry is not None else "/")


def _gid(group: str, groups: Sequence[Sequence[str]]) -> int:
    found = next((fields for fields in groups if group in {fields[0], fields[2]}), None)
    if found is None and not group.isdigit():
        raise EngineUnavailable(f"the group {group!r}", "the image's /etc/group has no such name")
    return int(found[2]) if found is not None else int(group)


def _lines(layers: Sequence[Path], name: str) -> Sequence[str]:
    """Of the topmost layer that has the file; a link or a whiteout means there is none to read."""
    for layer in reversed(layers):
        path = layer / "etc" / name
        if path.parent.is_symlink():
            return ()
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return path.read_text(errors="replace").splitlines() if stat.S_ISREG(status.st_mode) else ()
    return ()
