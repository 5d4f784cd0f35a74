"""Whether two directory trees are the same, as ``demo`` proves it after a restore."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def tree_differences(expected: Path, actual: Path, *, limit: int = 20) -> Sequence[str]:
    """Lines naming what differs in names, types, modes, owners, times (ns), link targets or contents.

    Blocking; at most ``limit`` lines. Times of symbolic links are compared too.
    """
    left, right = dict(_describe(expected)), dict(_describe(actual))
    found = [f"{name}: missing" for name in left.keys() - right.keys()]
    found += [f"{name}: not in the original" for name in right.keys() - left.keys()]
    for name in left.keys() & right.keys():
        found += _entry_differences(name, left[name], right[name])
    return sorted(found)[:limit]


def _entry_differences(name: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    for field, value in left.items():
        if value != right.get(field):
            yield f"{name}: {field} is {right.get(field)}, was {value}"


def _describe(root: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    pending = [root]
    while pending:
        directory = pending.pop()
        yield os.path.relpath(directory, root), _facts(directory)
        with os.scandir(directory) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                else:
                    yield os.path.relpath(path, root), _facts(path)


def _facts(path: Path) -> Mapping[str, Any]:
    status = path.lstat()
    facts: dict[str, Any] = {
        "type": stat.S_IFMT(status.st_mode),
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "owner": (status.st_uid, status.st_gid),
        "mtime_ns": status.st_mtime_ns,
    }
    if stat.S_ISLNK(status.st_mode):
        facts["target"] = str(path.readlink())
    elif stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            facts["content"] = hashlib.file_digest(file, "sha256").hexdigest()
    return facts
