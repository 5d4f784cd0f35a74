"""What a Dockerfile can reach: the files of its directory that .dockerignore leaves, and named contexts.

The engine is given exactly what is listed here, so that nothing reaches an image that its hash does not
know. Blocking.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pathspec

from builder.errors import ProjectInvalid
from builder.project import Chunk, NamedContext

IGNORE_FILE = ".dockerignore"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ContextEntry:
    """``content`` is the sha256 of a file, the target of a symlink, empty for a directory."""

    path: str
    kind: str
    mode: int
    content: str = ""

    def describe(self) -> str:
        """Everything but the path, as one word after another."""
        return f"{self.kind} {self.mode:04o} {self.content}".rstrip()


def ignore_lines(chunk: Chunk) -> Sequence[str]:
    """.dockerignore, then what describes the build and is never part of it. Raises ProjectInvalid."""
    path = chunk.directory / IGNORE_FILE
    try:
        own = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (UnicodeDecodeError, OSError) as error:
        raise ProjectInvalid([f"{path}: {getattr(error, 'strerror', None) or 'is not UTF-8'}"]) from error
    return [*own, IGNORE_FILE, *chunk.control_files]


def context_entries(chunk: Chunk) -> Sequence[ContextEntry]:
    """What ``COPY .`` would copy: files, and the directories they are in. Links are listed as links."""
    ignored = pathspec.PathSpec.from_lines("gitignore", _anchored(ignore_lines(chunk)))
    found = list(_entries(chunk.directory))
    kept = {entry.path for entry in found if not ignored.match_file(entry.path)}
    kept |= {str(parent) for path in kept for parent in PurePosixPath(path).parents}
    return [entry for entry in found if entry.path in kept]


def _anchored(lines: Sequence[str]) -> Iterator[str]:
    """Docker's patterns begin at the context's root; git's match at any depth unless they say so."""
    for line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        negated = text.startswith("!")
        cleaned = str(PurePosixPath("/", text.removeprefix("!").strip().lstrip("/")))
        if cleaned != "/":
            yield f"{'!' if negated else ''}{cleaned}"


def _entries(directory: Path, prefix: str = "") -> Iterator[ContextEntry]:
    for item in sorted(os.scandir(directory), key=lambda found: found.name):
        path = f"{prefix}{item.name}"
        status = item.stat(follow_symlinks=False)
        mode = stat.S_IMODE(status.st_mode)
        if item.is_symlink():
            yield ContextEntry(path, "link", 0o777, str(Path(item.path).readlink()))
        elif item.is_dir():
            yield ContextEntry(path, "dir", mode)
            yield from _entries(Path(item.path), f"{path}/")
        elif item.is_file():
            yield ContextEntry(path, "file", mode, _sha256(Path(item.path)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named_context_entries(context: NamedContext) -> Sequence[ContextEntry]:
    """Raises ProjectInvalid when a pattern matches nothing: what it was written for is not installed."""
    found: dict[str, ContextEntry] = {}
    for pattern in context.include:
        matches = sorted(path for path in context.directory.glob(pattern) if path != context.directory)
        if not matches:
            raise ProjectInvalid([f"context {context.name!r}: nothing matches {context.directory / pattern}"])
        for path in matches:
            found[str(path.relative_to(context.directory))] = _outside_entry(context, path)
    return [found[path] for path in sorted(found)]


def _outside_entry(context: NamedContext, path: Path) -> ContextEntry:
    relative, mode = str(path.relative_to(context.directory)), stat.S_IMODE(path.lstat().st_mode)
    if path.is_symlink():
        return ContextEntry(relative, "link", 0o777, str(path.readlink()))
    if path.is_dir():
        return ContextEntry(relative, "dir", mode)
    return ContextEntry(relative, "file", mode, _sha256(path))


def stage_named_context(context: NamedContext, target: Path) -> None:
    """Copies what is included, and only that, into ``target``."""
    for entry in named_context_entries(context):
        source, copy = context.directory / entry.path, target / entry.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind == "link":
            copy.symlink_to(entry.content)
        elif entry.kind == "dir":
            copy.mkdir(exist_ok=True)
            copy.chmod(entry.mode)
        else:
            shutil.copyfile(source, copy)
            copy.chmod(entry.mode)
