"""What clients ask, parsed once into values that are right; all problems of a body are told at once."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from aiohttp import web

from content.fields import Fields, InvalidRequest
from content.io_limits.limiter import IoLimits
from content.io_limits.workspaces import Held
from content.keys import is_snapshot_id
from content.rates import WAYS, Rates, Way

_MAX_BODY_BYTES = 1 << 20
_LEAST_EVERY_S, _MOST_EVERY_S = 1, 7 * 86_400
RATE_FIELDS: Mapping[Way, str] = {
    "send": "send_bytes_s",
    "receive": "receive_bytes_s",
    "read": "read_bytes_s",
    "write": "write_bytes_s",
}


async def read_fields(request: web.Request) -> Fields:
    """The body, which must be a JSON object or empty. Raises InvalidRequest."""
    data = await request.content.read(_MAX_BODY_BYTES + 1)
    if len(data) > _MAX_BODY_BYTES:
        raise InvalidRequest(["the body is too large"])
    try:
        body = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        raise InvalidRequest(["the body is not JSON"]) from None
    if not isinstance(body, dict):
        raise InvalidRequest(["the body is not a JSON object"])
    return Fields(body)


@dataclass(frozen=True, slots=True)
class BackupAsked:
    """A backup as asked for by a client."""

    path: str | None
    exclude: tuple[str, ...]
    incarnation: int | None
    kind: Literal["final", "periodic"]


@dataclass(frozen=True, slots=True)
class RestoreAsked:
    """A restore as asked for by a client."""

    path: str | None
    snapshot_id: str | None
    only: tuple[str, ...]
    replace: bool


@dataclass(frozen=True, slots=True)
class InitializationAsked:
    """A workspace's start as asked for by a client."""

    path: str | None
    initializer: Any
    uid: int | None
    gid: int | None


@dataclass(frozen=True, slots=True)
class ScheduleAsked:
    """Periodic backups as asked for by a client."""

    path: str | None
    exclude: tuple[str, ...]
    incarnation: int | None
    every_s: int | None


def parse_backup(fields: Fields) -> BackupAsked:
    """Raises InvalidRequest."""
    asked = BackupAsked(
        fields.text("path"),
        fields.texts("exclude"),
        fields.number("incarnation"),
        "final" if fields.choice("kind", "final", "periodic") == "final" else "periodic",
    )
    fields.done()
    return asked


def parse_restore(fields: Fields) -> RestoreAsked:
    """Raises InvalidRequest."""
    snapshot_id = fields.text("snapshot_id")
    if snapshot_id is not None and not is_snapshot_id(snapshot_id):
        fields.problems.append("snapshot_id: is not one")
    asked = RestoreAsked(fields.text("path"), snapshot_id, fields.texts("only"), fields.flag("replace"))
    fields.done()
    return asked


def parse_initialization(fields: Fields) -> InitializationAsked:
    """Raises InvalidRequest; what is in ``initializer`` is not looked at here."""
    ids = [fields.number(name) for name in ("uid", "gid")]
    if any(number is not None and number >= 1 << 32 for number in ids):
        fields.problems.append("uid, gid: must be below 2^32")
    asked = InitializationAsked(fields.text("path"), fields.take("initializer", None), ids[0], ids[1])
    fields.done()
    return asked


def parse_schedule(fields: Fields) -> ScheduleAsked:
    """Raises InvalidRequest."""
    every_s = fields.number("every_s")
    if every_s is not None and not _LEAST_EVERY_S <= every_s <= _MOST_EVERY_S:
        fields.problems.append(f"every_s: must be from {_LEAST_EVERY_S} to {_MOST_EVERY_S}")
    asked = ScheduleAsked(fields.text("path"), fields.texts("exclude"), fields.number("incarnation"), every_s)
    fields.done()
    return asked


def parse_expiry(text: str | None) -> int:
    """Raises InvalidRequest."""
    if text is None:
        return 3600
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0
    if not 1 <= number <= _MOST_EVERY_S:
        raise InvalidRequest([f"expires_s: must be from 1 to {_MOST_EVERY_S}"])
    return number


def parse_io_limits(fields: Fields) -> Held:
    """Raises InvalidRequest."""
    cgroup = fields.text("cgroup", "")
    if not cgroup:
        fields.problems.append("cgroup: must name a cgroup")
    values = {field.name: fields.number(field.name) for field in dataclasses.fields(IoLimits)}
    fields.problems += [
        f"{name}: must be at least 1; null is no limit" for name in values if values[name] == 0
    ]
    fields.done()
    return Held(cgroup or "", IoLimits(**values))


def parse_rates(fields: Fields, now: Rates) -> Rates:
    """``now`` with what the body changes. Raises InvalidRequest."""
    changed: dict[str, int | None] = {}
    for way in WAYS:
        name = RATE_FIELDS[way]
        rate = fields.number(name)
        if rate == 0:
            fields.problems.append(f"{name}: 0 would stop everything; null lifts the limit")
        if name in fields.body:
            changed[way] = rate
    fields.done()
    return replace(now, **changed)
