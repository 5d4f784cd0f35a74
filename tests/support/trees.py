"""Directory trees that are hard to keep: every type, odd names, every kind of metadata."""

import os
import random
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OLD_NS = 1_234_567_890_123_456_789


def make_tree(root: Path, *, seed: int = 1, files: int = 40) -> Path:
    """A tree with about ``files`` regular files; everything in it is some time old."""
    rng = random.Random(seed)
    root.mkdir()
    directories = [root]
    for number in range(max(2, files // 5)):
        below = rng.choice(directories) / f"dir-{number}"
        below.mkdir()
        directories.append(below)
    for number in range(files):
        path = rng.choice(directories) / f"file-{number}.txt"
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 511, 512, 513, 5000, 70_000])))
        path.chmod(rng.choice([0o600, 0o644, 0o755, 0o4755]))
    _add_oddities(root)
    settle(root)
    return root


def _add_oddities(root: Path) -> None:
    (root / "empty-dir").mkdir(mode=0o750)
    (root / "symlink").symlink_to("dir-0/nowhere")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / ("n" * 255)).write_bytes(b"long name")
    Path(os.fsdecode(os.fsencode(root) + b"/not-\xff-utf8\n")).write_bytes(b"odd name")
    (root / "ünï-cödé-😀").write_text("unicode")
    deep = root / "deep"
    for number in range(60):
        deep = deep / f"level-{number}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"deep down")
    (root / "hard-1").write_bytes(b"linked" * 100)
    os.link(root / "hard-1", root / "empty-dir" / "hard-2")
    os.mkfifo(root / "fifo", 0o620)
    with (root / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"data after a hole")
        file.truncate(20 << 20)
    (root / "read-only").mkdir()
    (root / "read-only" / "inside").write_bytes(b"x")
    (root / "read-only").chmod(0o555)
    os.setxattr(root / "hard-1", "user.note", b"with\0zero and =%")
    os.setxattr(root / "empty-dir", "user.dir", b"attribute")


def settle(root: Path) -> None:
    """Gives everything an mtime with nanoseconds, deepest first."""
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(OLD_NS, OLD_NS + number), follow_symlinks=False)
    os.utime(root, ns=(OLD_NS, OLD_NS))


def add_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def wait_past_racy_window(tree: Path) -> None:
    """Until a file written now would have a time that the comparison believes."""
    newest = max(path.lstat().st_ctime_ns for path in tree.rglob("*"))
    while time.time_ns() < newest + 30_000_000:
        os.sched_yield()


def facts(root: Path) -> Mapping[str, Any]:
    """All that a restore must bring back, by relative path."""
    found = {".": _facts(root)}
    links: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        name = os.path.relpath(path, root)
        found[name] = _facts(path)
        status = path.lstat()
        if status.st_nlink > 1 and not path.is_dir():
            found[name]["linked_to"] = links.setdefault(status.st_ino, name)
    return found


def _facts(path: Path) -> dict[str, Any]:
    status = path.lstat()
    made: dict[str, Any] = {
        "mode": status.st_mode,
        "owner": (status.st_uid, status.st_gid),
        "mtime_ns": status.st_mtime_ns,
    }
    if path.is_symlink():
        made["target"] = path.readlink()
    else:
        made["xattrs"] = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    if path.is_file() and not path.is_symlink():
        made["content"] = path.read_bytes()
    return made
