"""Which snapshots a workspace has: one small record per snapshot, all in the pointer object.

A snapshot exists if and only if the pointer lists it. Everything here is pure; `content.catalog` moves the
pointer.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from content.errors import Fenced, FormatUnsupported, ObjectCorrupt, SnapshotNotFound
from content.keys import Workspace

FORMAT = "lapstrake-snapshots"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A committed backup. ``tar_crc32`` is of the whole tar; ``content_bytes`` what the files hold."""

    id: str
    created_s: float
    tar_key: str
    tar_bytes: int
    tar_crc32: int
    index_key: str
    index_bytes: int
    index_sha256: str
    entries: int
    content_bytes: int
    left_out: int
    incarnation: int
    parent: str | None = None
    copied_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Pointer:
    """The committed snapshots, oldest first, and the number of the workspace's latest start."""

    workspace: Workspace
    incarnation: int = 0
    snapshots: tuple[Snapshot, ...] = ()

    @property
    def latest(self) -> Snapshot | None:
        return self.snapshots[-1] if self.snapshots else None

    def find(self, snapshot_id: str) -> Snapshot:
        """Raises SnapshotNotFound."""
        for snapshot in self.snapshots:
            if snapshot.id == snapshot_id:
                return snapshot
        raise SnapshotNotFound(snapshot_id, str(self.workspace))

    def check_fence(self, incarnation: int | None) -> int:
        """The incarnation that a backup commits under. Raises Fenced when the workspace was started elsewhere
        since.
        """
        if incarnation is None:
            return self.incarnation
        if incarnation < self.incarnation:
            raise Fenced(str(self.workspace), incarnation, self.incarnation)
        return incarnation

    def with_snapshot(self, snapshot: Snapshot) -> "Pointer":
        """Raises Fenced."""
        incarnation = self.check_fence(snapshot.incarnation)
        return dataclasses.replace(self, incarnation=incarnation, snapshots=(*self.snapshots, snapshot))

    def without(self, snapshot_ids: frozenset[str]) -> "Pointer":
        kept = tuple(snapshot for snapshot in self.snapshots if snapshot.id not in snapshot_ids)
        return dataclasses.replace(self, snapshots=kept)


def dump_pointer(pointer: Pointer) -> bytes:
    document = {
        "format": FORMAT,
        "format_version": VERSION,
        "workspace": str(pointer.workspace),
        "incarnation": pointer.incarnation,
        "snapshots": [dataclasses.asdict(snapshot) for snapshot in pointer.snapshots],
    }
    return json.dumps(document | {"sha256": _digest(document)}, indent=1).encode()


def _digest(document: dict[str, Any]) -> str:
    """Of everything else in the document, so that a flipped bit in a number does not go unseen."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse_pointer(data: bytes, key: str, workspace: Workspace) -> Pointer:
    """Raises ObjectCorrupt, FormatUnsupported."""
    try:
        document: dict[str, Any] = json.loads(data)
        if document.pop("sha256") != _digest(document):
            raise ObjectCorrupt(key, "its checksum does not match")
        if document["format"] != FORMAT or document["workspace"] != str(workspace):
            raise ObjectCorrupt(key, "it is not this workspace's pointer")
        if document["format_version"] != VERSION:
            raise FormatUnsupported(f"object {key}", document["format_version"], VERSION)
        snapshots = tuple(_snapshot(row) for row in document["snapshots"])
        return Pointer(workspace, int(document["incarnation"]), snapshots)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, FormatUnsupported):
            raise
        raise ObjectCorrupt(key, "it is not a pointer's JSON") from error


def _snapshot(row: dict[str, Any]) -> Snapshot:
    names = {field.name for field in dataclasses.fields(Snapshot)}
    snapshot = Snapshot(**{key: value for key, value in row.items() if key in names})
    numbers = (snapshot.tar_bytes, snapshot.tar_crc32, snapshot.index_bytes, snapshot.entries)
    texts = (snapshot.id, snapshot.tar_key, snapshot.index_key, snapshot.index_sha256)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise TypeError("a number is not one")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is not one")
    return snapshot
