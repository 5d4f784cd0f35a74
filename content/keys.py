"""Names of objects; nothing else builds or takes apart a key."""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from content.errors import InvalidWorkspace

_WORKSPACE = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127})/([A-Za-z0-9][A-Za-z0-9._-]{0,127})$")
_SNAPSHOT_ID = re.compile(r"^\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True, order=True)
class Workspace:
    """``OWNER/ID``; neither part can be ``..`` or hold a slash."""

    owner: str
    id: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidWorkspace."""
        match = _WORKSPACE.match(text)
        if match is None or "/." in f"/{text}":
            raise InvalidWorkspace(text)
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.owner}/{self.id}"


def new_snapshot_id(now_s: float) -> str:
    """Unique, and sorting by time."""
    stamp = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    return f"{stamp}Z-{secrets.token_hex(4)}"


def is_snapshot_id(text: str) -> bool:
    return _SNAPSHOT_ID.match(text) is not None


def pointer_key(workspace: Workspace) -> str:
    return f"{workspace}/snapshots.json"


def tar_key(workspace: Workspace, snapshot_id: str) -> str:
    return f"{workspace}/data/{snapshot_id}.tar"


def index_key(workspace: Workspace, snapshot_id: str) -> str:
    return f"{workspace}/index/{snapshot_id}.jsonl.zst"


def workspace_prefix(workspace: Workspace) -> str:
    return f"{workspace}/"


def snapshot_of(key: str) -> str | None:
    """The snapshot that a data or index key belongs to; None for any other key."""
    stem = key.rpartition("/")[2].partition(".tar")[0].removesuffix(".jsonl.zst")
    return stem if is_snapshot_id(stem) else None


def probe_key(token: str) -> str:
    """Where a store's abilities are tried out; the token is random, and nothing is left there."""
    return f".lapstrake-probe/{token}"
