"""What clients ask, parsed once into values that are right; all problems of a body are told at once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aiohttp import web

from content.errors import InvalidInput
from content.keys import is_snapshot_id
from content.rates import WAYS, Rates, Way

_MAX_BODY_BYTES = 1 << 20
_MAX_ITEMS = 1000
RATE_FIELDS: Mapping[Way, str] = {
    "send": "send_bytes_s",
    "receive": "receive_bytes_s",
    "read": "read_bytes_s",
    "write": "write_bytes_s",
}


class InvalidRequest(InvalidInput):
    """The body of a request cannot be used; ``problems`` are one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(slots=True)
class Fields:
    """Takes a JSON object apart; `done` raises InvalidRequest with everything that was wrong."""

    body: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self._take(name, default)
        if value is not default and (not isinstance(value, str) or not value or "\0" in value):
            self.problems.append(f"{name}: must be a string that is not empty")
            return default
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._take(name, [])
        if (
            not isinstance(value, list)
            or len(value) > _MAX_ITEMS
            or not all(isinstance(item, str) and "\0" not in item for item in value)
        ):
            self.problems.append(f"{name}: must be a list of at most {_MAX_ITEMS} strings")
            return ()
        return tuple(value)

    def flag(self, name: str) -> bool:
        value = self._take(name, default=False)
        if not isinstance(value, bool):
            self.problems.append(f"{name}: must be true or false")
            return False
        return value

    def number(self, name: str) -> int | None:
        value = self._take(name, None)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63
        ):
            self.problems.append(f"{name}: must be a whole number of at least 0")
            return None
        return value

    def choice(self, name: str, *choices: str) -> str:
        value = self._take(name, choices[0])
        if value not in choices:
            self.problems.append(f"{name}: must be one of {', '.join(choices)}")
            return choices[0]
        return str(value)

    def _take(self, name: str, default: Any) -> Any:
        self._known.add(name)
        return self.body.get(name, default)

    def done(self) -> None:
        self.problems += [f"{name}: unknown field" for name in self.body if name not in self._known]
        if self.problems:
            raise InvalidRequest(self.problems)


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
