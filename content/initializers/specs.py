"""Initializers as a client writes them, parsed into values that are right.

``kind`` is one of ``empty``, ``backup``, ``snapshot``, ``git``, ``download``, ``prebuild`` and ``composite``.
URLs name a protocol that is allowed and a host, and never look like an option; digests are mandatory for
downloads; paths stay in the tree.
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from content.archive.extract import safe_path
from content.errors import InvalidWorkspace, UnsafeArchiveEntry
from content.fields import Fields, InvalidRequest
from content.keys import Workspace, is_snapshot_id
from ocikit.digest import Digest
from ocikit.errors import InvalidDigest
from servicekit.secrets import Secret

_REF = re.compile(r"^(?![-./])(?!.*(\.\.|//|@\{|/\.|\.lock(/|$)))[A-Za-z0-9._/+@-]{1,200}(?<![./])$")
_COMMIT = re.compile(r"^([0-9a-f]{40}|[0-9a-f]{64})$")
_MAX_HEADER_CHARS = 8192
_MAX_FILES, _MAX_STEPS, _MAX_DEPTH = 1000, 20, 3


@dataclass(frozen=True, slots=True)
class Empty:
    """Nothing."""


@dataclass(frozen=True, slots=True)
class FromBackup:
    """The workspace's own latest backup, which must exist."""


@dataclass(frozen=True, slots=True)
class FromSnapshot:
    """A snapshot, also of another workspace."""

    workspace: Workspace
    snapshot_id: str


@dataclass(frozen=True, slots=True)
class FromGit:
    """A clone into ``target`` (relative, empty for the root); ``depth`` None has all history."""

    url: str
    branch: str | None = None
    commit: str | None = None
    depth: int | None = None
    submodules: bool = False
    target: str = ""
    authorization: Secret | None = None
    """The value of that header, for the origin of ``url`` and no other."""


@dataclass(frozen=True, slots=True)
class File:
    url: str
    path: str
    digest: Digest
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Download:
    files: tuple[File, ...]


@dataclass(frozen=True, slots=True)
class Prebuild:
    """A snapshot, in which the repository is then brought to another commit."""

    snapshot: FromSnapshot
    git: FromGit


@dataclass(frozen=True, slots=True)
class Composite:
    """One after the other into the same tree."""

    steps: tuple["Initializer", ...]


Initializer = Empty | FromBackup | FromSnapshot | FromGit | Download | Prebuild | Composite


def parse_initializer(
    body: Any, workspace: Workspace, *, protocols: Collection[str], _depth: int = 0
) -> Initializer:
    """For ``workspace``; ``protocols`` may be used. Raises InvalidRequest."""
    if not isinstance(body, Mapping):
        raise InvalidRequest(["initializer: must be an object"])
    fields = Fields(body)
    kind = fields.text("kind", "")
    made: Initializer
    if kind == "empty":
        made = Empty()
    elif kind == "backup":
        made = FromBackup()
    elif kind == "snapshot":
        made = _snapshot(fields, workspace)
    elif kind == "git":
        made = _git(fields, protocols)
    elif kind == "download":
        made = Download(tuple(_file(item, protocols) for item in _objects(fields, "files", _MAX_FILES)))
    elif kind == "prebuild":
        snapshot, git = (_object(fields, name) for name in ("snapshot", "git"))
        made = Prebuild(_closed(_snapshot, snapshot, workspace), _closed(_git, git, protocols))
    elif kind == "composite":
        made = _composite(fields, workspace, protocols, _depth + 1)
    else:
        accepts = "empty, git, download, snapshot, prebuild, composite or backup"
        raise InvalidRequest([f"kind: {str(kind)[:50]!r} is not one; accepts {accepts}"])
    fields.done()
    return made


def _composite(fields: Fields, workspace: Workspace, protocols: Collection[str], depth: int) -> Composite:
    if depth > _MAX_DEPTH:
        raise InvalidRequest([f"initializers: composites are nested more than {_MAX_DEPTH} deep"])
    steps = _objects(fields, "initializers", _MAX_STEPS)
    made = [parse_initializer(step, workspace, protocols=protocols, _depth=depth) for step in steps]
    if any(isinstance(step, FromBackup) for step in made):
        fields.problems.append("initializers: a backup is whole, and no part of a composite")
    return Composite(tuple(made))


def snapshots_of(initializer: Initializer) -> set[Workspace]:
    """The workspaces whose snapshots are asked for."""
    match initializer:
        case FromSnapshot():
            return {initializer.workspace}
        case Prebuild():
            return {initializer.snapshot.workspace}
        case Composite():
            return set().union(*map(snapshots_of, initializer.steps))
        case _:
            return set()


def _closed(parse: Any, body: Mapping[str, Any], context: Any) -> Any:
    fields = Fields(body)
    made = parse(fields, context)
    fields.done()
    return made


def _object(fields: Fields, name: str) -> Mapping[str, Any]:
    value = fields.take(name, {})
    if not isinstance(value, Mapping):
        raise InvalidRequest([f"{name}: must be an object"])
    return value


def _objects(fields: Fields, name: str, most: int) -> list[Mapping[str, Any]]:
    value = fields.take(name, [])
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise InvalidRequest([f"{name}: must be a list of 1 to {most} objects"])
    if not all(isinstance(item, Mapping) for item in value):
        raise InvalidRequest([f"{name}: must hold objects only"])
    return value


def _snapshot(fields: Fields, workspace: Workspace) -> FromSnapshot:
    snapshot_id, named = fields.text("snapshot_id", ""), fields.text("workspace")
    if not is_snapshot_id(snapshot_id or ""):
        fields.problems.append("snapshot_id: is not one")
    try:
        return FromSnapshot(Workspace.parse(named) if named else workspace, snapshot_id or "")
    except InvalidWorkspace as error:
        raise InvalidRequest([f"workspace: {error}"]) from None


def _git(fields: Fields, protocols: Collection[str]) -> FromGit:
    branch, commit = fields.text("branch"), fields.text("commit")
    if branch is not None and not _REF.match(branch):
        fields.problems.append("branch: is no name of a branch")
    if commit is not None and not _COMMIT.match(commit):
        fields.problems.append("commit: must be a whole commit id, of 40 or 64 hexadecimal digits")
    depth = fields.number("depth")
    if depth == 0:
        fields.problems.append("depth: must be at least 1")
    return FromGit(
        _url(fields, protocols),
        branch,
        commit,
        depth,
        fields.flag("submodules"),
        _path(fields, "target", ""),
        _authorization(fields),
    )


def _authorization(fields: Fields) -> Secret | None:
    value = fields.text("authorization")
    if value is None:
        return None
    if len(value) > _MAX_HEADER_CHARS or not value.isascii() or not value.isprintable():
        fields.problems.append("authorization: must be the value of a header")
    return Secret(value)


def _file(body: Mapping[str, Any], protocols: Collection[str]) -> File:
    fields = Fields(body)
    url, path = _url(fields, {"https", "http"}.intersection(protocols)), _path(fields, "path", None)
    mode = fields.number("mode")
    if mode is not None and mode > 0o777:
        fields.problems.append("mode: must be permissions only, at most 511 (0777)")
    try:
        digest = Digest.parse(fields.text("digest", "") or "")
    except InvalidDigest:
        fields.problems.append("digest: must be sha256:... or sha512:...")
        digest = Digest("")
    fields.done()
    return File(url, path, digest, 0o644 if mode is None else mode)


def _path(fields: Fields, name: str, default: str | None) -> str:
    text = fields.text(name, default)
    try:
        path = os.fsdecode(safe_path(os.fsencode(text or "")))
    except (UnsafeArchiveEntry, UnicodeError) as error:
        fields.problems.append(f"{name}: {error}")
        return ""
    if not path and default is None:
        fields.problems.append(f"{name}: must name a file in the tree")
    if ".git" in (part.lower() for part in PurePosixPath(path).parts):
        fields.problems.append(f"{name}: must not lead into a .git directory")
    return path


def _url(fields: Fields, protocols: Collection[str]) -> str:
    url = fields.text("url", "") or ""
    if (problem := url_problem(url, protocols)) is not None:
        fields.problems.append(f"url: {problem}")
    return url


def url_problem(url: str, protocols: Collection[str]) -> str | None:
    """Why ``url`` may not be asked; the addresses that its host has are judged later. Pure."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return "cannot be parsed"
    if parts.scheme not in protocols:
        return f"must begin with one of {', '.join(f'{name}://' for name in sorted(protocols))}"
    if not url.isprintable() or not url.isascii() or any(c in url for c in " \\\"'`<>"):
        return "has characters that a URL cannot have"
    if parts.username or parts.password:
        return "must not hold credentials"
    if parts.scheme != "file" and (not host or host.startswith("-")):
        return "names no host"
    return None
