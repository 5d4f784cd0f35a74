"""Workspace snapshots of the content service as layers.

What the content service keeps is read where it keeps it, as docs/backup-format.md describes: the pointer
names the snapshots, each is one plain tar under a key that is never used again. Its size and CRC-32 are
compared with the pointer's before anything of it is used.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import quote

from ocikit.compose import Layer
from registry_facade.errors import LayerUnavailable
from registry_facade.image_spec import SnapshotLayer
from registry_facade.layers.content import BuiltLayer, Hashing, scratch_file
from registry_facade.layers.snapshot_tar import moved_tar
from registry_facade.layers.web import Web

_POINTER_BYTES = 16 << 20
_FORMAT = "lapstrake-snapshots"
_VERSION = 1
_KEY = re.compile(r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    """One committed snapshot, as the pointer has it."""

    id: str
    tar_key: str
    tar_bytes: int
    tar_crc32: int


@dataclass(frozen=True, slots=True)
class SnapshotStore:
    """``base`` is the URL below which the store's keys lie; empty where there is none."""

    base: str
    web: Web

    async def find(self, spec: SnapshotLayer) -> SnapshotRef:
        """The snapshot that is meant now. Raises LayerUnavailable, or what kept it from being read."""
        title = f"snapshot of {spec.workspace}"
        if not self.base:
            raise LayerUnavailable(title, "snapshot_store is not set")
        data = await self.web.read(self._url(f"{spec.workspace}/snapshots.json"), _POINTER_BYTES)
        if data is None:
            raise LayerUnavailable(title, "the store has none")
        return choose_snapshot(parse_pointer(data, title), spec.snapshot_id, title)

    async def build(self, ref: SnapshotRef, at: str, directory: Path) -> BuiltLayer:
        """The layer's blob as a file in ``directory``, the caller's to move or remove. Memory is bounded."""
        async with self._fetched(ref, directory) as tar:
            return await asyncio.to_thread(_layer_of, tar, at, directory)

    @contextlib.asynccontextmanager
    async def _fetched(self, ref: SnapshotRef, directory: Path) -> AsyncIterator[Path]:
        descriptor, name = await asyncio.to_thread(scratch_file, directory)
        try:
            size = checksum = 0
            with os.fdopen(descriptor, "wb") as file:
                async with self.web.pieces(self._url(ref.tar_key)) as pieces:
                    async for data in pieces:
                        size, checksum = size + len(data), zlib.crc32(data, checksum)
                        if size > ref.tar_bytes:
                            break
                        await asyncio.to_thread(file.write, data)
            if (size, checksum) != (ref.tar_bytes, ref.tar_crc32):
                raise LayerUnavailable(f"snapshot {ref.id}", "its bytes are not those that were committed")
            yield Path(name)
        finally:
            await asyncio.to_thread(Path(name).unlink)

    def _url(self, key: str) -> str:
        return f"{self.base.rstrip('/')}/{quote(key)}"


def parse_pointer(data: bytes, title: str) -> list[SnapshotRef]:
    """Oldest first. Raises LayerUnavailable for what is no pointer, is damaged, or is newer than we. Pure."""
    try:
        document = json.loads(data)
        stated = document.pop("sha256")
        if stated != _sha256(document) or document["format"] != _FORMAT:
            raise LayerUnavailable(title, "its list of snapshots is damaged")
        if document["format_version"] != _VERSION:
            raise LayerUnavailable(title, f"format_version {document['format_version']!r} is not known here")
        return [
            SnapshotRef(str(row["id"]), _key(row["tar_key"]), int(row["tar_bytes"]), int(row["tar_crc32"]))
            for row in document["snapshots"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LayerUnavailable(title, "its list of snapshots cannot be read") from error


def _sha256(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _key(text: str) -> str:
    if _KEY.match(text) is None or ".." in text.split("/"):
        raise ValueError(text)
    return text


def choose_snapshot(found: list[SnapshotRef], snapshot_id: str, title: str) -> SnapshotRef:
    """The one that is named, else the newest. Raises LayerUnavailable. Pure."""
    named = [ref for ref in found if snapshot_id in {"", ref.id}]
    if not named:
        raise LayerUnavailable(title, f"there is no {snapshot_id or 'snapshot'}")
    return named[-1]


def _layer_of(tar: Path, at: str, directory: Path) -> BuiltLayer:
    descriptor, name = scratch_file(directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            out = Hashing(file)
            moved_tar(tar, cast("IO[bytes]", out), at)
            layer: Layer = out.as_layer()
    except BaseException:
        Path(name).unlink()
        raise
    return BuiltLayer(Path(name), layer)
