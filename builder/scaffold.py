"""Starting a project, a chunk, a combination; nothing that exists is lost. Blocking."""

import re
from collections.abc import Sequence
from pathlib import Path

from builder.errors import ProjectInvalid, WorkspaceError
from builder.names import name_problem
from builder.project_files import PROJECT_FILE, load_project
from ocikit.reference import is_tag

_PROJECT = """\
# A project of chunks: every directory under chunks/ is built on base/, on its own.
combiner:
  combinations: []
  envvars:
    - {name: PATH, action: merge-unique}
"""
_BASE = """\
FROM debian:bookworm-slim
"""
_CHUNK = """\
ARG base
FROM ${base}
"""
_TESTS = """\
- desc: it is there
  command: ["true"]
  assert:
    - status == 0
"""
_COMBINATIONS = re.compile(r"^ +combinations:\s*(\[\s*\])?\s*(#.*)?$")


def init_project(root: Path) -> Sequence[str]:
    """The files that were made. Raises WorkspaceError."""
    made = [_write(root / PROJECT_FILE, _PROJECT), _write(root / "base" / "Dockerfile", _BASE)]
    for directory in ("chunks", "tests"):
        _make_directory(root / directory)
    return [path for path in made if path]


def add_chunk(root: Path, name: str) -> Sequence[str]:
    """The files that were made. Raises ProjectInvalid and WorkspaceError."""
    if (
        name == "base"
        or ":" in name
        or "/" in name
        or name.startswith(("_", "."))
        or name_problem(name) is not None
    ):
        raise ProjectInvalid(
            [f"{name!r} cannot be a chunk's directory: A-Z a-z 0-9 _ . -, at most 53 of them"]
        )
    made = [
        _write(root / "chunks" / name / "Dockerfile", _CHUNK),
        _write(root / "tests" / f"{name}.yaml", _TESTS),
    ]
    return [path for path in made if path]


def add_combination(root: Path, name: str, chunks: Sequence[str]) -> Sequence[str]:
    """Inserted as text, so that comments and layout stay. Raises ProjectInvalid and UnknownName."""
    project = load_project(root)
    if not is_tag(name) or name in project.combinations:
        reason = "is there already" if name in project.combinations else "cannot be an image's tag"
        raise ProjectInvalid([f"{PROJECT_FILE}: combination {name!r} {reason}"])
    quoted = ", ".join(f'"{project.chunk(chunk).name}"' for chunk in chunks)
    path = root / PROJECT_FILE
    path.write_text(_inserted(path.read_text(encoding="utf-8"), name, quoted), encoding="utf-8")
    return [f"{path}: combination {name}"]


def _inserted(text: str, name: str, quoted_chunks: str) -> str:
    """``text`` with the combination at the end of its list, indented as the list is."""
    lines = text.splitlines()
    at = next((number for number, line in enumerate(lines) if _COMBINATIONS.match(line)), None)
    if at is None and any(line.startswith("combiner:") for line in lines):
        reason = "has no `combinations:` on a line of its own, below `combiner:`; add one"
        raise ProjectInvalid([f"{PROJECT_FILE}: {reason}"])
    if at is None:
        lines += ["combiner:", "  combinations:"]
        at = len(lines) - 1
    lines[at] = re.sub(r"\[\s*\]", "", lines[at]).rstrip()
    indent = _indent(lines[at]) + 2
    end = at + 1
    for number, line in enumerate(lines[at + 1 :], at + 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        is_item = line.lstrip().startswith("- ")
        if _indent(line) < _indent(lines[at]) or (_indent(line) == _indent(lines[at]) and not is_item):
            break
        if end == at + 1:
            indent = _indent(line)
        end = number + 1
    margin = " " * indent
    entry = [f"{margin}- name: {name}", f"{margin}  chunks: [{quoted_chunks}]"]
    return "\n".join([*lines[:end], *entry, *lines[end:], ""])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _write(path: Path, text: str) -> str:
    """The path, or "" when a file is there already."""
    _make_directory(path.parent)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return ""
    except OSError as error:
        raise WorkspaceError(str(path), error.strerror or str(error)) from error
    return str(path)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(str(path), error.strerror or str(error)) from error
